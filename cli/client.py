"""The REST client of the commands: what is sent, what a failure means, what is tried again.

Every request may safely be repeated (a POST carries an Idempotency-Key), so that a connection lost
at any point, also after the API had done what was asked, is answered by sending it again.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID, uuid4

import httpx

from cli.endpoint import START_HINT, Endpoint, find_endpoint, is_loopback
from cli.errors import CommandFailed, Exit, of_answer, usage
from cli.given import given
from cli.options import reason
from cli.routes import PATHS, SAID
from cli.session import SessionAuth

if TYPE_CHECKING:
    from ssl import SSLContext

    from websockets.sync.client import ClientConnection

__all__ = ["Client", "Endpoint", "checked_id", "find_endpoint", "is_loopback", "workflow_of"]

RETRY_SECONDS = 6.0
ANSWER_SECONDS = 30.0
LONGEST_PAUSE = 2.0
_PROJECT = "X-Project-ID"
#: What the API says of a project that is not there, or not the caller's; and the code where that is the one in use.
_NO_SUCH, NO_PROJECT = "there is no such project", "no_project"
PAGE = 500
#: What can be put into a command as it is.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Client:
    """Speaks the envelope: returns it whole on success, raises CommandFailed otherwise."""

    def __init__(self, endpoint: Endpoint | None = None, transport: httpx.BaseTransport | None = None) -> None:
        self.endpoint = endpoint or find_endpoint()
        #: By the noun of a command (``cairn lb``), what was looked up last: hints name it.
        self._known: dict[str, str] = {}
        headers = {"X-API-Key": self.endpoint.api_key, _PROJECT: self.endpoint.project}
        logged_in = self.endpoint.session
        self._auth = SessionAuth(self.endpoint.api_url, logged_in) if logged_in else None
        self.http = httpx.Client(
            base_url=self.endpoint.api_url,
            headers={name.encode(): value.encode() for name, value in headers.items() if value},
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=5),
            transport=transport,
            # Certificates take a while to load, and are of no use without TLS.
            auth=self._auth,
            verify=self._trusted() if self.endpoint.api_url.startswith("https:") else False,
            # A proxy of the environment is for the world outside, not for this machine.
            trust_env=not is_loopback(self.endpoint.api_url),
        )
        if given.debug:
            from cli import debug

            self.http.event_hooks = {"request": [debug.request], "response": [debug.response]}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        key: str | None = None,
        patience: float = RETRY_SECONDS,
        timeout: float = ANSWER_SECONDS,
    ) -> dict[str, Any]:
        """Send, and send again for at most ``patience`` seconds while the API is away or says 503.

        ``timeout``: seconds that the API may take for its answer.
        """
        headers = {"Idempotency-Key": key} if key else {}
        given_body = {} if body is None else {"json": body}
        request = self.build(method, path, params=params, headers=headers, timeout=timeout, **given_body)
        answer = self.send(request, patience)
        return self.opened(answer.status_code, answer.content, path, in_project=_PROJECT in request.headers)

    def build(self, method: str, path: str, *, timeout: float = ANSWER_SECONDS, **content: Any) -> httpx.Request:
        """A request to be sent; ``content`` as httpx takes it. A POST has an Idempotency-Key, if need be a new one."""
        limits = httpx.Timeout(timeout, connect=min(timeout, 5))
        try:
            made = self.http.build_request(method, path, timeout=limits, **content)
        except UnicodeEncodeError:
            raise usage("what is sent is valid UTF-8, and headers are visible ASCII characters") from None
        except httpx.InvalidURL as error:
            raise self._bad_endpoint(error) from None
        said = map(str.lower, content.get("headers") or ())
        if _names_project(method, made.url.path.removeprefix(self.http.base_url.path)) and _PROJECT.lower() not in said:
            made.headers.pop(_PROJECT, None)
        if method == "POST" and "Idempotency-Key" not in made.headers:
            made.headers["Idempotency-Key"] = str(uuid4())
        return made

    def send(self, request: httpx.Request, patience: float = RETRY_SECONDS, *, stream: bool = False) -> httpx.Response:
        """The answer, whatever it is; raises CommandFailed where there is none. ``stream``: its body is yet to come."""
        given_up = time.monotonic() + patience
        pause = 0.1
        while True:
            try:
                answer = self.http.send(request, stream=stream)
            except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
                raise self._bad_endpoint(error) from None
            except httpx.LocalProtocolError:
                raise usage("the API key and the idempotency key are visible ASCII characters") from None
            except httpx.TransportError as error:
                if self.endpoint.stopped or _is_distrust(error) or time.monotonic() + pause > given_up:
                    raise self.unreachable(error) from None
                time.sleep(pause)
            except KeyboardInterrupt:
                if request.method == "GET":
                    raise
                message = f"interrupted; the API may have accepted the {request.method} all the same"
                hint = "see what is under way: cairn workflow list"
                raise CommandFailed(message, "interrupted", Exit.INTERRUPTED, hint) from None
            else:
                again = min(_retry_after(answer) or pause, LONGEST_PAUSE)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() + again > given_up:
                    return answer
                answer.close()
                time.sleep(again)
            pause = min(pause * 2, LONGEST_PAUSE)

    def get(self, path: str, **params: Any) -> Any:
        """The bare ``data`` of a GET; parameters that are None are left out."""
        return self.request("GET", path, params={k: v for k, v in params.items() if v is not None})["data"]

    def pages(self, path: str, params: Mapping[str, Any], limit: int | None) -> tuple[list[dict[str, Any]], bool]:
        """At most ``limit`` rows (None: all), and whether there are more."""
        rows: list[dict[str, Any]] = []
        given = {k: v for k, v in params.items() if v is not None}
        cursor: str | None = None
        while True:
            size = PAGE if limit is None else min(PAGE, limit - len(rows))
            page = given | {"limit": size} | ({"cursor": cursor} if cursor else {})
            envelope = self.request("GET", path, params=page)
            rows += envelope["data"]
            cursor = envelope["meta"].get("next_cursor")
            if not cursor or (limit is not None and len(rows) >= limit):
                return rows, bool(cursor)

    def find(self, noun: str, wanted: str) -> dict[str, Any]:
        """The one of this id, or the live one of exactly this name. ``noun``: what it is, as commands call it."""
        self.about(noun, wanted)
        path = PATHS[noun]
        if is_id(wanted):
            return dict(self.get(f"{path}/{wanted}"))
        # Hosts are few, and not asked for by name.
        rows = self.pages(path, {}, None)[0] if noun == "host" else self.get(path, name=wanted)
        for row in rows:
            if row["name"] == wanted:
                return dict(row)
        hint = f"see what there is: cairn {noun} list"
        raise CommandFailed(f"there is no {SAID.get(noun, noun)} named '{wanted}'", "not_found", Exit.NOT_FOUND, hint)

    def path_of(self, noun: str, wanted: str) -> str:
        return f"{PATHS[noun]}/{self.find(noun, wanted)['id']}"

    def about(self, noun: str, name: str) -> None:
        """Hints name the one of this name."""
        self._known[noun] = name

    @contextmanager
    def text(self, path: str, params: Mapping[str, Any], *, endless: bool = False) -> Iterator[httpx.Response]:
        """An answer that is a stream of text. ``endless``: it may be silent for as long as it likes."""
        silence = None if endless else 60.0
        try:
            with self.http.stream("GET", path, params=params, timeout=httpx.Timeout(silence, connect=5)) as answer:
                if answer.status_code != httpx.codes.OK:
                    answer.read()
                    self.opened(answer.status_code, answer.content, path)
                yield answer
        except httpx.TransportError as error:
            raise self.unreachable(error) from None

    @contextmanager
    def socket(self, path: str, params: Mapping[str, Any]) -> Iterator[ClientConnection]:
        """A WebSocket. What the API refuses it with is a CommandFailed, as with any request."""
        from websockets.exceptions import InvalidHandshake, InvalidStatus
        from websockets.sync.client import connect

        root = self.endpoint.api_url
        url = httpx.URL(root.replace("http", "ws", 1) + path, params=params)
        names = ("X-API-Key", _PROJECT)
        headers = {name: self.http.headers[name] for name in names if name in self.http.headers}
        if self._auth:
            self.get("/auth/me")  # which renews the token, where it must be
            headers["Authorization"] = f"Bearer {self._auth.access}"
        if given.debug:
            from cli import debug

            debug.opening(str(url))
        try:
            made = connect(
                str(url),
                additional_headers=headers,
                ssl=self._trusted() if url.scheme == "wss" else None,
                compression=None,
                close_timeout=2,
                proxy=None if is_loopback(root) else True,
            )
        except InvalidStatus as refused:
            self.opened(refused.response.status_code, bytes(refused.response.body or b""), path)
            raise self.unreachable(refused) from None
        except (OSError, TimeoutError, InvalidHandshake, ValueError) as error:
            raise self.unreachable(error) from None
        with made:
            yield made

    def events(
        self, last_id: str | None, params: Mapping[str, Any] | None = None, silence: float = 60, path: str = "/events"
    ) -> Iterator[httpx.Response]:
        """One connection to the event stream, from after ``last_id``; ReadTimeout after ``silence`` seconds of it."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        # The stream is silent between events, apart from the server's keep-alive comments.
        timeout = httpx.Timeout(silence, connect=5)
        with self.http.stream("GET", path, params=params, headers=headers, timeout=timeout) as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
                try:
                    self.opened(answer.status_code, answer.content, path)
                except CommandFailed as failure:
                    if last_id and any(field.get("field") == "Last-Event-ID" for field in failure.fields):
                        message = f"--after {last_id}: expected the id of an event"
                        raise CommandFailed(
                            message, failure.code, failure.exit, "see their ids: cairn events"
                        ) from None
                    raise
            yield answer

    def unreachable(self, error: Exception) -> CommandFailed:
        state = "; the platform was stopped" if self.endpoint.stopped else ""
        source = f" (from {self.endpoint.source})" if self.endpoint.source else ""
        message = f"cannot reach the API at {self.endpoint.api_url}{source}: {error}{state}"
        hint = START_HINT
        if _is_distrust(error):
            hint = "name the authority that signed its certificate: cairn context add NAME --ca-file FILE"
        elif (name := self.endpoint.context) is not None:
            hint = (
                f"start the platform; where it has another address now: cairn context add {name} --replace --url URL; "
                "to use that of this folder: cairn context use --none"
            )
        return CommandFailed(message, "unreachable", Exit.UNREACHABLE, hint)

    def _bad_endpoint(self, error: Exception) -> CommandFailed:
        message = f"{self.endpoint.api_url} is not an address: {error}"
        return CommandFailed(message, "bad_endpoint", Exit.UNREACHABLE, START_HINT)

    def _trusted(self) -> SSLContext:
        import ssl

        if self.endpoint.ca_file is None:
            return httpx.create_ssl_context()
        try:
            return ssl.create_default_context(cafile=self.endpoint.ca_file)
        except OSError as error:
            message = f"{self.endpoint.ca_file} cannot be used: {reason(error)}"
            hint = f"the CA file of {self.endpoint.source or 'the API'} holds certificates in PEM format"
            raise CommandFailed(message, "bad_ca_file", Exit.UNREACHABLE, hint) from None

    def opened(
        self, status: int, content: bytes, path: str, *, in_project: bool = True, verbatim: bool = False
    ) -> dict[str, Any]:
        """The envelope of an answer to a request of ``path``; CommandFailed where it is an error, or no envelope.
        ``in_project``: the project in use was named. ``verbatim``: an error has the API's names of fields."""
        try:
            envelope = json.loads(content) if content else {"data": None}
        except ValueError:
            envelope = None
        if not isinstance(envelope, dict) or "data" not in envelope:
            message = f"{self.endpoint.api_url} answered {status}, but not as the Cairn API does"
            hint = "the address must be that of Cairn's API and end in /v1"
            raise CommandFailed(message, "not_cairn", Exit.UNREACHABLE, hint)
        envelope["meta"] = envelope.get("meta") or {}
        if status >= httpx.codes.BAD_REQUEST:
            failure = of_answer(status, envelope.get("error") or {}, path, verbatim=verbatim)
            if in_project and self.endpoint.project and failure.message == _NO_SUCH:
                failure = project_gone()
            self.advise(failure)
            raise failure
        return envelope

    def advise(self, failure: CommandFailed) -> None:
        """What to do about it depends on who asked, and for what."""
        for noun, name in self._known.items():
            if failure.hint and _WORD.fullmatch(name):
                failure.hint = re.sub(rf"(cairn {noun} [a-z-]+) NAME\b", rf"\1 {name}", failure.hint)
                if noun == "workflow":
                    failure.hint = failure.hint.replace("cairn workflow show ID", f"cairn workflow show {name}")
        logged_in = self.endpoint.session is not None
        if failure.code == "not_found" and not self.endpoint.api_url.rstrip("/").endswith("/v1"):
            failure.hint = f"the address of the API ends in /v1, and this is asked: {self.endpoint.api_url}"
        if failure.code == "forbidden" and logged_in:
            failure.hint = (
                "see what you may: cairn whoami; an administrator of the project gives roles: cairn role bind"
            )
        elif failure.code == "unauthenticated" and (logged_in or self.endpoint.api_key is None):
            failure.hint = "cairn login; or give a key with CAIRN_API_KEY, or a context"


