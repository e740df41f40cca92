"""Locking what a run may hold at the same time.

A step's transaction takes milliseconds. One that is stuck (a frozen worker, a database that stalls) keeps its
rows locked, and a request must neither wait for ever nor be unable to call that very run off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Executable, text
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import DBAPIError

from api.caller import Caller

#: Far more than a healthy transaction takes, and far less than a client waits.
SHORT, LONG = 0.5, 10.0
_LOCK_NOT_AVAILABLE = "55P03"
_PATIENCE = text("SELECT set_config('lock_timeout', :patience, true)")


async def lock(
    caller: Caller, seconds: float, *statements: tuple[Executable, Any]
) -> Sequence[CursorResult[Any]] | None:
    """Run the locking ``statements``; None where somebody else held a row for longer than ``seconds``.

    Either way the transaction goes on.
    """
    try:
        async with caller.connection.begin_nested():
            await caller.execute(_PATIENCE, {"patience": f"{seconds * 1000:.0f}ms"})
            found = [await caller.execute(statement, parameters) for statement, parameters in statements]
            await caller.execute(_PATIENCE, {"patience": "0"})
            return found
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
            raise
        return None
