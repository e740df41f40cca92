"""The API, as it is, or (``without``) with nothing written into its audit log: what that costs is the difference."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from api import accept
from api.caller import Caller
from worker import api


async def _event_alone(caller: Caller, event: dict[str, Any] | None = None) -> None:
    caller.record.written = True
    if event is not None:
        await caller.execute(accept._INSERT_EVENT, event)


if __name__ == "__main__":
    if "without" in sys.argv:
        Caller.audit = _event_alone  # type: ignore[method-assign]  # here alone
    api.main()
