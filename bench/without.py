"""The API as it is, or without something that guards it: what that costs is the difference.

without.py                nothing is missing
without.py audit          nothing is written into its audit log
without.py identity       who calls is found out once, and nothing is checked from then on; with a database role
                          that no row-level security holds for, there is none of that either
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from starlette.requests import HTTPConnection

from api import accept, authentication, limits
from api.audit_rows import Record
from api.caller import ENTER, Caller, Who
from worker import api

_checked = authentication._authenticate
_first: list[Who] = []


async def _event_alone(caller: Caller, event: dict[str, Any] | None = None) -> None:
    caller.record.written = True
    if event is not None:
        await caller.execute(accept._INSERT_EVENT, event)


async def _as_before(request: HTTPConnection, permissions: Sequence[str]) -> Caller:
    """Whoever asked first."""
    if not _first:
        caller = await _checked(request, permissions)
        _first.append(caller.who)
        return caller
    # How often one asks is counted all the same.
    await limits.count_caller(request, key=_first[0].key_id, user=_first[0].user_id)
    engine = request.app.state.engine
    connection = await engine.connect().start()
    request.state.who, request.state.authenticated = _first[0], True
    if request.method != "GET":  # triggers look which project a row is of
        await connection.execute(ENTER, {"project": str(_first[0].project_id)})
    return Caller(engine, connection, _first[0], Record(request, permissions[0] if permissions else ""))


if __name__ == "__main__":
    if "audit" in sys.argv:
        Caller.audit = _event_alone  # type: ignore[method-assign]  # here alone
    if "identity" in sys.argv:
        authentication._authenticate = _as_before
    api.main()
