"""How far a long step is: a line that its heartbeats carry, and the workflow's view shows."""

from __future__ import annotations

from contextvars import ContextVar


class Progress:
    """Of one attempt of one activity."""

    said: str | None = None


_progress: ContextVar[Progress | None] = ContextVar("progress", default=None)


def begin() -> Progress:
    """Make a new one that of this context, and of the threads it is copied to."""
    made = Progress()
    _progress.set(made)
    return made


def say(line: str) -> None:
    """Replace the line. No activity: nobody hears it."""
    if (progress := _progress.get()) is not None:
        progress.said = line


def of_bytes(done: int, total: int | None) -> str:
    """``12.5 of 120.0 MiB``."""
    return f"{done / (1 << 20):.1f} of {total / (1 << 20):.1f} MiB" if total else f"{done / (1 << 20):.1f} MiB"
