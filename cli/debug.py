"""``--debug``: each request and its answer on stderr, with what is secret left out."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import httpx

from cli import render

#: Of a body, so many characters are shown.
LONGEST = 2000
HIDDEN = "[hidden]"
#: Names of fields, headers and parameters whose values are secret, wherever they stand.
_SECRET = re.compile(
    r"(password|passwd|secret|token|credential|authorization|cookie|private_key|api[-_]?key|kubeconfig|user_data"
    r"|seed|sealed)",
    re.IGNORECASE,
)
#: Named like secrets, and not secret.
_HARMLESS = frozenset({"expires_in_seconds", "credential_id", "secret_id", "token_id"})
#: Their values are secret as often as not; their names are of use.
_MAPS = frozenset({"env"})
#: Secret as a whole: the key that was made, a secret's value.
_ALONE = frozenset({"key", "value"})
_IN_URLS = re.compile(r"(://)[^/@\s]+@")


def request(sent: httpx.Request) -> None:
    """A hook of httpx: about to be sent."""
    sent.extensions["began"] = time.monotonic()
    render.say(f"> {sent.method} {_address(str(sent.url))}")
    for name, value in sent.headers.items():
        if name.startswith("x-") or name in ("authorization", "idempotency-key", "if-match", "last-event-id", "prefer"):
            render.say(f">   {name}: {_value(name, value)}")
    try:
        _body(">", sent.content, sent.headers.get("content-type", ""))
    except httpx.RequestNotRead:
        render.say(">   (a stream)")


def response(answered: httpx.Response) -> None:
    """A hook of httpx: its head has come."""
    content_type = answered.headers.get("content-type", "")
    whole = content_type.startswith("application/json")
    if whole:
        answered.read()
    took = render.duration(time.monotonic() - answered.request.extensions["began"])
    about = answered.headers.get("x-request-id")
    render.say(f"< {answered.status_code} {answered.reason_phrase} in {took}" + (f", request {about}" if about else ""))
    for name in ("location", "retry-after", "etag"):
        if name in answered.headers:
            render.say(f"<   {name}: {_address(answered.headers[name])}")
    if whole:
        _body("<", answered.content, content_type)
    elif content_type:
        render.say(f"<   ({content_type})")


def opening(url: str) -> None:
    render.say(f"> WebSocket {_address(url)}")


def hidden(data: Any) -> Any:
    """The same, without its secrets."""
    if isinstance(data, Mapping):
        return {name: _field(str(name), value) for name, value in data.items()}
    if isinstance(data, list):
        return [hidden(value) for value in data]
    return _IN_URLS.sub(rf"\1{HIDDEN}@", data) if isinstance(data, str) else data


def _field(name: str, value: Any) -> Any:
    if name in _MAPS:
        if isinstance(value, Mapping):
            return dict.fromkeys(value, HIDDEN)
        if isinstance(value, list):
            return [f"{str(item).partition('=')[0]}={HIDDEN}" for item in value]
    return HIDDEN if value is not None and _is_secret(name) else hidden(value)


def _is_secret(name: str) -> bool:
    return name not in _HARMLESS and (name in _ALONE or bool(_SECRET.search(name)))


def _value(name: str, value: str) -> str:
    return HIDDEN if _is_secret(name) else value


def _address(url: str) -> str:
    parts = urlsplit(url)
    query = [(name, _value(name, value)) for name, value in parse_qsl(parts.query, keep_blank_values=True)]
    return _IN_URLS.sub(rf"\1{HIDDEN}@", urlunsplit(parts._replace(query=urlencode(query, safe="[]:,="))))


def _body(mark: str, content: bytes, content_type: str) -> None:
    if not content:
        return
    try:
        # Hidden first, cut off then: the other way round, half of a body could not be read.
        shown = json.dumps(hidden(json.loads(content)), ensure_ascii=False)
    except ValueError:
        shown = f"({len(content)} bytes of {content_type or 'something'})"
    more = f" … {len(shown) - LONGEST} more characters" if len(shown) > LONGEST else ""
    render.say(f"{mark}   {shown[:LONGEST]}{more}")
