"""Mails: each is a row until it was sent, by any API process, at least once.

A request writes the row and does not wait. What is secret in a mail is made up as it is sent: nothing of it lies in
the database but a digest. What they say is in ``api/letters.py``.
"""

from __future__ import annotations

import asyncio
import smtplib

import structlog
from sqlalchemy import delete, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.letters import TEMPLATES
from model.mail import send
from model.settings import Settings
from model.users import Mail

#: Between two looks at what others left, or could not be sent.
LOOK_SECONDS = 20
#: A process that sends one has it for so long; after that, and longer each time, it is tried again, for about a day.
HELD_SECONDS, MOST_ATTEMPTS = 60, 12
log = structlog.get_logger()

_TAKE = text(
    """
    UPDATE mails SET attempts = attempts + 1, next_at = now() + make_interval(secs => :held * 2.0 ^ least(attempts, 7))
    WHERE id = (
        SELECT id FROM mails WHERE next_at <= now() AND kind = ANY(:kinds)
        ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED
    )
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
            # Those of other kinds are of a newer release, whose processes send them.
            asked = {"held": HELD_SECONDS, "kinds": list(TEMPLATES)}
            mail = (await connection.execute(_TAKE, asked)).one_or_none()
        if mail is None:
            return False
        async with self._engine.begin() as connection:
            letter = await TEMPLATES[mail.kind](connection, self._settings, mail)
        try:
            if letter is not None:
                await asyncio.to_thread(send, self._settings, letter)
        except (OSError, smtplib.SMTPException) as error:
            last = mail.attempts >= MOST_ATTEMPTS
            # The error of a server may repeat what it was sent.
            log.warning("mail.not_sent", kind=mail.kind, attempts=mail.attempts, last=last, error=type(error).__name__)
            if not last:
                return True
        async with self._engine.begin() as connection:
            await connection.execute(delete(Mail).where(Mail.id == mail.id))
        return True
