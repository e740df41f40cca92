"""The schema's revisions, in order of their numbers.

A schema is only ever added to until no release that runs needs what goes (expand, then contract): so a process
works on every schema that is at least the one it was written for.
"""

from __future__ import annotations

from pathlib import Path


def newest() -> str:
    """The revision that this program was written for."""
    return max(path.name.partition("_")[0] for path in Path(__file__).with_name("versions").glob("[0-9]*.py"))


#: For any role of Cairn's.
REVISION = "SELECT version_num FROM alembic_version"


def standing(found: str | None) -> str:
    """How a database's revision stands to this program: ``ok``, ``newer`` (it works), ``older`` or ``missing``."""
    needed = newest()
    if found is None:
        return "missing"
    return "ok" if found == needed else "newer" if found > needed else "older"
