"""docs/troubleshooting.md: what every error code means, and what to do."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

from model.errors import CairnError

DOCUMENT = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text()
#: Codes that no class of error stands for: of a workflow that was cancelled, and of a mistake of ours.
BESIDE = {"cancelled": None, "internal": CairnError}


def family(kind: type[CairnError]) -> Iterator[type[CairnError]]:
    for each in kind.__subclasses__():
        yield each
        yield from family(each)


def codes() -> dict[str, type[CairnError] | None]:
    """Of all errors, wherever they are defined."""
    for floor in ("api", "workflows", "activities", "drivers", "model", "worker"):
        package = importlib.import_module(floor)
        for found in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{floor}.{found.name}")
    # Tests have errors of their own.
    ours = [kind for kind in family(CairnError) if not kind.__module__.startswith("tests")]
    return {kind.code: kind for kind in ours} | BESIDE


def entries() -> dict[str, str]:
    parts = re.split(r"^### (\w+)\n", DOCUMENT, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], (part.partition("\n## ")[0] for part in parts[2::2]), strict=True))
    assert len(found) == len(parts[1::2]), "a code has two entries"
    return found


def test_every_code_has_its_entry_and_every_entry_is_a_code() -> None:
    assert set(entries()) == set(codes())


def test_entries_say_the_status_whether_it_may_pass_and_what_to_do() -> None:
    known = codes()
    for code, text in entries().items():
        kind = known[code]
        said = "Of a workflow alone" if kind is None else f"{kind.status}{', may pass' if kind.retryable else ''}"
        assert text.strip().startswith(f"**{said}.** "), (code, said)
        assert re.search(r"^\*Do:\* \S", text, re.MULTILINE), code


def test_program_has_a_hint_for_every_code_that_a_user_meets() -> None:
    from cli.hints import BY_REQUEST, HINTS

    # What is over for a user who sees it: nothing to do, or a workflow's own affair.
    over = {"cancelled", "run_ended", "seal_broken", "fence_failed", "slow_consumer", "method_not_allowed"}
    assert set(codes()) - set(HINTS) - set(BY_REQUEST) <= over
    assert set(HINTS) | set(BY_REQUEST) <= set(codes())
