"""Wrong passwords: who may try another, from where.

An account is locked for the address that the wrong passwords came from; and, after many more of them, for all addresses
that nobody has logged in to it from. So a stranger who guesses does not lock out its owner, who is where they
were before; and one who has many addresses does not get as many guesses.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import ColumnElement, bindparam, func, or_, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from starlette.requests import HTTPConnection

from api.addresses import bucket_of, client_address
from model.users import LoginAddress, User

#: After so many wrong passwords in a row from one address none from there is looked at for half a minute; after each
#: more for twice as long, up to a quarter of an hour. What comes meanwhile is not counted.
ALLOWED, LOCKED_SECONDS, MOST_LOCKED_SECONDS = 5, 30, 900
#: The same of all addresses together that are not known.
ALLOWED_OF_ALL = 50
#: An address is known for so long after a login from there.
KNOWN_DAYS = 90
log = structlog.get_logger()

_here = (LoginAddress.user_id == User.id) & (LoginAddress.address == bindparam("address"))
_known = LoginAddress.logged_in_at > func.now() - text(f"interval '{KNOWN_DAYS} days'")
#: Of a query of users, which is given the ``address``.
IS_LOCKED: ColumnElement[bool] = or_(
    select(LoginAddress.user_id).where(_here, LoginAddress.locked_until > func.now()).exists(),
    func.coalesce(User.locked_until > func.now(), False)
    & ~select(LoginAddress.user_id).where(_here, _known).correlate(User).exists(),
)
_DUE = "now() + make_interval(secs => least(:most, :locked * 2.0 ^ least({failed} - {allowed}, 20)))"
_COUNT = text(
    f"""
    WITH known AS (
        SELECT FROM login_addresses WHERE user_id = :user AND address = :address
            AND logged_in_at > now() - interval '{KNOWN_DAYS} days'
    ), here AS (
        INSERT INTO login_addresses AS l (user_id, address, failed)
        SELECT id, :address, 1 FROM users
        WHERE id = :user AND (coalesce(locked_until, now()) <= now() OR EXISTS (SELECT FROM known))
        ON CONFLICT (user_id, address) DO UPDATE SET failed = l.failed + 1, used_at = now(),
            locked_until = CASE WHEN l.failed + 1 >= :allowed
                THEN {_DUE.format(failed="(l.failed + 1)", allowed=":allowed")} END
        WHERE coalesce(l.locked_until, now()) <= now()
        RETURNING failed
    ), of_all AS (
        UPDATE users SET failed_logins = failed_logins + 1,
            locked_until = CASE WHEN failed_logins + 1 >= :of_all
                THEN {_DUE.format(failed="(failed_logins + 1)", allowed=":of_all")} END
        WHERE id = :user AND EXISTS (SELECT FROM here) AND NOT EXISTS (SELECT FROM known)
        RETURNING failed_logins
    )
    SELECT (SELECT failed FROM here) AS here, (SELECT failed_logins FROM of_all) AS of_all
    """  # noqa: S608 - constants of ours
)
_SUCCEEDED = text(
    """
    INSERT INTO login_addresses (user_id, address, logged_in_at) VALUES (:user, :address, now())
    ON CONFLICT (user_id, address) DO UPDATE SET failed = 0, locked_until = NULL, used_at = now(), logged_in_at = now()
    """
)


_ANOTHER = (
    text("DELETE FROM password_resets WHERE user_id = :user"),
    text("UPDATE users SET failed_logins = 0, locked_until = NULL WHERE id = :user"),
    text("UPDATE login_addresses SET failed = 0, locked_until = NULL WHERE user_id = :user"),
)


def whence(request: HTTPConnection) -> str:
    """What is counted as one address."""
    return bucket_of(client_address(request))


async def count_failure(engine: AsyncEngine, user_id: UUID, address: str) -> None:
    """One more wrong password of this user's, or of nobody's."""
    asked: dict[str, Any] = {"user": user_id, "address": address, "allowed": ALLOWED, "of_all": ALLOWED_OF_ALL}
    async with engine.begin() as connection:
        row = (await connection.execute(_COUNT, asked | {"locked": LOCKED_SECONDS, "most": MOST_LOCKED_SECONDS})).one()
    if (row.here or 0) >= ALLOWED or (row.of_all or 0) >= ALLOWED_OF_ALL:
        log.warning("user.locked", user_id=str(user_id), failed_here=row.here, failed_logins=row.of_all)


async def note_login(connection: AsyncConnection, user_id: UUID, address: str) -> None:
    """The right one: the address is known from then on."""
    await connection.execute(_SUCCEEDED, {"user": user_id, "address": address})


async def forget(connection: AsyncConnection, user_id: UUID) -> None:
    """The user has another password: what was tried before locks nobody out, and no mail of before sets one more."""
    for statement in _ANOTHER:
        await connection.execute(statement, {"user": user_id})
