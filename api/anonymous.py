"""``CAIRN_AUTH=anonymous``: who shows nothing is the first administrator. For one person's own machine.

It is a session as after a login, so that all that looks sessions up goes on working; nobody can get a token of it.
"""

from __future__ import annotations

from urllib.parse import urlsplit
from uuid import UUID, uuid5

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from starlette.requests import HTTPConnection

from model.errors import Forbidden, Unauthenticated
from model.projects import Installation
from model.users import Session, User

LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: What proxies add, behind which anybody may be, though they call the API by the address under which they know it.
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via")


async def session_of(request: HTTPConnection) -> UUID:
    """The session of whoever shows nothing. Raises Forbidden for what a page of another site may have sent."""
    origin = request.headers.get("origin")
    sites = [f"//{request.headers.get('host', '')}", *([origin] if origin is not None else [])]
    # A name that leads to this machine only now (DNS rebinding), or a page of elsewhere that a browser here shows.
    if not all(_host(site) in LOOPBACK for site in sites) or any(name in request.headers for name in FORWARDED):
        raise Forbidden("without a credential this platform is used from its own machine, under its own address alone")
    app = request.app
    found: UUID | None = getattr(app.state, "anonymous", None)
    if found is not None:
        return found
    async with app.state.engine.begin() as connection:
        installation = (await connection.execute(select(Installation.id))).scalar_one()
        first = select(User.id).where(User.is_admin, User.deactivated_at.is_(None)).order_by(User.created_at, User.id)
        admin = (await connection.execute(first.limit(1))).scalar_one_or_none()
        if admin is None:
            raise Unauthenticated("there is no administrator that who shows no key could be")
        values = {"user_id": admin, "ended_at": None, "expires_at": func.now() + text("interval '10 years'")}
        found = uuid5(installation, f"anonymous {admin}")
        made = insert(Session).values(id=found, **values).on_conflict_do_update(index_elements=["id"], set_=values)
        await connection.execute(made)
    app.state.anonymous = found
    return found


def forget(request: HTTPConnection) -> None:
    """It is valid no more: the next request makes it anew."""
    request.app.state.anonymous = None


def _host(site: str) -> str | None:
    try:
        return urlsplit(site).hostname
    except ValueError:
        return None
