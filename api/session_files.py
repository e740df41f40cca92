"""The files of a work session, through the agent of its host, whether its sandbox runs or not."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import func, select
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect

from api.agent_client import ANSWER_SECONDS, Agents, Opened, Target
from api.authentication import may, may_unread
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES, also
from api.open_streams import OpenStreams
from api.openapi_parts import download
from api.resources import one
from api.streamed import Streamed
from api.streams import until_stopping
from api.work_session_rows import mine
from api.work_session_schemas import DiffView, FileList, FileMove, FileView, FolderCreate, Unpacked
from drivers import beneath
from drivers.pace import Pace
from drivers.pace import said as pace_said
from model.errors import HostUnreachable, InvalidState, Malformed, RangeNotThere
from model.hosts import Host, is_reachable
from model.sessions import UP, SessionStatus, WorkSession
from model.workspaces import Workspace

router = APIRouter(prefix="/v1/sessions/{session_id}", tags=["sessions"], responses=RESPONSES | also(409, 502))

#: In these its files are there.
_THERE = UP | {SessionStatus.CREATING_SANDBOX, SessionStatus.STOPPED}
#: An agent compares for up to 100 s, and may have to make a sandbox first.
DIFF_SECONDS = 130.0
#: How long a sender may be silent.
SILENCE_SECONDS = 60
PARTIAL = 206
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")
_TARGET = (
    select(
        *(WorkSession.id, WorkSession.name, WorkSession.status, WorkSession.workflow_id),
        *(Host.id.label("host_id"), Host.name.label("host")),
        *(Host.last_seen_at, Host.agent_url, Host.fingerprint),
    )
    .join(Workspace, Workspace.id == WorkSession.workspace_id)
    .outerjoin(Host, Host.id == Workspace.host_id)
)
UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class FilePath(Convertor[str]):
    """All that follows, with what ends lines: a file may be called so, and "a" is not the file "a\\n"."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("file", FilePath())
PathQuery = Annotated[str, Query(max_length=4095, description="From the session's folder on; none: that itself")]


@router.get("/files", response_model=Envelope[FileList])
async def index(
    request: Request, session_id: UUID, caller: Annotated[Caller, may("sessions:use")], path: PathQuery = ""
) -> Response:
    """What is in a folder, by name: at most 10,000 entries."""
    opened = await _open(request, caller, session_id, {"act": "list", "path": path})
    try:
        return answer(request, orjson.loads(await opened.it.read()))
    finally:
        opened.close()


@router.post("/files/move", response_model=Envelope[FileView])
async def move(
    request: Request, session_id: UUID, caller: Annotated[Caller, may("sessions:use")], body: FileMove
) -> Response:
    """Give a file, folder or link another path, in one step."""
    query = {"act": "move", "path": body.source, "to": body.to, "replace": "true" if body.replace else "false"}
    return answer(request, await _change(request, caller, session_id, query))


@router.post("/files/mkdir", response_model=Envelope[FileView])
async def mkdir(
    request: Request, session_id: UUID, caller: Annotated[Caller, may("sessions:use")], body: FolderCreate
) -> Response:
    """Make a folder, and those above it."""
    return answer(request, await _change(request, caller, session_id, {"act": "mkdir", "path": body.path}))


@router.get("/files/{path:file}", response_class=Response, responses={200: download(), PARTIAL: download()})
async def read(
    request: Request, session_id: UUID, path: str, caller: Annotated[Caller, may("sessions:use")]
) -> Response:
    """A file's bytes; with `Range: bytes=FIRST-LAST`, a part of them."""
    query, asked = {"act": "read", "path": path}, _RANGE.fullmatch(request.headers.get("range", ""))
    first = 0
    if asked and asked[2] and int(asked[2]) < int(asked[1]):  # that is none, and so of no effect
        asked = None
    if asked:
        first, last = int(asked[1]), asked[2]
        query["offset"] = str(first)
        if last:
            query["length"] = str(int(last) - first + 1)
    streamed, opened = await _streamed(request, caller, session_id, query, "application/octet-stream")
    about = opened.it.headers
    size, length = int(about["x-file-size"]), int(about["x-file-length"])
    if asked and first >= size:
        streamed.let_go()
        raise RangeNotThere(f"{path} has {size} bytes, and none from {first} on", size=size)
    streamed.headers.update({"content-length": str(length), "etag": f'"{about["x-file-tag"]}"'})
    streamed.headers["accept-ranges"] = "bytes"
    if asked and length:
        streamed.status_code = PARTIAL
        streamed.headers["content-range"] = f"bytes {first}-{first + length - 1}/{size}"
    return streamed


