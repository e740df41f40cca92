"""Words of other programs lead to the command that does it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.errors import Exit
from cli.main import ELSEWHERE, ELSEWHERE_OF
from tests.cli.fake import Answer, FakeApi, cairn


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ps"], "cairn instance list"),
        (["version"], "cairn --version"),
        (["instance", "delete", "web"], "cairn instance rm"),
        (["group", "describe", "web"], "cairn group show"),
        (["lb", "ls"], "cairn lb list"),
    ],
)
def test_words_of_other_programs_lead_on(words: list[str], told: str) -> None:
    refused = cairn(*words)
    assert refused.exit_code == Exit.USAGE and f"hint: {told}" in refused.stderr
    assert not set(ELSEWHERE_OF.values()) & set(ELSEWHERE_OF) and "doctor" in ELSEWHERE["status"]


def test_what_is_named_so_is_what_it_is(api: FakeApi) -> None:
    api.on("GET /lb", Answer(200, []))
    assert "cairn lb list" in cairn("lb", "remove", "front", "web").stderr


def test_a_backup_that_is_not_there_is_told_first(tmp_path: Path) -> None:
    refused = cairn("restore", str(tmp_path / "nothing"))
    assert refused.exit_code == Exit.USAGE and "No such file" in refused.stderr and "Errno" not in refused.stderr
