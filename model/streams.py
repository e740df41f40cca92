"""What the API and an agent say to each other about streams.

Paths of an agent are ``/hosts/{host}/instances/{instance}/{verb}``, each with a ticket for just that:

    GET  logs?tail=&follow=        the bytes
    GET  stats                     one JSON object a line
    POST exec                      a Run; frames: 1 byte of kind, 4 of length (big-endian), the bytes
    WS   terminal?columns=&rows=&command=&name=   command: a JSON list. First a text frame, {"open": true} or
                                   {"error": …}; then as API clients see it
    WS   forward?port=             the same first frame; then as API clients see it
    GET  read?path=, PUT write?path=        tar archives
    POST call                      a Call, to what listens inside on its own loopback; X-Call-Status, and the bytes

and ``/hosts/{host}/sessions/{session}/{verb}``, of the files of a session:

    GET  files?act=list|read|archive|watch&path=     JSON, the bytes, a tar archive, one JSON object a line
    GET  files?act=diff&path=&base=&project=&text=   JSON: a Difference
    PUT  change?act=write|unpack|move|mkdir|delete&path=      JSON of what there is then

An error is its status and ``{"code", "message", "details"}``.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Literal

from pydantic import Field

from model.base import Frozen

HEAD = struct.Struct(">BI")
STDOUT, STDERR, END = 1, 2, 3
#: A command's words together, and what one WebSocket message may have.
MOST_BYTES = 1 << 20
Size = Annotated[int, Field(ge=1, le=10_000)]
Tail = Annotated[int, Field(ge=0, le=10_000_000)]


#: What a terminal is called that goes on without its client.
TerminalName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
#: What either side of a forwarded connection says in a text message: nothing more comes from it.
SHUT = '{"end": true}'
#: Where something listens in a machine.
ListenPort = Annotated[int, Field(ge=1, le=65535)]


class Extent(Frozen):
    """Of a terminal, in characters."""

    columns: Size
    rows: Size


class Resize(Frozen):
    """What a client of a terminal says in a text message."""

    resize: Extent

    @classmethod
    def of(cls, columns: int, rows: int) -> Resize:
        return cls(resize=Extent(columns=columns, rows=rows))


class Run(Frozen):
    """A command to run. Output beyond ``limit`` bytes of a channel is read and thrown away."""

    argv: Annotated[list[str], Field(min_length=1)]
    timeout: Annotated[float, Field(gt=0)]
    limit: Annotated[int, Field(ge=0)]


class Call(Frozen):
    """A request to the agent of a work session, in its sandbox. Where it can go is all that it can be."""

    port: Annotated[int, Field(ge=1024, le=65535)]
    path: Literal["/health", "/chat", "/cancel"]
    headers: dict[str, str] = {}
    #: JSON; None: a GET.
    body: str | None = None


class Failure(Frozen):
    """An error of ``model.errors``."""

    code: str
    message: str
    details: dict[str, Any] = {}


class End(Frozen):
    """The last frame of a command: how it ended."""

    exit_code: int | None = None
    truncated: bool = False
    error: Failure | None = None


def frame(kind: int, data: bytes) -> bytes:
    return HEAD.pack(kind, len(data)) + data
