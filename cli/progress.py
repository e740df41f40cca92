"""Watching a workflow until it ends, its steps shown as they go."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from cli import render
from cli.client import ANSWER_SECONDS, Client
from cli.errors import CommandFailed, Exit, of_outcome
from cli.options import Seconds, duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

TERMINAL = frozenset({"completed", "failed", "cancelled"})
FIRST_POLL, LONGEST_POLL = 0.1, 1.0
LAST_CELL = 5

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end, or return once it is accepted.")]
Timeout = Annotated[
    float,
    typer.Option(parser=duration, metavar="TIME", help="How long to wait, such as 5m; the workflow goes on."),
]
DEFAULT_TIMEOUT: float = Seconds(600)

_MARKS = {"completed": "✓", "failed": "✗", "cancelled": "⊘", "running": "•", "scheduled": "·"}
_PLAIN_MARKS = {"completed": "ok", "failed": "FAILED", "cancelled": "cancelled", "running": "...", "scheduled": ""}


class Timeline:
    """The steps of one workflow: redrawn in place on a terminal, one line per change elsewhere."""

    def __init__(self, console: Console, indent: str = "", *, live: bool = True) -> None:
        from rich.live import Live

        self.console = console
        self.indent = indent
        self.marks = _MARKS if console.encoding.lower().startswith("utf") else _PLAIN_MARKS
        self.live = Live(console=console, refresh_per_second=8) if live and console.is_terminal else None
        self.printed: dict[int, tuple[str, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def show(self, workflow: Mapping[str, Any]) -> None:
        steps = workflow.get("steps")
        if steps is None:  # the API could not ask Temporal: what was shown stays
            return
        if self.console.is_terminal:
            from rich.table import Table

            table = Table.grid(padding=(0, 2, 0, 0))
            for _ in range(LAST_CELL):
                table.add_column(no_wrap=True)
            # What is redrawn in place stays on its line; the whole error is printed at the end.
            table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
            for step in steps:
                table.add_row(*self._cells(step))
            if self.live:
                self.live.start()  # the first time; a failure before it leaves no empty line
                self.live.update(table)
            else:
                self.console.print(table)
            return
        for number, step in enumerate(steps):
            seen = (step["state"], step["attempts"])
            if step["state"] != "scheduled" and self.printed.get(number) != seen:
                self.printed[number] = seen
                self._print(self.line(step))

    def line(self, step: Mapping[str, Any]) -> str:
        """A step in words."""
        return "  ".join(cell.plain for cell in self._cells(step) if cell.plain.strip())

    def note(self, message: str) -> None:
        """A line beside the steps."""
        self._print(message)

    def _print(self, line: str) -> None:
        from rich.text import Text

        self.console.print(Text(self.indent + render.clean(line)), soft_wrap=True)

    def _cells(self, step: Mapping[str, Any]) -> list[Text]:
        from rich.text import Text

        state = step["state"]
        marked = render.coloured(state)
        marked.plain = self.marks.get(state, state)
        name = f"undo {step['name']}" if step.get("undo") else step["name"]
        tries = f"attempt {step['attempts']}" if step["attempts"] > 1 else ""
        dim = "" if self.console.no_color else "dim"
        last = Text(render.clean(step.get("error") or ""), style="red" if state == "failed" else "yellow")
        return [
            Text(self.indent if self.console.is_terminal else "").append_text(marked),
            Text(render.clean(name)),
            Text(render.clean(f"on {step['host']}") if step.get("host") else "", style=dim),
            Text(render.between(step.get("started_at"), step.get("finished_at")), style=dim),
            Text(tries, style="yellow"),
            last,
        ]


def follow(
    client: Client, workflow_id: str, timeout: float, timeline: Timeline, began: float | None = None
) -> dict[str, Any]:
    """Poll until the workflow ends; its last answer comes back.

    An API that goes away meanwhile is waited for: the workflow does not need it. Raises
    CommandFailed with TIMED_OUT once ``timeout`` seconds since ``began`` (monotonic; None: now) are over.
    """
    until = (time.monotonic() if began is None else began) + timeout
    pause = FIRST_POLL
    away = False
    while True:
        left = until - time.monotonic()
        try:
            envelope = client.request(
                "GET",
                f"/workflows/{workflow_id}",
                params={"steps": "true"},
                patience=max(min(left, 2), 0),
                timeout=max(min(left, ANSWER_SECONDS), 1),
            )
        except CommandFailed as failure:
            if client.endpoint.stopped or failure.code not in ("unreachable", "unavailable"):
                raise
            if not away:
                timeline.note("the API is away; the workflow does not need it, waiting for both")
            away = True
        else:
            workflow: dict[str, Any] = envelope["data"]
            away = False
            timeline.show(workflow)
            if workflow["state"] in TERMINAL:
                return workflow
        if time.monotonic() + pause > until:
            message = f"workflow {workflow_id} has not ended within {timeout:g} s; it goes on"
            hint = f"cairn workflow wait {workflow_id}, or stop it: cairn workflow cancel {workflow_id}"
            raise CommandFailed(message, "timed_out", Exit.TIMED_OUT, hint)
        time.sleep(pause)
        pause = min(pause * 1.3, LONGEST_POLL)


def watch(
    client: Client, workflow_id: str, timeout: float, began: float | None = None, *, asked: bool = True
) -> dict[str, Any]:
    """``follow`` on stderr; Ctrl-C says that the work goes on. ``asked``: by the command itself, which may have been
    allowed to whoever may not look at it."""
    try:
        with Timeline(render.err()) as timeline:
            return follow(client, workflow_id, timeout, timeline, began)
    except KeyboardInterrupt:
        raise interrupted([workflow_id]) from None
    except CommandFailed as failure:
        if failure.code != "forbidden" or not asked:
            raise
        message = f"accepted; the end of workflow {workflow_id} cannot be waited for: {failure.message}"
        raise CommandFailed(message, "not_followed", Exit.TIMED_OUT, "do not wait for it: --no-wait") from None


def interrupted(workflow_ids: Sequence[str]) -> CommandFailed:
    """Ctrl-C, while these were waited for."""
    first = workflow_ids[0]
    which = f"workflow {first} goes on" if len(workflow_ids) == 1 else f"workflows go on: {', '.join(workflow_ids)}"
    hint = f"cairn workflow wait {first}, or stop it: cairn workflow cancel {first}"
    return CommandFailed(f"interrupted; {which}", "interrupted", Exit.INTERRUPTED, hint)


def require_completed(workflow: Mapping[str, Any]) -> None:
    if workflow["state"] != "completed":
        raise of_outcome(dict(workflow))
