"""``cairn setup``: what a platform needs of its PostgreSQL and its Temporal."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.errors import CommandFailed, Exit

Check = Annotated[bool, typer.Option("--check", help="Change nothing: say what there is, and what is missing.")]


def setup(check: Check = False) -> None:
    """Prepare PostgreSQL and Temporal for a platform: roles, schema, first rows, namespace, schedules.

    Waits for both. What is there is left as it is; it may be run at every
    start, and by several at once. Settings: docs/configuration.md.
    """
    from worker.data_folder import StackError
    from worker.setup import set_up

    try:
        complete = set_up(change=not check, say=typer.echo)
    except StackError as error:
        raise CommandFailed(str(error), "cannot_set_up", Exit.FAILED) from None
    if not complete:
        raise CommandFailed(
            "something is missing", "not_set_up", Exit.FAILED, None if not check else "run: cairn setup"
        )
