"""The REST client of the commands: where the API is, what a failure means, what is tried again.

Every request may safely be repeated (a POST carries an Idempotency-Key), so that a connection lost
at any point, also after the API had done what was asked, is answered by sending it again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx

from cli.errors import CommandFailed, Exit, of_answer, usage

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

RETRY_SECONDS = 6.0
ANSWER_SECONDS = 30.0
LONGEST_PAUSE = 2.0
PAGE = 500
START_HINT = "start the platform with: cairn up (or make up); or set CAIRN_API_URL and CAIRN_API_KEY"


@dataclass(frozen=True)
class Endpoint:
    """Where the API is. ``stopped``: its endpoint file says that the platform was stopped."""

    api_url: str
    api_key: str | None
    stopped: bool = False


def find_endpoint(environ: Mapping[str, str] = os.environ) -> Endpoint:
    """``CAIRN_API_URL`` and ``CAIRN_API_KEY``, else the endpoint file of the data folder.

    The file's key is never sent to another address than the file's own.
    """
    url, key = environ.get("CAIRN_API_URL"), environ.get("CAIRN_API_KEY")
    if url:
        return Endpoint(url.rstrip("/"), key or None)
    path = Path(environ.get("CAIRN_DATA_DIR") or ".cairn") / "endpoint.json"
    try:
        known = json.loads(path.read_text())
        pids = known.get("pids")
        return Endpoint(
            str(known["api_url"]).rstrip("/"),
            key or known.get("api_key"),
            stopped=isinstance(pids, dict) and not any(pids.values()),
        )
    except FileNotFoundError:
        message = f"no platform is known here: {path} does not exist and CAIRN_API_URL is not set"
        raise CommandFailed(message, "no_endpoint", Exit.UNREACHABLE, START_HINT) from None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        message = f"{path} cannot be used: {error!r}"
        raise CommandFailed(message, "no_endpoint", Exit.UNREACHABLE, START_HINT) from None


class Client:
    """Speaks the envelope: returns it whole on success, raises CommandFailed otherwise."""

    def __init__(self, endpoint: Endpoint | None = None, transport: httpx.BaseTransport | None = None) -> None:
        self.endpoint = endpoint or find_endpoint()
        self.http = httpx.Client(
            base_url=self.endpoint.api_url,
            headers={b"X-API-Key": self.endpoint.api_key.encode()} if self.endpoint.api_key else {},
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=5),
            transport=transport,
            # A proxy of the environment is for the world outside, not for this machine.
            trust_env=not is_loopback(self.endpoint.api_url),
        )

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
        headers = {"Idempotency-Key": key or str(uuid4())} if method == "POST" else {}
        given_up = time.monotonic() + patience
        pause = 0.1
        while True:
            try:
                answer = self.http.request(
                    method, path, params=params, json=body, headers=headers, timeout=httpx.Timeout(timeout, connect=5)
                )
            except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
                message = f"{self.endpoint.api_url} is not an address: {error}"
                raise CommandFailed(message, "bad_endpoint", Exit.UNREACHABLE, START_HINT) from None
            except (httpx.LocalProtocolError, UnicodeEncodeError):
                raise usage("the API key and the idempotency key are visible ASCII characters") from None
            except httpx.TransportError as error:
                if self.endpoint.stopped or time.monotonic() + pause > given_up:
                    raise self.unreachable(error) from None
                time.sleep(pause)
            else:
                again = min(_retry_after(answer) or pause, LONGEST_PAUSE)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() + again > given_up:
                    return self.opened(answer.status_code, answer.content)
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

    def instance(self, wanted: str) -> dict[str, Any]:
        """The instance of this id, or the live one of exactly this name."""
        if _is_id(wanted):
            found: dict[str, Any] = self.get(f"/instances/{wanted}")
            return found
        for row in self.get("/instances", name=wanted):
            if row["name"] == wanted:
                return dict(row)
        message = f"there is no instance named '{wanted}'"
        raise CommandFailed(message, "not_found", Exit.NOT_FOUND, "see what there is: cairn instance list")

    def webhook(self, wanted: str) -> dict[str, Any]:
        """The webhook of this id, or of exactly this name."""
        if _is_id(wanted):
            found: dict[str, Any] = self.get(f"/webhooks/{wanted}")
            return found
        for row in self.get("/webhooks", name=wanted):
            return dict(row)
        message = f"there is no webhook named '{wanted}'"
        raise CommandFailed(message, "not_found", Exit.NOT_FOUND, "see what there is: cairn webhook list")

    def resource_id(self, wanted: str) -> str:
        """An id as it is; else that of the instance of this name."""
        return wanted if _is_id(wanted) else str(self.instance(wanted)["id"])

    def host(self, wanted: str) -> dict[str, Any]:
        """The host of this id, or of exactly this name."""
        if _is_id(wanted):
            found: dict[str, Any] = self.get(f"/hosts/{wanted}")
            return found
        for row in self.pages("/hosts", {}, None)[0]:
            if row["name"] == wanted:
                return row
        message = f"there is no host named '{wanted}'"
        raise CommandFailed(message, "not_found", Exit.NOT_FOUND, "see what there is: cairn host list")

    @contextmanager
    def text(self, path: str, params: Mapping[str, Any], *, endless: bool = False) -> Iterator[httpx.Response]:
        """An answer that is a stream of text. ``endless``: it may be silent for as long as it likes."""
        silence = None if endless else 60.0
        try:
            with self.http.stream("GET", path, params=params, timeout=httpx.Timeout(silence, connect=5)) as answer:
                if answer.status_code != httpx.codes.OK:
                    answer.read()
                    self.opened(answer.status_code, answer.content)
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
        headers = {"X-API-Key": self.endpoint.api_key} if self.endpoint.api_key else {}
        try:
            made = connect(
                str(url),
                additional_headers=headers,
                compression=None,
                close_timeout=2,
                proxy=None if is_loopback(root) else True,
            )
        except InvalidStatus as refused:
            self.opened(refused.response.status_code, bytes(refused.response.body or b""))
            raise self.unreachable(refused) from None
        except (OSError, TimeoutError, InvalidHandshake, ValueError) as error:
            raise self.unreachable(error) from None
        with made:
            yield made

    def events(
        self, last_id: str | None, params: Mapping[str, Any] | None = None, silence: float = 60
    ) -> Iterator[httpx.Response]:
        """One connection to the event stream, from after ``last_id``; ReadTimeout after ``silence`` seconds of it."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        # The stream is silent between events, apart from the server's keep-alive comments.
        timeout = httpx.Timeout(silence, connect=5)
        with self.http.stream("GET", "/events", params=params, headers=headers, timeout=timeout) as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
                self.opened(answer.status_code, answer.content)
            yield answer

    def unreachable(self, error: Exception) -> CommandFailed:
        state = "; the platform was stopped" if self.endpoint.stopped else ""
        message = f"cannot reach the API at {self.endpoint.api_url}: {error}{state}"
        return CommandFailed(message, "unreachable", Exit.UNREACHABLE, START_HINT)

    def opened(self, status: int, content: bytes) -> dict[str, Any]:
        """The envelope of an answer; CommandFailed where it is an error, or no envelope."""
        try:
            envelope = json.loads(content) if content else {"data": None}
        except ValueError:
            envelope = None
        if not isinstance(envelope, dict) or "data" not in envelope:
            message = f"{self.endpoint.api_url} answered {status}, but not as the Cairn API does"
            hint = "CAIRN_API_URL must name Cairn's API and end in /v1"
            raise CommandFailed(message, "not_cairn", Exit.UNREACHABLE, hint)
        envelope["meta"] = envelope.get("meta") or {}
        if status >= httpx.codes.BAD_REQUEST:
            raise of_answer(status, envelope.get("error") or {})
        return envelope


def workflow_of(envelope: Mapping[str, Any]) -> str | None:
    """The workflow that an accepted request started, or found in progress."""
    started = envelope["meta"].get("workflow_id")
    return str(started) if started else None


def checked_id(value: str) -> str:
    """``value`` where it is an id; a workflow has no other name."""
    if not _is_id(value):
        raise usage(f"'{value}' is not a workflow id", "find it with: cairn workflow list")
    return value


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _is_id(value: str) -> bool:
    try:
        return str(UUID(value)) == value.lower()
    except ValueError:
        return False


def _retry_after(answer: httpx.Response) -> float | None:
    try:
        return max(0.1, float(answer.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None
