"""``cairn-health``: whether a process of this machine, or of this container, works. For those who restart it.

The API is asked. A control worker serves nothing: it touches a file while the database and Temporal answer it. An
agent writes down each lease that it is granted. It runs every few seconds, and so imports only what it needs.
"""

from __future__ import annotations

import http.client
import sys
import time
from http import HTTPStatus
from pathlib import Path

from model.settings import Settings, of_process

#: Between two touches are 5.
FRESH_SECONDS = 20.0
#: model.hosts.LEASE.
LEASE_SECONDS = 15.0
PATIENCE = 4.0
USAGE = "usage: cairn-health api | control | agent"


def main() -> None:
    """Ends with 0 where the process works; otherwise says what is wrong, and ends with 1."""
    kinds = {"api": _api, "control": _control, "agent": _agent}
    if len(sys.argv) != 2 or sys.argv[1] not in kinds:  # noqa: PLR2004 - the program and one word
        raise SystemExit(USAGE)
    problem = kinds[sys.argv[1]](of_process())
    if problem is not None:
        raise SystemExit(problem)


def _api(settings: Settings) -> str | None:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.api_host, settings.api_host)  # noqa: S104 - asked, not bound
    connection = http.client.HTTPConnection(host, settings.api_port, timeout=PATIENCE)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        said = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"the API does not answer: {error}"
    finally:
        connection.close()
    return None if answer.status == HTTPStatus.OK else f"the API is not ready: {said}"


def _control(settings: Settings) -> str | None:
    if settings.health_file is None:
        return "CAIRN_HEALTH_FILE is not set: a control worker shows with it that it works"
    return _stale(settings.health_file, FRESH_SECONDS)


def _agent(settings: Settings) -> str | None:
    return _stale(lease_file(settings), LEASE_SECONDS)


def lease_file(settings: Settings) -> Path:
    """What ``worker.fence`` writes at each renewal of the lease; it and ``worker.identity`` would be imported longer
    than all else takes."""
    return settings.data_dir / "agents" / f"{settings.host_name}.lease"


def _stale(path: Path, seconds: float) -> str | None:
    try:
        age = time.time() - path.stat().st_mtime
    except OSError as error:
        return f"it has not begun to work: {error}"
    return None if age < seconds else f"it has not worked for {age:.0f} s"


if __name__ == "__main__":
    main()
