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


#: What scripts may build on: shown by ``cairn --help`` and in docs/cli.md.
MEANINGS = {
    Exit.OK: "done, or accepted with --no-wait",
    Exit.FAILED: "the operation failed, or was cancelled",
    Exit.USAGE: "wrong usage; nothing was sent",
    Exit.NOT_FOUND: "there is no such thing",
    Exit.REFUSED: "refused: state, name, port, capacity, quota, validation",
    Exit.UNREACHABLE: "the API cannot be reached, is not ready, or does not know the key",
    Exit.TIMED_OUT: "--timeout is over; the workflow goes on",
    Exit.INTERRUPTED: "interrupted by Ctrl-C; a workflow that was waited for goes on",
    Exit.BROKEN_PIPE: "the reader of the output went away (as in: cairn … | head)",
}


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
        exit_of(status),
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


def exit_of(status: int) -> Exit:
    """The exit code that a status of the API means."""
    if status < HTTPStatus.MULTIPLE_CHOICES:
        return Exit.OK
    if status in (404, 410):
        return Exit.NOT_FOUND
    if status in (401, 503, 504):
        return Exit.UNREACHABLE
    return Exit.REFUSED if status < HTTPStatus.INTERNAL_SERVER_ERROR else Exit.FAILED


#: States in which nothing is under way, though a workflow was the last to change them.
SETTLED = ("running", "stopped", "paused", "error", "deleted", "completed", "failed", "cancelled")
_HINTS = {
    "invalid_state": "see how it is: cairn instance list, cairn workflow show ID",
    "unauthenticated": "see whose key is used: cairn context show; give another with CAIRN_API_KEY or a context",
    "registration_closed": "ask an administrator of the platform to let you in",
    "project_inactive": "ask an administrator of the platform; or use another project (X-Project-ID)",
    "key_unknown": "give the processes the master key that it names: CAIRN_MASTER_KEYS",
    "forbidden": "use a key whose role allows this: cairn context list, or CAIRN_API_KEY",
    "not_found": "see what there is: cairn instance list, cairn workflow list",
    "validation_failed": "see what is expected: the command with --help, or /docs of the API",
    "restored": "its operator decides what differs: cairn restore status",
    "unresolved": "decide about each (cairn restore adopt|forget|discard ID), or cairn restore finish --leave ID",
    "version_refused": "see which agents a platform works with: docs/upgrading.md",
    "last_owner": "make somebody else an owner: cairn role bind owner NAME",
    "name_taken": "choose another name, or remove what has it",
    "port_taken": "choose another host port, or give only the container's and let Cairn choose: --port 80",
    "no_capacity": "see which hosts have room: cairn host list; try a smaller --type, or a wider CAIRN_PORT_RANGE",
    "quota_exceeded": "remove something, or ask for a larger quota",
    "needs_stop": "resume or stop it first",
    "needs_recreate": "where what it wrote outside of volumes may be lost: --recreate",
    "unhealthy": "see what its check asks for: cairn instance show NAME; give it longer with --health-timeout",
    "image_not_found": "see what there is: cairn image list; of a registry or a URL, check how it is written",
    "idempotency_mismatch": "a key stands for one request: give another --idempotency-key",
    "internal": "see the API's log for the request id: --debug shows it",
    "precondition_failed": "it has changed meanwhile: look again, then repeat",
    "in_use": "remove what uses it first; what is on a host moves away with: cairn host drain NAME",
    "unavailable": "the platform is starting, or its database is away: see cairn doctor, then repeat",
    "host_unreachable": "see whether its agent runs and reaches the platform: cairn host list",
    "malformed": "see what is expected: /docs of the API",
    "body_too_large": "send less: see /docs of the API",
    "unsupported_media_type": "send JSON, or say what it is with -H 'Content-Type: …'",
    "workflow_failed": "see what happened: cairn workflow list --state failed",
    "rate_limited": "wait as long as it says; follow what changes with: cairn events",
    "too_many_streams": "close another log, terminal or event stream first",
    "too_many_imports": "wait for one of them, or delete it: cairn image list --status importing",
    "host_busy": "nothing has to be done: it takes its turn by itself",
    "others_first": "nothing has to be done: it takes its turn by itself",
    "command_timeout": "give it longer with --timeout, at most 600 s",
    "outcome_unknown": "look whether it ran before you run it again",
    "foreign_object": "something of this name is on the host's engine and not ours: rename or remove it there",
    "instance_exited": "the error ends with its last words; see each step: cairn workflow show ID",
    "engine_refused": "see its cause: cairn workflow show ID; then change the request",
    "unsupported": "choose another --backend, or another host: cairn host list",
    "deadline_exceeded": "see which step: cairn workflow show ID; and whether its host answers: cairn host list",
    "not_ready": "repeat in a moment",
    "host_is_back": "nothing has to be done: it stays where it is",
    "secret_unusable": "see which versions there are: cairn secret versions NAME",
    "envelope_broken": "give the secret its value again: cairn secret set NAME",
    "superseded": "something later took its place: cairn workflow list",
    "lease_lapsed": "its host has lost the platform, and starts nothing exclusive meanwhile: cairn host list",
    "registry_busy": "the registry asks for time: it is tried again by itself",
    "image_refused": "see what its file may hold: docs/images.md",
    "checksum_mismatch": "the file is not what was announced: get it again, or correct the checksum",
    "url_refused": "it must be http or https and lead to a public address, or one of CAIRN_OUTBOUND_ALLOW",
    "fault_injected": "a test asked for it: see cairn faults list",
    "engine_unavailable": "see whether the engine of the host runs: cairn doctor",
}


def _hint(code: str, details: dict[str, Any]) -> str | None:
    if details.get("workflow_id") and details.get("state") not in SETTLED:
        return f"wait for what is under way: cairn workflow wait {details['workflow_id']}"
    return _HINTS.get(code)
