"""What an agent serves of the files of sessions, whether their sandboxes run or not; see ``model.streams``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any
from uuid import UUID

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from drivers.commits import Commits
from drivers.file_archives import ArchiveOut, unpack
from drivers.file_watch import FileWatch
from drivers.files import FileContent, Files
from drivers.session_trees import SessionTrees, is_id
from drivers.warm_trees import WarmTrees
from model.errors import NotFound, ValidationFailed
from model.git_urls import is_commit
from model.pools import Join
from model.sessions import Difference, TextOf
from model.tickets import Ticket
from worker.open_streams import OpenStreams, Upload
from worker.places import Places

Pull = Callable[[Any], AsyncIterator[Any]]
#: Opens a stream of a thing, and answers with what is pulled from it.
Stream = Callable[[Ticket, Callable[[], Any], Pull], Awaitable[Response]]


class FileRoutes:
    """``trees``: by host. The rest is what all streams of the agent share."""

    def __init__(
        self,
        trees: Mapping[UUID, SessionTrees],
        commits: Mapping[UUID, Commits],
        most_bytes: int,
        streams: OpenStreams,
        places: Places,
        warm: Mapping[UUID, WarmTrees],
    ) -> None:
        self._trees = trees
        self._commits = commits
        self._most_bytes = most_bytes
        self._streams = streams
        self._places = places
        self._warm = warm

    def routes(self, check: Callable[[Request, Ticket], Ticket], streamed: Stream, pulled: Pull) -> list[Route]:
        """``check``: raises Unauthenticated where the request's ticket is for something else."""

        async def files(request: Request) -> Response:
            session: UUID = request.path_params["session"]
            ticket = check(request, Ticket(instance=session, verb="files"))
            asked = request.query_params
            kept, path = await self._files(request), asked.get("path", "")
            if asked.get("act") == "diff":
                with self._places.one(ticket):
                    return _json(await self._streams.blocking(self._difference, request, session, path))
            match asked.get("act"):
                case "list":
                    with self._places.one(ticket):
                        return _json(await self._streams.blocking(kept.list, path))
                case "read":
                    offset, length = _number(asked.get("offset", "0")), asked.get("length")
                    found: list[FileContent] = []

                    def start() -> FileContent:
                        found.append(kept.read(path, offset, None if length is None else _number(length)))
                        return found[0]

                    answer = await streamed(ticket, start, pulled)
                    about = {"size": found[0].size, "length": found[0].length, "tag": found[0].tag}
                    answer.headers.update({f"x-file-{name}": str(value) for name, value in about.items()})
                    return answer
                case "archive":
                    return await streamed(ticket, lambda: ArchiveOut(kept, path), pulled)
                case "watch":

                    async def lines(watch: Any) -> AsyncIterator[bytes]:
                        # At once: it has looked, and tells what is changed from now on.
                        yield b"\n"
                        async for change in pulled(watch):
                            yield change.model_dump_json().encode() + b"\n"

                    return await streamed(ticket, lambda: FileWatch(kept, path), lines)
            raise ValidationFailed("act: expected list, read, archive, watch or diff", fields=[])

        async def change(request: Request) -> Response:
            session: UUID = request.path_params["session"]
            ticket = check(request, Ticket(instance=session, verb="change"))
            kept, upload = await self._files(request), Upload(request)
            with self._places.one(ticket):
                self._streams.hold(upload)
                try:
                    return _json(await self._streams.blocking(_changed, kept, request.query_params, upload))
                finally:
                    self._streams.let_go(upload)

        async def join(request: Request) -> Response:
            """Right after a claim; the session's workflow does the same."""
            session: UUID = request.path_params["session"]
            check(request, Ticket(instance=session, verb="join"))
            host, join = request.path_params["host"], _join(await request.body())
            if host not in self._warm or join.tree.session != session:
                raise NotFound("this agent does not serve this host, or it is another session")
            await self._streams.blocking(self._warm[host].join, join.tree, join.spec, lambda: False)
            return _json({})

        path = "/hosts/{host:uuid}/sessions/{session:uuid}"
        return [
            Route(f"{path}/files", files),
            Route(f"{path}/change", change, methods=["PUT"]),
            Route(f"{path}/join", join, methods=["PUT"]),
        ]

    def _difference(self, request: Request, session: UUID, path: str) -> Difference:
        asked, host = request.query_params, request.path_params["host"]
        base, project = asked.get("base", ""), asked.get("project", "")
        if host not in self._commits:
            raise NotFound("this agent does not serve this host")
        if not is_commit(base) or not is_id(project):
            raise ValidationFailed("base, project: expected a commit's whole id and a project's", fields=[])
        text: TextOf | None = None
        if asked.get("text") != "false":
            text = "binary" if asked.get("binary") == "true" else "text"
        return self._commits[host].diff(session, UUID(project), base, path, text=text, cancelled=lambda: False)

    async def _files(self, request: Request) -> Files:
        """Mounted, also where the host has started again since. Raises NotFound."""
        host = request.path_params["host"]
        if host not in self._trees:
            raise NotFound("this agent does not serve this host")
        merged = await self._streams.blocking(self._trees[host].mount, request.path_params["session"])
        return Files(merged, most_bytes=self._most_bytes)


def _changed(kept: Files, asked: Mapping[str, str], body: Iterable[bytes]) -> Any:
    path = asked.get("path", "")
    match asked.get("act"):
        case "write":
            return kept.write(path, body)
        case "unpack":
            return {"entries": unpack(kept, path, body)}
        case "move":
            return kept.move(path, asked.get("to", ""), replace=asked.get("replace") == "true")
        case "mkdir":
            return kept.mkdir(path)
        case "delete":
            kept.delete(path, recursive=asked.get("recursive") == "true")
            return {}
    raise ValidationFailed("act: expected write, unpack, move, mkdir or delete", fields=[])


def _join(body: bytes) -> Join:
    try:
        return Join.model_validate_json(body)
    except ValidationError:
        raise ValidationFailed("expected a session and its sandbox", fields=[]) from None


def _json(found: Any) -> Response:
    said = found.model_dump_json() if isinstance(found, BaseModel) else orjson.dumps(found)
    return Response(said, media_type="application/json")


def _number(said: str) -> int:
    if not (said.isascii() and said.isdecimal()):
        raise ValidationFailed("offset, length: expected a number", fields=[])
    return int(said)
