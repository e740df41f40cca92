"""The API as a client of host agents: one stream each, with a ticket for just that.

An agent's certificate must be the one that it joined with; who signed it says nothing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

import aiohttp
import orjson
import structlog
from pydantic import SecretStr

from api.streamed import keep_alive
from model.errors import (
    AgentUnavailable,
    BodyTooLarge,
    CairnError,
    CommandTimeout,
    EngineRefused,
    EngineUnavailable,
    HostUnreachable,
    InvalidState,
    NotFound,
    OutcomeUnknown,
    PortClosed,
    TooManyStreams,
    Unauthenticated,
    Unavailable,
    Unsupported,
    ValidationFailed,
)
from model.pools import Join
from model.streams import END, HEAD, MOST_BYTES, STDERR, STDOUT, Call, End, Failure, Run
from model.tickets import Ticket, Verb, sign

#: Of one API process, at once.
STREAMS = 1000
CONNECT_SECONDS = 4
#: For an agent's first word: its engine may take nine seconds for each of two calls.
ANSWER_SECONDS = 25
#: For a file that is sent, as a whole; its sender may not be silent for long.
UPLOAD_SECONDS = 6 * 3600
#: Beyond the command's own time-out.
EXEC_MARGIN_SECONDS = 15
MOST_ERROR = 64 * 1024
_ERRORS: dict[str, type[CairnError]] = {
    kind.code: kind
    for kind in (
        AgentUnavailable,
        BodyTooLarge,
        CommandTimeout,
        EngineRefused,
        EngineUnavailable,
        InvalidState,
        NotFound,
        OutcomeUnknown,
        PortClosed,
        TooManyStreams,
        Unsupported,
        ValidationFailed,
    )
}
OK = 200
#: What a connection raises when it, or what it carries, breaks.
BROKEN = (aiohttp.ClientError, OSError, TimeoutError, EOFError, ValueError, TypeError, KeyError)
Socket = aiohttp.ClientWebSocketResponse
T = TypeVar("T")
log = structlog.get_logger()


class TicketRefused(HostUnreachable):
    """The agent let nothing in: so it did nothing."""


class Target(NamedTuple):
    """An instance, and the agent of its host."""

    instance: UUID
    name: str
    host_id: UUID
    host: str
    agent_url: str
    fingerprint: bytes
    project: UUID
    #: What ``instance`` is the id of.
    noun: Literal["instance", "session"] = "instance"

    def lost(self, why: str) -> HostUnreachable:
        return HostUnreachable(f"host {self.host} cannot be reached: {why}; try again", host=self.host)

    def unknown(self, why: str) -> OutcomeUnknown:
        return OutcomeUnknown(f"nobody knows what the command in instance {self.name} did: {why}", host=self.host)


class Outcome(NamedTuple):
    """What a command did."""

    end: End
    stdout: bytes
    stderr: bytes


class Opened(Generic[T]):
    """An answer of an agent that has begun well, or a connection to it."""

    def __init__(self, target: Target, it: T, close: Callable[[], None]) -> None:
        self.target = target
        self.it = it
        self._close: Callable[[], None] | None = close

    def close(self) -> None:
        """Let go of it; more than once does nothing more."""
        close, self._close = self._close, None
        if close is not None:
            close()


class Sent:
    """Whether a request has left."""

    def __init__(self) -> None:
        self.yet = False


class Agents:
    """Streams of agents. Errors are those of ``model.errors``; HostUnreachable: an agent that is away, or another."""

    def __init__(self, ticket_key: SecretStr | None) -> None:
        self._ticket_key = ticket_key
        self._session: aiohttp.ClientSession | None = None
        self._open = 0

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def open(
        self,
        target: Target,
        verb: Verb,
        query: Mapping[str, str],
        run: Run | Call | None = None,
        sent: Sent | None = None,
        patience: float = ANSWER_SECONDS,
    ) -> Opened[aiohttp.ClientResponse]:
        """Its body raises what ``broken`` is made of, where it breaks off. ``patience``: seconds for its first word."""
        with self._counted(target):
            async with asyncio.timeout(patience):
                answer = await self._http().request(
                    "GET" if run is None else "POST",
                    _url(target, verb),
                    params=query,
                    data=None if run is None else run.model_dump_json().encode(),
                    headers=self._ticket(target, verb),
                    ssl=aiohttp.Fingerprint(target.fingerprint),
                    allow_redirects=False,
                    trace_request_ctx=sent,
                )
                if answer.status != OK:
                    try:
                        said = await answer.content.read(MOST_ERROR)
                    finally:
                        answer.close()
                    raise _refusal(target, answer.status, said)

            def close() -> None:
                self._open -= 1
                answer.close()

            return Opened(target, answer, close)

    async def change(self, target: Target, query: Mapping[str, str], body: AsyncIterator[bytes] | None = None) -> Any:
        """Change something among the files of a session; what there is then. What breaks off may have happened."""
        return await self._put(target, "change", query, body or b"", ANSWER_SECONDS if body is None else UPLOAD_SECONDS)

    async def join(self, target: Target, join: Join) -> None:
        """Bring the files of a session into the sandbox that it has claimed."""
        await self._put(target, "join", {}, join.model_dump_json().encode(), ANSWER_SECONDS)

    async def _put(
        self, target: Target, verb: Verb, query: Mapping[str, str], body: AsyncIterator[bytes] | bytes, seconds: float
    ) -> Any:
        with self._counted(target):
            async with asyncio.timeout(seconds):
                answer = await self._http().request(
                    "PUT",
                    _url(target, verb),
                    params=query,
                    data=body,
                    headers=self._ticket(target, verb),
                    ssl=aiohttp.Fingerprint(target.fingerprint),
                    allow_redirects=False,
                )
                try:
                    said = await answer.content.read()
                finally:
                    answer.close()
        self._open -= 1
        if answer.status != OK:
            raise _refusal(target, answer.status, said)
        return orjson.loads(said)

    async def connect(self, target: Target, verb: Verb, query: Mapping[str, str]) -> Opened[Socket]:
        """A WebSocket whose other end has said that it is open."""
        with self._counted(target):
            async with asyncio.timeout(ANSWER_SECONDS):
                socket = await self._http().ws_connect(
                    _url(target, verb),
                    params=query,
                    headers=self._ticket(target, verb),
                    ssl=aiohttp.Fingerprint(target.fingerprint),
                    max_msg_size=MOST_BYTES,
                )
                try:
                    first = await socket.receive_json(loads=orjson.loads)
                    if "error" in first:
                        raise _error(target, Failure.model_validate(first["error"]))
                except BaseException:
                    await socket.close()
                    raise
            closing: set[asyncio.Task[Any]] = set()

            def close() -> None:
                self._open -= 1
                closing.add(asyncio.ensure_future(socket.close()))

            return Opened(target, socket, close)

    async def run(self, target: Target, run: Run) -> Outcome:
        """Run a command to its end. Raises CommandTimeout; OutcomeUnknown once the agent may have begun it."""
        written = {STDOUT: bytearray(), STDERR: bytearray()}
        sent = Sent()
        try:
            opened = await self.open(target, "exec", {}, run, sent)
        except HostUnreachable as error:
            if sent.yet and not isinstance(error, TicketRefused):
                raise target.unknown("its agent did not answer, or not as it should") from error
            raise
        body = opened.it.content
        try:
            async with asyncio.timeout(run.timeout + EXEC_MARGIN_SECONDS):
                while True:
                    kind, size = HEAD.unpack(await body.readexactly(HEAD.size))
                    if size > MOST_BYTES:
                        raise ValueError("a frame is too large")
                    data = await body.readexactly(size)
                    if kind == END:
                        break
                    written[kind] += data[: max(run.limit - len(written[kind]), 0)]
            end = End.model_validate_json(data)
        except BROKEN as error:
            raise target.unknown(f"its agent broke off: {error or type(error).__name__}") from error
        finally:
            opened.close()
        if end.error is not None:
            failed = _error(target, end.error, **said(written[STDOUT], written[STDERR]))
            # What may be tried again would run it again.
            raise target.unknown(failed.message) if failed.retryable else failed
        return Outcome(end, bytes(written[STDOUT]), bytes(written[STDERR]))

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:  # not in the constructor: it wants a running loop
            connector = aiohttp.TCPConnector(limit=0, force_close=True, socket_factory=_socket)
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS),
                auto_decompress=False,
                trace_configs=[_tracing()],
            )
        return self._session

    def _ticket(self, target: Target, verb: Verb) -> dict[str, str]:
        if self._ticket_key is None:
            raise Unavailable("this API cannot sign tickets for agents: set CAIRN_TICKET_KEY")
        ticket = Ticket(instance=target.instance, verb=verb, project=target.project)
        signed = sign(ticket, host=target.host_id, key=self._ticket_key.get_secret_value())
        return {"Authorization": f"Bearer {signed}", "Accept-Encoding": "identity"}

    @contextmanager
    def _counted(self, target: Target) -> Iterator[None]:
        """Count one more, unless it fails; whatever happens on the way to the agent is an error of ours."""
        if self._open >= STREAMS:
            raise TooManyStreams("this API has as many streams open as it may: try again")
        self._open += 1
        try:
            yield
        except BaseException as error:
            self._open -= 1
            if isinstance(error, aiohttp.ServerFingerprintMismatch):
                log.error("agent.another_certificate", host=target.host, agent_url=target.agent_url)
                raise target.lost("what answers for its agent shows another certificate") from error
            if isinstance(error, BROKEN):
                log.warning("agent.unreachable", host=target.host, error=str(error) or type(error).__name__)
                raise target.lost("its agent does not answer") from error
            raise


def _tracing() -> aiohttp.TraceConfig:
    async def left(_session: Any, context: Any, _headers: Any) -> None:
        if isinstance(sent := context.trace_request_ctx, Sent):
            sent.yet = True

    async def refuse(_session: Any, _context: Any, redirect: aiohttp.TraceRequestRedirectParams) -> None:
        # Where it points is no agent that we know; for a WebSocket, the library would follow.
        redirect.response.close()
        raise aiohttp.ClientPayloadError("an agent may not redirect")

    tracing = aiohttp.TraceConfig()
    tracing.on_request_headers_sent.append(left)
    tracing.on_request_redirect.append(refuse)
    return tracing


def said(stdout: bytes | bytearray, stderr: bytes | bytearray) -> dict[str, str]:
    return {"stdout": stdout.decode(errors="replace"), "stderr": stderr.decode(errors="replace")}


def exit_code(target: Target, told: str) -> int | None:
    """How a terminal's program ended, as its agent tells; None: it does not know. Raises what it tells instead."""
    try:
        last = orjson.loads(told)
        if "error" in last:
            raise _error(target, Failure.model_validate(last["error"]))
        return End(exit_code=last["exit_code"]).exit_code
    except BROKEN as error:
        raise target.lost("its agent said what is no end of a terminal") from error


def _socket(address: Any) -> socket.socket:
    family, kind, protocol, *_ = address
    return keep_alive(socket.socket(family, kind, protocol))


def _url(target: Target, verb: Verb) -> str:
    return f"{target.agent_url}/hosts/{target.host_id}/{target.noun}s/{target.instance}/{verb}"


def _refusal(target: Target, status: int, said: bytes) -> CairnError:
    try:
        return _error(target, Failure.model_validate_json(said))
    except ValueError:
        return target.lost(f"its agent answered {status}")


def _error(target: Target, failure: Failure, **details: Any) -> CairnError:
    """What an agent says went wrong. It may say only what an agent can know."""
    if failure.code == Unauthenticated.code:
        return TicketRefused(
            f"host {target.host} cannot be reached: its agent refused our ticket (are the clocks right?)",
            host=target.host,
        )
    if failure.code == NotFound.code and "path" not in failure.details:
        return InvalidState(f"the machine of instance {target.name} is not on its host", state="missing")
    kind = _ERRORS.get(failure.code)
    if kind is None:
        return target.lost(f"its agent failed: {failure.message}")
    error = kind.__new__(kind)
    CairnError.__init__(error, failure.message)
    error.details = failure.details | details  # not as keywords: their names are the agent's
    return error
