"""What mails say, by their kinds.

A template finds out whether its mail is still wanted, makes up the token that it leads to, and keeps the digest. What
somebody wrote whom the recipient may not know (a person's or a project's name) stands in none: these are our mails.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from api.caller import ENTER
from model.mail import Letter
from model.projects import Project
from model.secrets import digest, new_invitation
from model.settings import Settings
from model.users import Invitation, PasswordReset, User

#: Kinds.
RESET, INVITATION = "password_reset", "invitation"
RESET_LIFE = dt.timedelta(minutes=30)
#: Nobody is sent more mails of a kind that anybody may ask for: one in a minute.
LEAST_APART = dt.timedelta(minutes=1)

#: In the mail's transaction. None: nobody is to be written to, or not any more.
Template = Callable[[AsyncConnection, Settings, Row[Any]], Awaitable[Letter | None]]


async def _reset(connection: AsyncConnection, settings: Settings, mail: Row[Any]) -> Letter | None:
    """A token for who has this address. None: nobody has, or was sent one just now."""
    token = secrets.token_urlsafe(32)
    recent = select(PasswordReset.digest).where(
        PasswordReset.user_id == User.id, PasswordReset.created_at > func.now() - LEAST_APART
    )
    known = select(User.id).where(User.email == mail.recipient, User.deactivated_at.is_(None))
    if mail.attempts == 1:
        known = known.where(~recent.exists())
    user = (await connection.execute(known.with_for_update())).one_or_none()
    if user is None:
        return None
    kept = {"digest": digest(token), "user_id": user.id, "expires_at": func.now() + RESET_LIFE}
    await connection.execute(insert(PasswordReset).values(**kept))
    return Letter(
        mail.recipient,
        "Another password for Cairn",
        f"Hello,\n\nsomebody, you we hope, asked for another password for {mail.recipient}.\n"
        "Within the next 30 minutes, and once, this sets it:\n",
        # Behind the #, what no browser sends on and no server logs.
        f"{_address(settings)}/reset-password#{token}",
        "The part behind the # is also the token that `POST /v1/auth/reset-password` and `cairn login --reset` "
        "ask for.\n\nWas it not you? Then nothing has changed, and nothing needs to be done.\n",
    )


async def _invitation(connection: AsyncConnection, settings: Settings, mail: Row[Any]) -> Letter | None:
    """A token for whom somebody invited; that of an earlier attempt is void. None: it was taken back, or used."""
    project_id = UUID(mail.about["project_id"])
    token = new_invitation(project_id)
    await connection.execute(ENTER, {"project": str(project_id)})
    mailed = (
        update(Invitation)
        .where(
            Invitation.project_id == project_id,
            Invitation.id == UUID(mail.about["invitation_id"]),
            Invitation.project_id == Project.id,
            Invitation.accepted_at.is_(None),
            Invitation.expires_at > func.now(),
        )
        .values(digest=digest(token), mailed_at=func.now())
        .returning(Invitation.role_name, Project.unix_name)
    )
    row = (await connection.execute(mailed)).one_or_none()
    if row is None:
        return None
    return Letter(
        mail.recipient,
        "An invitation to Cairn",
        f"Hello,\n\nsomebody invites {mail.recipient} to the project {row.unix_name}, as {row.role_name}.\n"
        "Within the next seven days, and once, this accepts it:\n",
        f"{_address(settings)}/accept-invitation#{token}",
        "The part behind the # is also the token that `POST /v1/invitations/accept` and `cairn project join` ask "
        "for; log in, or register, with just this address first.\n\nYou know nothing of it? Then nothing needs to be "
        "done.\n",
    )


TEMPLATES: dict[str, Template] = {RESET: _reset, INVITATION: _invitation}


def _address(settings: Settings) -> str:
    return (settings.public_url or f"http://{settings.api_host}:{settings.api_port}").rstrip("/")
