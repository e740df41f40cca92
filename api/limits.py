"""How many requests are allowed, of whom: shared by all API processes, and counted in memory.

A process takes a slice of what is left of a bucket's window in one statement, on a connection of its own, and counts
it down without asking anybody. A slice is a twentieth of what is left, at least one request: so a limit of a few
requests is kept exactly, one of thousands costs a statement for some hundred of them, and never are more allowed than
the limit says. What one process has taken and does not use, the others do not have: a twentieth, and less towards the
end of the window.

A window begins with its bucket's first request, and ends by the database's clock.
"""

from __future__ import annotations

import asyncio
import math
import time
from datetime import timedelta
from typing import Any, NamedTuple, get_args

import psycopg
import structlog
from starlette.requests import HTTPConnection
from starlette.types import Scope

from api.addresses import bucket_of, client_address
from model.errors import RateLimited
from model.metrics import RATE_LIMITED
from model.rates import Rate, RouteClass, rate
from model.settings import Settings

#: Of what is left of a window, a process takes one part of so many.
SHARES = 20
#: For the database to answer. Then requests are allowed without it for a moment: limits are not what refuses.
PATIENCE_SECONDS, AWAY_SECONDS = 1.0, 1.0
#: Buckets kept in memory; and how often those whose window is over are removed, here and in the database.
MOST_BUCKETS, SWEEP_SECONDS = 50_000, 60.0
#: Whose limit it is.
KEY, USER, ADDRESS = "key", "user", "address"
#: Beside the classes of routes.
MAILS = "mails"
#: What is asked for without being anybody yet.
_LOGINS = frozenset(
    (
        *("/v1/auth/login", "/v1/auth/register", "/v1/auth/refresh", "/v1/auth/forgot-password"),
        *("/v1/auth/reset-password", "/v1/hosts/register"),
    )
)
_STREAMED = ("/events", "/logs", "/stream")
log = structlog.get_logger()

_TAKE = """
    INSERT INTO rate_limits AS b (bucket, taken, given, ends_at)
    VALUES (%(bucket)s, %(first)s, %(first)s, now() + %(window)s)
    ON CONFLICT (bucket) DO UPDATE SET
        given = CASE WHEN b.ends_at <= now() THEN excluded.given
            ELSE least(greatest(1, (%(most)s - b.taken) / %(shares)s), greatest(0, %(most)s - b.taken)) END,
        taken = CASE WHEN b.ends_at <= now() THEN excluded.taken
            ELSE b.taken + least(greatest(1, (%(most)s - b.taken) / %(shares)s), greatest(0, %(most)s - b.taken)) END,
        ends_at = CASE WHEN b.ends_at <= now() THEN excluded.ends_at ELSE b.ends_at END
    RETURNING given, greatest(0, %(most)s - taken), extract(epoch FROM ends_at - now())::float8
"""
_SWEEP = "DELETE FROM rate_limits WHERE ends_at < now() - interval '1 minute'"


class Verdict(NamedTuple):
    """What is told of a bucket: requests of a window, how many are left of it, seconds until it ends."""

    allowed: bool
    rate: Rate
    left: int
    reset: int


class _Bucket:
    """What this process knows of one."""

    __slots__ = ("lock", "mine", "others", "until")

    def __init__(self) -> None:
        #: Requests that this process may still allow; and those that nobody has taken yet, as far as it knows.
        self.mine = 0
        self.others = 0
        #: End of the window, by this process's clock.
        self.until = 0.0
        self.lock = asyncio.Lock()


