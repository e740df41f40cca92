"""Mails: each is a row until it was sent, by any API process, at least once.

A request writes the row and does not wait. What is secret in a mail is made up as it is sent: nothing of it lies in
the database but a digest. Without a server for mails (``CAIRN_SMTP_URL``) the link itself is logged: for development.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import secrets
import smtplib
from typing import Any

import structlog
from sqlalchemy import delete, func, insert, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from model.mail import Letter, send
from model.secrets import digest
from model.settings import Settings
from model.users import Mail, PasswordReset, User

#: Kinds.
RESET = "password_reset"
RESET_LIFE = dt.timedelta(minutes=30)
#: Between two looks at what others left, or could not be sent.
LOOK_SECONDS = 20
#: A process that sends one has it for so long; after that, and longer each time, it is tried again, for about a day.
HELD_SECONDS, MOST_ATTEMPTS = 60, 12
#: Nobody gets more mails of a kind: one in a minute, whoever asks for them.
LEAST_APART = dt.timedelta(minutes=1)
log = structlog.get_logger()

_TAKE = text(
    """
    UPDATE mails SET attempts = attempts + 1, next_at = now() + make_interval(secs => :held * 2.0 ^ least(attempts, 7))
    WHERE id = (SELECT id FROM mails WHERE next_at <= now() ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING *
    """
)


class Mails:
    """Of one process. ``run`` never ends."""

    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """There is one to be sent: to be called after the commit."""
        self._rung.set()

    async def run(self) -> None:
        while True:
            self._rung.clear()
            try:
                while await self._next():
                    pass
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.info("mails.waiting", error=str(error).partition("\n")[0])
            try:
                await asyncio.wait_for(self._rung.wait(), LOOK_SECONDS)
            except TimeoutError:
                continue

    async def _next(self) -> bool:
        """Send one. False: there is none."""
        async with self._engine.begin() as connection:
            mail = (await connection.execute(_TAKE, {"held": HELD_SECONDS})).one_or_none()
        if mail is None:
            return False
        letter = await self._reset(mail)
        try:
            if letter is not None:
                await asyncio.to_thread(send, self._settings, letter)
        except (OSError, smtplib.SMTPException, ValueError) as error:
            last = mail.attempts >= MOST_ATTEMPTS
            # The error of a server may repeat what it was sent.
            log.warning("mail.not_sent", kind=mail.kind, attempts=mail.attempts, last=last, error=type(error).__name__)
            if not last:
                return True
        async with self._engine.begin() as connection:
            await connection.execute(delete(Mail).where(Mail.id == mail.id))
        return True

    async def _reset(self, mail: Any) -> Letter | None:
        """A token for who has this address. None: nobody has, or was sent one just now."""
        token = secrets.token_urlsafe(32)
        recent = select(PasswordReset.digest).where(
            PasswordReset.user_id == User.id, PasswordReset.created_at > func.now() - LEAST_APART
        )
        known = select(User.id).where(User.email == mail.recipient, User.deactivated_at.is_(None))
        if mail.attempts == 1:
            known = known.where(~recent.exists())
        async with self._engine.begin() as connection:
            user = (await connection.execute(known.with_for_update())).one_or_none()
            if user is None:
                return None
            kept = {"digest": digest(token), "user_id": user.id, "expires_at": func.now() + RESET_LIFE}
            await connection.execute(insert(PasswordReset).values(**kept))
        return Letter(
            mail.recipient,
            "Another password for Cairn",
            # Without the name: whoever registered the address wrote that, and it may be somebody else's address.
            f"Hello,\n\nsomebody, you we hope, asked for another password for {mail.recipient}.\n"
            "Within the next 30 minutes, and once, this sets it:\n",
            # Behind the #, what no browser sends on and no server logs.
            f"{_address(self._settings)}/reset-password#{token}",
            "The part behind the # is also the token that `POST /v1/auth/reset-password` and `cairn login --reset` "
            "ask for.\n\nWas it not you? Then nothing has changed, and nothing needs to be done.\n",
        )


def _address(settings: Settings) -> str:
    return (settings.public_url or f"http://{settings.api_host}:{settings.api_port}").rstrip("/")
