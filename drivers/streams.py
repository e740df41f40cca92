"""The stream port: what users watch of a machine, and do inside it. A capability that a driver may have.

Rules that hold for every method of every driver:

* Calls block, and so do the iterators that they return. ``close`` may be called from any thread, at any time and
  more than once: it wakes a reader, for which the stream then ends.
* An iterator reads from the engine only when it is asked for its next item: who reads slowly is sent slowly.
* Only a machine that carries our name and our labels; for any other, NotFound.
* Errors come from the call itself where they can, and else from the iterator: those of ``model.errors``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol, TypeVar
from uuid import UUID

from model.base import Frozen
from model.errors import ValidationFailed

T_co = TypeVar("T_co", covariant=True)
#: No variables beside those that a machine has.
NO_MORE: Mapping[str, str] = MappingProxyType({})


class Stream(Protocol[T_co]):
    """Items from an engine, until it has no more or the stream is closed."""

    def __iter__(self) -> Stream[T_co]: ...

    def __next__(self) -> T_co: ...

    def close(self) -> None:
        """End it, and whatever it keeps going on the engine."""


class Usage(Frozen):
    """What a machine uses at one moment; byte counters are sums since its start."""

    at: dt.datetime
    #: Of one CPU: two busy ones are 200.
    cpu_percent: float
    memory_bytes: int
    pids: int
    rx_bytes: int
    tx_bytes: int
    read_bytes: int
    written_bytes: int


class Output(NamedTuple):
    """What a command wrote."""

    channel: Literal["stdout", "stderr"]
    data: bytes


class Command(Stream[Output], Protocol):
    """A command that runs inside a machine. Closed before its end, it is ended."""

    def exit_code(self) -> int:
        """Once its output has ended."""


class Terminal(Protocol):
    """A program on a terminal inside a machine. It reads and is written to by two threads at once."""

    def read(self) -> bytes:
        """What it shows next; empty when it has ended."""

    def write(self, data: bytes) -> None:
        """What a user types. Blocks while the program does not read; without effect once it has ended."""

    def resize(self, columns: int, rows: int) -> None:
        """Without effect once it has ended."""

    def exit_code(self) -> int | None:
        """None while it runs."""

    def close(self) -> None:
        """Hang up: the program is told so (SIGHUP), and ended where it does not go."""


class Streams(Protocol):
    """Streams of the machines of one host."""

    def logs(self, machine: UUID, *, tail: int | None, follow: bool) -> Stream[bytes]:
        """What its program wrote, stdout and stderr as they came: the last ``tail`` lines, or all that is kept.

        ``follow``: and what it writes from now on, until it ends.
        """

    def stats(self, machine: UUID) -> Stream[Usage]:
        """What it uses, about once a second, from now until it ends. Raises InvalidState where it does not run."""

    def run(
        self, machine: UUID, argv: list[str], *, timeout_seconds: float, env: Mapping[str, str] = NO_MORE
    ) -> Command:
        """Run a command inside it, with ``env`` beside the variables that the machine has. At its time-out the command
        is ended, and the iterator raises CommandTimeout.

        Raises InvalidState where the machine does not run.
        """

    def terminal(
        self, machine: UUID, argv: list[str] | None, *, columns: int, rows: int, env: Mapping[str, str] = NO_MORE
    ) -> Terminal:
        """Run a program on a terminal of its own; without ``argv``, the best shell that the machine has.

        Raises InvalidState where the machine does not run.
        """

    def get(self, machine: UUID, path: str) -> Stream[bytes]:
        """A file or folder as a tar archive. Raises NotFound."""

    def put(self, machine: UUID, path: str, archive: Iterable[bytes]) -> None:
        """Unpack a tar archive into the folder ``path``. Raises NotFound where there is no such folder.

        Files of the same name are replaced; an archive that ends too early may have been unpacked in part.
        """

    def end_forgotten(self) -> None:
        """End the commands and terminals that an agent of this host left when it was killed.

        To be called before the first of its own. What it cannot see it leaves.
        """


def check_path(path: str) -> str:
    """``path``, where it is absolute and plain. Raises ValidationFailed."""
    if not path.startswith("/") or ".." in path.split("/") or "\x00" in path:
        problem = "expected an absolute path without '..'"
        raise ValidationFailed(f"path: {problem}", fields=[{"field": "path", "message": problem}])
    return path
