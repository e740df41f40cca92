"""What an agent serves: streams of its hosts' instances, each against a ticket that the API signed.

All of it runs on a thread and an event loop of its own, so that nothing here delays a lease. Engines' reads block, so
each stream has threads of a pool that steps know nothing of. A thread asks its engine for more only when the client
has taken what came before.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import orjson
import structlog
import uvloop
from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route

from api.streamed import Streamed, first_of, keep_alive
from drivers.calls import Calls
from drivers.commits import Commits
from drivers.session_trees import SessionTrees
from drivers.streams import Output, Stream, Streams
from drivers.warm_trees import WarmTrees
from model.errors import (
    BodyTooLarge,
    CairnError,
    NotFound,
    Unauthenticated,
    Unsupported,
)
from model.settings import Settings
from model.streams import END, MOST_BYTES, STDERR, STDOUT, End, Failure, Run, Tail, frame
from model.tickets import Gate, Ticket, Verb
from worker.agent_calls import CallRoutes
from worker.agent_files import FileRoutes
from worker.agent_http import Server
from worker.agent_terminals import TerminalRoutes, checked
from worker.identity import Keys
from worker.open_streams import OpenStreams, Upload
from worker.places import Places

#: At once: of the agent, of one project, and of one instance.
STREAMS, OF_PROJECT, OF_ONE = 128, 64, 16
#: One reads, one writes.
THREADS = 2 * STREAMS

log = structlog.get_logger()
T = TypeVar("T")
_TAIL, _RUN = TypeAdapter(Tail), TypeAdapter(Run)
_NO_MORE: Any = object()


class AgentServer:
    """The application. ``hosts``: those of the agent; None: their driver has no streams."""

    def __init__(
        self,
        hosts: Mapping[UUID, Streams | None],
        gate: Gate,
        trees: Mapping[UUID, SessionTrees] | None = None,
        most_bytes: int = 0,
        commits: Mapping[UUID, Commits] | None = None,
        calls: Mapping[UUID, Calls] | None = None,
        warm: Mapping[UUID, WarmTrees] | None = None,
    ) -> None:
        """``trees``: where sessions have their files; ``most_bytes``: of one of these; ``commits``: what compares
        them; ``calls``: into sandboxes; ``warm``: where files come in later."""
        self._hosts = hosts
        self._gate = gate
        self._open = Places(STREAMS, OF_PROJECT, OF_ONE)
        self._streams = OpenStreams(THREADS)
        path = "/hosts/{host:uuid}/instances/{instance:uuid}"
        self._warm = warm or {}
        files = FileRoutes(trees or {}, commits or {}, most_bytes, self._streams, self._open, self._warm)
        self.app = Starlette(
            routes=[
                Route(f"{path}/logs", self._logs),
                Route(f"{path}/stats", self._stats),
                Route(f"{path}/exec", self._exec, methods=["POST"]),
                Route(f"{path}/read", self._read),
                Route(f"{path}/write", self._write, methods=["PUT"]),
                *TerminalRoutes(self._streams, self._open).routes(self._let_in, self._variables),
                *files.routes(self._check, self._streamed, self._pulled),
                *CallRoutes(calls or {}, self._streams).routes(self._check, _body, self._streamed, self._pulled),
            ],
            exception_handlers={CairnError: _refuse},  # type: ignore[dict-item]  # it gets just these
        )

    async def run(self, keys: Keys, listener: socket.socket, stopping: asyncio.Event) -> None:
        """Serve until ``stopping``. First, what an earlier life of the agent left running is ended."""
        loop, told, ended = uvloop.new_event_loop(), asyncio.Event(), Future[None]()

        def serve() -> None:
            try:
                with asyncio.Runner(loop_factory=lambda: loop) as runner:
                    runner.run(self._serve(keys, listener, told))
                ended.set_result(None)
            except BaseException as error:
                ended.set_exception(error)

        threading.Thread(target=serve, name="streams", daemon=True).start()
        serving = asyncio.wrap_future(ended)
        try:
            await first_of(stopping.wait(), asyncio.shield(serving))
        finally:  # also where the agent ends for another reason: the process would wait for blocked threads
            with contextlib.suppress(RuntimeError):  # its loop is closed already
                loop.call_soon_threadsafe(told.set)
        await serving

    async def _serve(self, keys: Keys, listener: socket.socket, stopping: asyncio.Event) -> None:
        try:
            for streams in self._hosts.values():
                if streams is not None:
                    try:
                        await self._streams.blocking(streams.end_forgotten)
                    except CairnError as error:  # an engine that does not answer may keep it
                        log.warning("streams.not_tidied", error=error.message)
            await Server(self.app, keys, listener).run_until(stopping, self._streams.end)
        finally:
            self._streams.shut_down()

    async def _logs(self, request: Request) -> Response:
        streams, ticket = self._let_in(request, "logs")
        asked = request.query_params
        tail = checked(_TAIL, "tail", asked["tail"]) if "tail" in asked else None
        follow = asked.get("follow") == "true"
        start = partial(streams.logs, ticket.instance, tail=tail, follow=follow)
        return await self._streamed(ticket, start, self._pulled)

    async def _stats(self, request: Request) -> Response:
        streams, ticket = self._let_in(request, "stats")

        async def lines(stream: Any) -> AsyncIterator[bytes]:
            async for usage in self._pulled(stream):
                yield usage.model_dump_json().encode() + b"\n"

        return await self._streamed(ticket, partial(streams.stats, ticket.instance), lines)

    async def _read(self, request: Request) -> Response:
        streams, ticket = self._let_in(request, "read")
        path = request.query_params.get("path", "")
        return await self._streamed(ticket, partial(streams.get, ticket.instance, path), self._pulled)

    async def _write(self, request: Request) -> Response:
        streams, ticket = self._let_in(request, "write")
        upload = Upload(request)
        with self._open.one(ticket):
            self._streams.hold(upload)
            try:
                await self._streams.blocking(streams.put, ticket.instance, request.query_params.get("path", ""), upload)
            finally:
                self._streams.let_go(upload)
        return Response(status_code=204)

    async def _exec(self, request: Request) -> Response:
        streams, ticket = self._let_in(request, "exec")
        run = checked(_RUN, "body", orjson.loads(await _body(request)))

        async def frames(command: Any) -> AsyncIterator[bytes]:
            written = {"stdout": 0, "stderr": 0}
            code, failure = None, None
            try:
                async for output in self._pulled(command):
                    if kept := _kept(output, run.limit - written[output.channel]):
                        yield frame(STDOUT if output.channel == "stdout" else STDERR, kept)
                    written[output.channel] += len(output.data)
                code = await self._streams.blocking(command.exit_code)
            except CairnError as error:
                failure = Failure(code=error.code, message=error.message, details=error.details)
            end = End(exit_code=code, truncated=max(written.values()) > run.limit, error=failure)
            yield frame(END, end.model_dump_json().encode())

        def start() -> Any:
            env = self._variables(request, ticket.instance)
            return streams.run(ticket.instance, run.argv, timeout_seconds=run.timeout, env=env)

        return await self._streamed(ticket, start, frames)

    def _variables(self, connection: HTTPConnection, instance: UUID) -> Mapping[str, str]:
        """What a session has given its sandbox since that was launched, with the session's files; blocks until both are
        there."""
        warm = self._warm.get(connection.path_params["host"])
        return {} if warm is None else warm.variables(instance)

    def _let_in(self, connection: HTTPConnection, verb: Verb) -> tuple[Streams, Ticket]:
        """Raises Unauthenticated, NotFound, Unsupported."""
        host, instance = connection.path_params["host"], connection.path_params["instance"]
        ticket = self._check(connection, Ticket(instance=instance, verb=verb))
        if host not in self._hosts:
            raise NotFound("this agent does not serve this host")
        streams = self._hosts[host]
        if streams is None:
            raise Unsupported(verb, "simulated")
        return streams, ticket

    def _check(self, connection: HTTPConnection, wanted: Ticket) -> Ticket:
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("a ticket is missing")
        return self._gate.check(token, wanted, connection.path_params["host"])

    async def _streamed(
        self, ticket: Ticket, start: Callable[[], Stream[T]], pull: Callable[[Stream[T]], AsyncIterator[bytes]]
    ) -> Response:
        """The answer of a stream that ``start`` opens."""
        give_back = self._open.take(ticket)
        try:
            stream = await self._streams.open(start)
        except BaseException:
            give_back()
            raise

        def ended() -> None:
            give_back()
            self._streams.let_go(stream)

        return Streamed(pull(stream), "application/octet-stream", ended)

    async def _pulled(self, stream: Stream[T]) -> AsyncIterator[T]:
        while (item := await self._streams.blocking(next, stream, _NO_MORE)) is not _NO_MORE:
            yield item


def _kept(output: Output, room: int) -> bytes:
    return output.data[: max(room, 0)]


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > 2 * MOST_BYTES:
            raise BodyTooLarge("the body is too large")
    return body


async def _refuse(connection: HTTPConnection, error: CairnError) -> Response:
    failure = Failure(code=error.code, message=error.message, details=error.details)
    return Response(failure.model_dump_json(), error.status, media_type="application/json")


def listen(settings: Settings, api_url: str) -> socket.socket:
    """Where an agent serves streams: the address that its platform sees, unless the settings say another."""
    # Strangers' connections must not use up the files that leases and steps open.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        address = settings.agent_address or way_to(api_url)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return keep_alive(socket.create_server((address, settings.agent_port), family=family, backlog=256))
    except OSError as error:
        raise SystemExit(
            f"the agent cannot serve streams: {error}; CAIRN_AGENT_ADDRESS must be an address of this machine "
            "(unset: that of its way to the API), and CAIRN_AGENT_PORT free there (0: any)"
        ) from error


def way_to(api_url: str) -> str:
    """This machine's own address on the way to the API. Nothing is sent."""
    where = urlsplit(api_url)
    port = where.port or (443 if where.scheme == "https" else 80)
    family, _, _, _, address = socket.getaddrinfo(where.hostname, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def url_of(listener: socket.socket) -> str:
    address, port = listener.getsockname()[:2]
    return f"https://[{address}]:{port}" if ":" in address else f"https://{address}:{port}"
