"""``cairn setup``: what a platform needs of its PostgreSQL and its Temporal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import CommandFailed, Exit

Check = Annotated[bool, typer.Option("--check", help="Change nothing: say what there is, and what is missing.")]


def setup(check: Check = False) -> None:
    """Prepare PostgreSQL and Temporal for a platform: roles, schema, first rows, namespace, schedules.

    Waits for both, --check for a few seconds only. What is there is left as it
    is: it may be run at every start, and by several at once. Ends with 1 where
    something is missing.
    The same as the program cairn-setup. Settings: docs/configuration.md.
    """
    program = Path(sys.executable).with_name("cairn-setup")
    if not program.exists():
        raise CommandFailed(f"{program} is missing: install the package whole", "not_installed", Exit.FAILED)
    os.execv(program, [str(program), *(["--check"] if check else [])])  # noqa: S606 - it has no shell