class Limits:
    """The limits of one API process."""

    def __init__(self, settings: Settings) -> None:
        self._database_url = settings.database
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._asking = asyncio.Lock()
        self._away_until = 0.0
        self._buckets: dict[str, _Bucket] = {}
        self.rates: dict[str, Rate | None] = {
            kind: rate(getattr(settings, f"rate_limit_{kind}"))
            for kind in (*get_args(RouteClass), USER, ADDRESS, MAILS)
        }

    async def take(self, name: str, allowed: Rate) -> Verdict | None:
        """One request more. None: nobody knows, as the database is away."""
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket()
        now = time.monotonic()
        if not bucket.mine or bucket.until <= now:
            async with bucket.lock:
                now = time.monotonic()
                empty = bucket.until <= now or (not bucket.mine and bucket.others)
                if empty and not await self._refill(name, bucket, allowed):
                    return None
                return self._count(bucket, allowed)
        return self._count(bucket, allowed)

    def has_to_ask(self, name: str) -> bool:
        """Whether the next ``take`` asks the database."""
        bucket = self._buckets.get(name)
        if bucket is None or bucket.until <= time.monotonic():
            return True
        return not bucket.mine and bucket.others > 0

    def is_spent(self, name: str) -> bool:
        """Whether the next ``take`` is refused, as far as it is known here."""
        bucket = self._buckets.get(name)
        return bucket is not None and bucket.until > time.monotonic() and not bucket.mine and not bucket.others

    async def run(self) -> None:
        """Forget, now and then, what is over."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self._forget()
            try:
                async with asyncio.timeout(SWEEP_SECONDS):
                    await self.sweep()
            except (psycopg.Error, OSError, TimeoutError) as error:
                log.info("limits.not_swept", error=str(error).partition("\n")[0])

    async def sweep(self) -> None:
        """Remove from the database what is over. Raises psycopg's errors."""
        await self._ask(_SWEEP, {})

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    def _count(self, bucket: _Bucket, allowed: Rate) -> Verdict:
        may = bucket.mine > 0
        if may:
            bucket.mine -= 1
        reset = max(1, math.ceil(bucket.until - time.monotonic()))
        return Verdict(may, allowed, bucket.mine + bucket.others, reset)

    async def _refill(self, name: str, bucket: _Bucket, allowed: Rate) -> bool:
        if time.monotonic() < self._away_until:
            return False
        values = {
            "bucket": name,
            "first": max(1, allowed.most // SHARES),
            "most": allowed.most,
            "shares": SHARES,
            "window": timedelta(seconds=allowed.seconds),
        }
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                given, others, seconds = await self._ask(_TAKE, values)
        except (psycopg.Error, OSError, TimeoutError) as error:
            log.warning("limits.database_away", error=str(error).partition("\n")[0] or type(error).__name__)
            self._away_until = time.monotonic() + AWAY_SECONDS
            return False
        bucket.mine, bucket.others = given, others
        bucket.until = time.monotonic() + min(seconds, allowed.seconds)
        return True

    async def _ask(self, statement: str, values: dict[str, Any]) -> tuple[Any, ...]:
        async with self._asking:
            connection, self._connection = self._connection, None
            try:
                if connection is None or connection.closed:
                    connection = await psycopg.AsyncConnection.connect(self._database_url, autocommit=True)
                cursor = await connection.execute(statement, values)
                found = await cursor.fetchone() if cursor.description else None
            except BaseException:
                if connection is not None:  # what it was asked may still be under way
                    await connection.close()
                raise
            self._connection = connection
        return found or ()

    def _forget(self) -> None:
        now = time.monotonic()
        for name in [name for name, one in self._buckets.items() if one.until <= now and not one.lock.locked()]:
            del self._buckets[name]
        # Strangers have as many addresses as they like: what is forgotten is asked for again.
        for name in list(self._buckets)[: max(0, len(self._buckets) - MOST_BUCKETS)]:
            del self._buckets[name]


def class_of(scope: Scope) -> RouteClass:
    """Which limit counts a request."""
    path: str = scope["path"]
    if scope["type"] == "websocket":
        return "streams"
    if scope["method"] == "POST" and path in _LOGINS:
        return "auth"
    if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
        return "write"
    return "streams" if path.endswith(_STREAMED) else "read"


def has_to_ask(request: HTTPConnection, *, key: object, user: object) -> bool:
    """Whether counting this request of somebody waits for the database."""
    if getattr(request.state, "counted", False):
        return False
    limits: Limits = request.app.state.limits
    return any(rate is not None and limits.has_to_ask(name) for name, rate in _of_caller(request, key, user))


def _of_caller(request: HTTPConnection, key: object, user: object) -> list[tuple[str, Rate | None]]:
    limits: Limits = request.app.state.limits
    kind = class_of(request.scope)
    by, whose = (KEY, key) if key is not None else (USER, user)
    found = [(_name(by, whose, kind), limits.rates[kind])]
    return found if user is None else [*found, (_name(USER, user, "any"), limits.rates[USER])]


async def check_stranger(request: HTTPConnection) -> None:
    """Before something is looked up that does not look like what anybody has: from an address that has sent too much of
    that, it is not. Raises RateLimited."""
    limits: Limits = request.app.state.limits
    if limits.is_spent(_name(ADDRESS, bucket_of(client_address(request)), "any")):
        await count_stranger(request)


async def count_caller(request: HTTPConnection, *, key: object, user: object) -> None:
    """Count a request of somebody who was identified: by its key, or where it has none by its user; and by its user.

    Once, however often it is asked. Raises RateLimited.
    """
    if getattr(request.state, "counted", False):
        return
    request.state.counted = True
    limits: Limits = request.app.state.limits
    kind = class_of(request.scope)
    by = (KEY, key) if key is not None else (USER, user)
    await _count(request, limits, kind, *by, limits.rates[kind])
    if user is not None:
        await _count(request, limits, "any", USER, user, limits.rates[USER])


async def count_stranger(request: HTTPConnection) -> None:
    """Count a request of nobody that is known, by its address. Raises RateLimited."""
    if getattr(request.state, "counted", False):
        return
    request.state.counted = True
    limits: Limits = request.app.state.limits
    await _count(request, limits, "any", ADDRESS, bucket_of(client_address(request)), limits.rates[ADDRESS])


async def count_login(request: HTTPConnection) -> None:
    """Count a login or the like, whatever comes of it, by its address. Raises RateLimited."""
    limits: Limits = request.app.state.limits
    await _count(request, limits, "auth", ADDRESS, bucket_of(client_address(request)), limits.rates["auth"])


async def count_mail(request: HTTPConnection, whose: object) -> None:
    """Count a mail to somebody else, that a user or the service accounts of a project have sent. Raises RateLimited."""
    limits: Limits = request.app.state.limits
    await _count(request, limits, MAILS, USER, whose, limits.rates[MAILS])


def _name(by: str, whose: object, kind: str) -> str:
    return f"{by}:{whose}:{kind}"


async def _count(
    request: HTTPConnection, limits: Limits, kind: str, by: str, whose: object, allowed: Rate | None
) -> None:
    verdict = None if allowed is None else await limits.take(_name(by, whose, kind), allowed)
    if verdict is None:
        return
    # Of two limits the one that is nearer is told.
    told: Verdict | None = getattr(request.state, "limit", None)
    if told is None or not verdict.allowed or verdict.left < told.left:
        request.state.limit = verdict
    if not verdict.allowed:
        RATE_LIMITED.labels(kind, by).inc()
        raise RateLimited(
            f"{verdict.rate.most} requests in {verdict.rate.seconds} s are allowed "
            f"{'to' if by != ADDRESS else 'from'} this {by}: try again in {verdict.reset} s",
            retry_after_seconds=verdict.reset,
            limit=verdict.rate.most,
        )
