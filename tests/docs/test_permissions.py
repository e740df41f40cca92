"""docs/projects-and-roles.md: the table of permissions and roles is what the program has."""

from __future__ import annotations

from pathlib import Path

from model.permissions import PROJECT, ROLES

DOCUMENT = (Path(__file__).parents[2] / "docs" / "projects-and-roles.md").read_text()


def table() -> list[str]:
    return [
        f"| `{name}`: {what} | " + " | ".join("yes" if name in of else "" for of in ROLES.values()) + " |"
        for name, what in PROJECT.items()
    ]


def test_table_is_of_the_permissions_and_roles_that_there_are() -> None:
    assert f"| permission | {' | '.join(ROLES)} |" in DOCUMENT
    written = [line for line in DOCUMENT.splitlines() if line.startswith("| `")]
    assert written == table(), "\n".join(table())