@router.put("/files/{path:file}", response_model=Envelope[FileView], openapi_extra=UPLOAD)
async def write(
    request: Request, session_id: UUID, path: str, caller: Annotated[Caller, may_unread("sessions:use")]
) -> Response:
    """Make a file have the body as its content, from one moment to the next. Folders above it are made; a link is
    replaced, not followed. What is cut off changes nothing."""
    query = {"act": "write", "path": path}
    return answer(request, await _change(request, caller, session_id, query, _body(request)))


@router.delete("/files/{path:file}", status_code=204)
async def delete(
    request: Request,
    session_id: UUID,
    path: str,
    caller: Annotated[Caller, may("sessions:use")],
    recursive: bool = False,
) -> Response:
    """Delete a file, a link, or an empty folder; with `recursive=true` one with all that is in it."""
    query = {"act": "delete", "path": path, "recursive": "true" if recursive else "false"}
    await _change(request, caller, session_id, query)
    return Response(status_code=204)


@router.get("/diff", response_model=Envelope[DiffView])
async def diff(
    request: Request,
    session_id: UUID,
    caller: Annotated[Caller, may("sessions:use")],
    path: PathQuery = "",
    since: Annotated[
        Literal["commit", "start"], Query(description="`start`: what was committed of it since it began, too")
    ] = "commit",
    stat: Annotated[bool, Query(description="Without the text")] = False,
    binary: Annotated[
        bool, Query(description="The text has all of what is no text, too: `git apply` takes it")
    ] = False,
) -> Response:
    """What the session has changed since it was last committed, or began, below a path; files that nobody has added
    included, and those that a `.gitignore` names not. At most 1 MiB of text and 10,000 files.

    With `binary` the text is what a commit would hold, whole: `git apply` takes it. What cannot be in it is 409: a text
    that is not UTF-8, a repository of its own. With `truncated` it is not whole."""
    last = WorkSession.commit if since == "start" else func.coalesce(WorkSession.head, WorkSession.commit)
    about = select(WorkSession.project_id, last.label("base"))
    row = await one(caller, about.where(mine(caller, session_id)), "session", session_id)
    query = {"act": "diff", "path": path, "base": row.base, "project": str(row.project_id)}
    query |= {"text": "false" if stat else "true", "binary": "true" if binary else "false"}
    opened = await _open(request, caller, session_id, query, patience=DIFF_SECONDS)
    try:
        return answer(request, orjson.loads(await opened.it.read()))
    finally:
        opened.close()


@router.get("/archive", response_class=Response, responses={200: download("application/x-tar")})
async def archive(
    request: Request, session_id: UUID, caller: Annotated[Caller, may("sessions:use")], path: PathQuery = ""
) -> Response:
    """A file or folder as a tar archive."""
    query = {"act": "archive", "path": path}
    return (await _streamed(request, caller, session_id, query, "application/x-tar"))[0]


@router.put("/archive", response_model=Envelope[Unpacked], openapi_extra=UPLOAD)
async def unpack(
    request: Request, session_id: UUID, caller: Annotated[Caller, may_unread("sessions:use")], path: PathQuery = ""
) -> Response:
    """Unpack a tar archive, plain or packed with gzip or zstd, into a folder, which is made where there is none. Files
    of the same name are replaced. One that is refused at an entry has been unpacked up to there."""
    query = {"act": "unpack", "path": path}
    return answer(request, await _change(request, caller, session_id, query, _body(request)))


