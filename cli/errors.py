"""How a command ends when it does not end well: exit codes and the one exception behind them."""

from __future__ import annotations

from enum import IntEnum
from http import HTTPStatus
from typing import Any


class Exit(IntEnum):
    """Exit codes. Scripts rely on them: they are only ever added to."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    UNREACHABLE = 5
    TIMED_OUT = 6
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class CommandFailed(Exception):
    """Ends the command with ``exit``; the message, its code and the hint go to stderr."""

    def __init__(
        self, message: str, code: str, exit: Exit, hint: str | None = None, fields: list[dict[str, Any]] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.exit = exit
        self.hint = hint
        self.fields = fields or []


def usage(message: str, hint: str | None = None) -> CommandFailed:
    return CommandFailed(message, "usage", Exit.USAGE, hint)


def of_answer(status: int, error: dict[str, Any]) -> CommandFailed:
    """The failure that an error of the API, as it stands in the envelope, means for a command."""
    code = str(error.get("code") or f"http_{status}")
    details = error.get("details")
    details = details if isinstance(details, dict) else {}
    fields = details.get("fields")
    return CommandFailed(
        str(error.get("message") or f"the API answered {status}"),
        code,
        _exit_of(status),
        _hint(code, details),
        fields if isinstance(fields, list) else None,
    )


def of_outcome(workflow: dict[str, Any]) -> CommandFailed:
    """The failure that a workflow which ended without completing means for a command."""
    error = workflow.get("error") or {}
    state = str(workflow["state"])
    code = str(error.get("code") or state)
    step = error.get("step")
    if state == "cancelled":
        message = f"{workflow['kind']} was cancelled; what it had done is undone"
    else:
        where = f" at {step}" if step else ""
        message = f"{workflow['kind']} failed{where}: {error.get('message') or 'no cause given'}"
    hint = _hint(code, {}) or f"see what happened: cairn workflow show {workflow['id']}"
    return CommandFailed(message, code, Exit.FAILED, hint)


def _exit_of(status: int) -> Exit:
    if status in (404, 410):
        return Exit.NOT_FOUND
    if status in (401, 503, 504):
        return Exit.UNREACHABLE
    return Exit.REFUSED if status < HTTPStatus.INTERNAL_SERVER_ERROR else Exit.FAILED


#: States in which nothing is under way, though a workflow was the last to change them.
SETTLED = ("running", "stopped", "error", "deleted", "completed", "failed", "cancelled")
_HINTS = {
    "invalid_state": "see how it is: cairn instance list, cairn workflow show ID",
    "unauthenticated": "set CAIRN_API_KEY; the key of a local platform stands in .cairn/endpoint.json",
    "forbidden": "use a key whose role allows this",
    "not_found": "see what there is: cairn instance list, cairn workflow list",
    "name_taken": "choose another name, or remove the one that has it: cairn instance rm NAME",
    "port_taken": "choose another host port, or give only the container's and let Cairn choose: --port 80",
    "no_capacity": "remove something, choose a smaller --type, add a host, or widen CAIRN_PORT_RANGE",
    "quota_exceeded": "remove something, or ask for a larger quota",
    "unhealthy": "see what its check asks for: cairn instance show NAME; give it longer with --health-timeout",
    "image_not_found": "see what the engine has: docker image ls",
    "idempotency_mismatch": "a key stands for one request: give another --idempotency-key",
    "precondition_failed": "it has changed meanwhile: look again, then repeat",
    "in_use": "see what uses it; what is on a host moves away with: cairn host drain NAME",
    "unavailable": "the platform is starting, or its database is away: see cairn doctor, then repeat",
    "host_unreachable": "see whether its agent runs and reaches the platform: cairn host list",
    "engine_unavailable": "see whether the engine of the host runs: cairn doctor",
}


def _hint(code: str, details: dict[str, Any]) -> str | None:
    if details.get("workflow_id") and details.get("state") not in SETTLED:
        return f"wait for what is under way: cairn workflow wait {details['workflow_id']}"
    return _HINTS.get(code)