def project_gone() -> CommandFailed:
    """Of the project that the context remembers."""
    message = "the project in use is deleted, or is not yours any more"
    return CommandFailed(message, NO_PROJECT, Exit.NOT_FOUND, "cairn project use NAME; see yours: cairn project list")


def _names_project(method: str, path: str) -> bool:
    """It says itself which project it is about, or is about none: the one in use is not named beside it."""
    parts = path.strip("/").split("/")
    return parts[0] in ("projects", "invitations") or (
        parts[0] == "auth" and parts[-1] in ("logout", "me") and method != "GET"
    )


def workflow_of(envelope: Mapping[str, Any]) -> str | None:
    """The workflow that an accepted request started, or found in progress."""
    started = envelope["meta"].get("workflow_id")
    return str(started) if started else None


def checked_id(value: str) -> str:
    """``value`` where it is an id; a workflow has no other name."""
    if not is_id(value):
        raise usage(f"'{value}' is not a workflow id", "find it with: cairn workflow list")
    return value


def _is_distrust(error: Exception) -> bool:
    """Its certificate is not trusted: nothing that passes."""
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def is_id(value: str) -> bool:
    try:
        return str(UUID(value)) == value.lower()
    except ValueError:
        return False


def _retry_after(answer: httpx.Response) -> float | None:
    try:
        return max(0.1, float(answer.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None