@router.get("/watch", response_class=Response)
async def watch(
    request: Request, session_id: UUID, caller: Annotated[Caller, may("sessions:use")], path: PathQuery = ""
) -> Response:
    """What changes below a folder from now on, as server-sent events: `created`, `changed` or `deleted`, with the path
    and type of each; `overflow`: more than is told."""
    query = {"act": "watch", "path": path}
    return (await _streamed(request, caller, session_id, query, "text/event-stream"))[0]


async def _target(caller: Caller, session_id: UUID) -> Target:
    """Raises NotFound, InvalidState, HostUnreachable."""
    row = await one(caller, _TARGET.where(mine(caller, session_id)), "session", session_id)
    if row.status not in _THERE:
        raise InvalidState(
            f"session {row.name} is {row.status}: its files are not there",
            state=row.status,
            workflow_id=str(row.workflow_id),
        )
    if row.host_id is None or not is_reachable(row.last_seen_at) or row.agent_url is None or row.fingerprint is None:
        said = "its agent has not renewed its lease, or serves no streams; try again"
        raise HostUnreachable(f"host {row.host} cannot be reached: {said}", host=row.host)
    whose = caller.project_id
    return Target(row.id, row.name, row.host_id, row.host, row.agent_url, row.fingerprint, whose, "session")


async def _open(
    request: Request, caller: Caller, session_id: UUID, query: dict[str, str], patience: float = ANSWER_SECONDS
) -> Opened[Any]:
    target = await _target(caller, session_id)
    await caller.commit()
    agents: Agents = request.app.state.agents
    return await agents.open(target, "files", query, patience=patience)


async def _streamed(
    request: Request, caller: Caller, session_id: UUID, query: dict[str, str], media_type: str
) -> tuple[Streamed, Opened[Any]]:
    streams: OpenStreams = request.app.state.open_streams
    held = streams.hold(caller, "sessions:use")
    try:
        opened = await _open(request, caller, session_id, query)
    except BaseException:
        held.close()
        raise

    def end() -> None:
        opened.close()
        held.close()

    body = until_stopping(request.app.state.stopping, held.revoked, opened)
    if query["act"] == "watch":
        body = _events(body)
    return Streamed(body, media_type, end), opened


async def _events(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Each line is a JSON object, or empty."""
    rest = b""
    async for part in lines:
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            if not line:
                yield b": here\n\n"
                continue
            said = orjson.loads(line)
            yield b"event: %s\ndata: %s\n\n" % (said["change"].encode(), line)


async def _change(
    request: Request,
    caller: Caller,
    session_id: UUID,
    query: dict[str, str],
    body: AsyncIterator[bytes] | None = None,
) -> Any:
    """Audited before it happens: from then on nobody knows whether it did."""
    for name in query.keys() & {"path", "to"}:
        beneath.parts_of(query[name])  # what is no path could not be told of
    target = await _target(caller, session_id)
    told = {name: value for name, value in query.items() if name in ("act", "path", "to")}
    caller.changed("session", session_id, after={"name": target.name} | told)
    await caller.commit()
    agents: Agents = request.app.state.agents
    try:
        return await agents.change(target, query, body)
    except HostUnreachable:
        if (refused := getattr(request.state, "refused", None)) is not None:
            raise refused from None
        raise


def _refused(request: Request, why: str) -> Malformed:
    """Noted: who sends it on tells only that it broke."""
    request.state.refused = Malformed(why)
    refused: Malformed = request.state.refused
    return refused


async def _body(request: Request) -> AsyncIterator[bytes]:
    """Raises Malformed where its sender is gone, silent or too slow."""
    pieces, pace, size = request.stream(), Pace(), 0
    try:
        while True:
            async with asyncio.timeout(SILENCE_SECONDS):
                piece = await anext(pieces, None)
            if piece is None:
                return
            size += len(piece)
            if pace.is_too_slow(size):
                raise _refused(request, f"{pace_said()}: nothing was kept")
            if piece:
                yield piece
    except ClientDisconnect:
        raise _refused(request, "the body was cut off: nothing of it was kept") from None
    except TimeoutError:
        raise _refused(request, f"nothing came for {SILENCE_SECONDS} s: nothing was kept") from None
