"""How a command ends when it does not end well: exit codes and the one exception behind them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from http import HTTPStatus
from typing import Any

from cli.fields import as_options, option_of, timed
from cli.hints import hint_of
from cli.routes import as_commands


class Exit(IntEnum):
    """Exit codes. Scripts rely on them: they are only ever added to."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    UNREACHABLE = 5
    TIMED_OUT = 6
    COMMAND_TIMED_OUT = 124
    OUTPUT_CUT = 125
    INTERRUPTED = 130
    BROKEN_PIPE = 141


#: Of a command in an instance, whose end nobody saw.
UNKNOWN_EXIT = 255
#: What scripts may build on: shown by ``cairn --help`` and in docs/cli.md.
MEANINGS = {
    Exit.OK: "done, or accepted with --no-wait",
    Exit.FAILED: "the operation failed, or was cancelled",
    Exit.USAGE: "wrong usage; nothing was changed",
    Exit.NOT_FOUND: "there is no such thing as the command is about",
    Exit.REFUSED: "refused: state, name, port, quota, validation, what an option names",
    Exit.UNREACHABLE: "the API cannot be reached, is not ready, or does not know the key",
    Exit.TIMED_OUT: "accepted, its end not seen: --timeout is over, or forbidden",
    Exit.COMMAND_TIMED_OUT: "the command of instance exec was ended at its --timeout",
    Exit.OUTPUT_CUT: "instance exec ended with 0, its output was cut at 1 MiB",
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


def of_answer(status: int, error: dict[str, Any], path: str = "", *, verbatim: bool = False) -> CommandFailed:
    """The failure that an error of the API, as it stands in the envelope, means for a command. ``path``: what was asked
    for. ``verbatim``: whoever asked wrote the request, and knows its fields by the API's names."""
    code = str(error.get("code") or f"http_{status}")
    details = error.get("details")
    details = details if isinstance(details, dict) else {}
    said = details.get("fields")
    fields = [_field(one) for one in said] if isinstance(said, list) else None
    message = as_commands(str(error.get("message") or f"the API answered {status}"))
    if not verbatim:
        message = as_options(message, [str(one.get("field")) for one in fields or []])
        fields = fields and [_as_option(one) for one in fields]
    hint = hint_of(code, path, details)
    if hint and details.get("workflow_id"):
        hint = hint.replace("cairn workflow show ID", f"cairn workflow show {details['workflow_id']}")
    exit = Exit.COMMAND_TIMED_OUT if code == "command_timeout" else exit_of(status)
    return CommandFailed(message, code, exit, hint, fields)


def _field(said: Any) -> dict[str, Any]:
    if not isinstance(said, dict):
        return {}
    return {**said, "message": as_commands(str(said.get("message")))}


def _as_option(said: dict[str, Any]) -> dict[str, Any]:
    field, message = str(said.get("field")), str(said.get("message"))
    return {**said, "field": option_of(field, message), "message": as_options(timed(field, message), [])}


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
        message = f"{workflow['kind']} failed{where}: {as_commands(str(error.get('message') or 'no cause given'))}"
    hint = hint_of(code, f"/{workflow.get('resource_type')}s", {}) or "see what happened: cairn workflow show ID"
    hint = hint.replace("cairn workflow show ID", f"cairn workflow show {workflow['id']}")
    return CommandFailed(message, code, Exit.FAILED, hint)


@contextmanager
def of_option(option: str) -> Iterator[None]:
    """What is looked up here was named by an option: that there is none refuses the command, which is about another."""
    try:
        yield
    except CommandFailed as failure:
        if failure.exit is not Exit.NOT_FOUND:
            raise
        message = f"{option}: {failure.message}"
        raise CommandFailed(message, failure.code, Exit.REFUSED, failure.hint, failure.fields) from failure


def exit_of(status: int) -> Exit:
    """The exit code that a status of the API means."""
    if status < HTTPStatus.MULTIPLE_CHOICES:
        return Exit.OK
    if status in (404, 410):
        return Exit.NOT_FOUND
    if status in (401, 503, 504):
        return Exit.UNREACHABLE
    return Exit.REFUSED if status < HTTPStatus.INTERNAL_SERVER_ERROR else Exit.FAILED
