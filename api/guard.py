"""What stands before the routes: by which name and from which pages the API is used, and how often logins are tried;
and what every answer tells browsers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.addresses import Networks, came_by_https
from api.limits import Verdict, class_of, count_login
from model.errors import CairnError, Forbidden, Malformed
from model.settings import Settings

#: Headers that pages may send and read, beyond those that browsers always let them.
_SENT = (
    *("Authorization", "X-API-Key", "X-Project-ID", "X-Request-ID", "Content-Type", "Idempotency-Key", "Prefer"),
    *("If-Match", "Last-Event-ID"),
)
_READ = (
    *("X-Request-ID", "Location", "ETag", "Retry-After", "Preference-Applied", "Last-Event-ID"),
    *("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"),
)
_CDN = "https://cdn.jsdelivr.net"
#: FastAPI's page of the interface: scripts and styles of its CDN, and a script of its own.
_DOCS_POLICY = (
    f"default-src 'none'; script-src 'unsafe-inline' {_CDN}; style-src 'unsafe-inline' {_CDN}; "
    f"img-src 'self' data: https://fastapi.tiangolo.com; font-src {_CDN}; connect-src 'self'; worker-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_POLICY = "default-src 'none'; frame-ancestors 'none'"
_ALWAYS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
#: Told to those alone whose connection is encrypted.
_STRICT = (b"strict-transport-security", b"max-age=31536000")
_DOCS = ("/docs", "/redoc")

Render = Callable[[Request, CairnError], Response]


class Guard:
    """Plain ASGI middleware, before the routes and inside of what logs requests."""

    def __init__(self, app: ASGIApp, settings: Settings, render: Render) -> None:
        self._app = app
        self._hosts = settings.allowed_hosts
        self._origins = settings.cors_origins
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                await self._check(scope)
            except CairnError as error:
                # A WebSocket that is refused before it is open is answered like a request.
                await self._render(Request({**scope, "type": "http"}), error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _check(self, scope: Scope) -> None:
        """Raises Malformed, Forbidden, RateLimited."""
        # Health and metrics are asked for by address, also by what has never heard of names.
        if self._hosts and scope["path"] != "/metrics" and not scope["path"].startswith("/health/"):
            name = _host_of(Headers(scope=scope).get("host", ""))
            if not _is_allowed(name, self._hosts):
                raise Malformed(f"the API is not called '{name}' (CAIRN_ALLOWED_HOSTS)")
        if scope["type"] == "websocket":
            # Browsers let any page open WebSockets anywhere, and say only which page it was.
            _check_origin(Headers(scope=scope), self._origins)
        elif class_of(scope) == "auth":
            await count_login(HTTPConnection(scope))


def install(app: Starlette, settings: Settings, render: Render) -> None:
    """Put it before the routes of an application."""
    app.add_middleware(Guard, settings=settings, render=render)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "PUT", "PATCH", "DELETE"),
            allow_headers=_SENT,
            expose_headers=_READ,
            # There are no cookies: a page shows the key that it was given.
            allow_credentials=False,
        )


def mark(message: Message, scope: Scope, trusted: Networks) -> None:
    """Give an answer, as it begins, the headers that every answer has."""
    headers: list[tuple[bytes, bytes]] = message["headers"]
    headers += _ALWAYS
    path: str = scope["path"]
    policy = _DOCS_POLICY if path.startswith(_DOCS) else _POLICY
    headers.append((b"content-security-policy", policy.encode()))
    if path.startswith("/v1") and not any(name == b"cache-control" for name, _ in headers):
        headers.append((b"cache-control", b"no-store"))
    if came_by_https(scope, trusted):
        headers.append(_STRICT)
    limit: Verdict | None = scope["state"].get("limit")
    if limit is not None:
        headers += [
            (b"ratelimit-limit", b"%d" % limit.rate.most),
            (b"ratelimit-remaining", b"%d" % limit.left),
            (b"ratelimit-reset", b"%d" % limit.reset),
        ]


def _host_of(host: str) -> str:
    """The name, without its port."""
    name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    return name.lower().rstrip(".")


def _is_allowed(name: str, allowed: Collection[str]) -> bool:
    return any(name == one or (one.startswith("*.") and name.endswith(one[1:])) for one in allowed)


def _check_origin(headers: Headers, allowed: Collection[str]) -> None:
    """Raises Forbidden for a page of another origin that is not allowed. What is no browser says none."""
    origin = headers.get("origin")
    if origin is None or origin.lower() in allowed:
        return
    try:
        page = urlsplit(origin.lower())
        here = urlsplit(f"//{headers.get('host', '').lower()}")
        usual = {"http": 80, "https": 443}.get(page.scheme)
        if page.hostname and page.hostname == here.hostname and usual and (page.port or usual) == (here.port or usual):
            return
    except ValueError:
        pass
    raise Forbidden(f"pages of {origin[:200]} may not open WebSockets here (CAIRN_CORS_ORIGINS)")
