"""Mails, and the server that they go out by."""

from __future__ import annotations

import smtplib
import ssl
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import structlog

from model.settings import Settings

TIMEOUT_SECONDS = 20.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
log = structlog.get_logger()


class Letter(NamedTuple):
    """``link`` stands on a line of its own between the texts."""

    to: str
    subject: str
    before: str
    link: str
    after: str


def send(settings: Settings, letter: Letter) -> None:
    """Blocks for some seconds. Raises OSError, SMTPException, ValueError where the address of the server is none.

    Where there is no server, what it leads to is logged, in clear: for development alone.
    """
    if settings.smtp_url is None:
        log.info("mail.logged", to=letter.to, subject=letter.subject, link=letter.link)
        return
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = settings.mail_from, letter.to, letter.subject
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain="cairn.invalid")
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(f"{letter.before}\n{letter.link}\n\n{letter.after}")
    with _connected(settings.smtp_url.get_secret_value()) as server:
        server.send_message(message)


def _connected(url: str) -> smtplib.SMTP:
    where = urlsplit(url)
    if where.scheme not in ("smtp", "smtps") or not where.hostname:
        raise ValueError("CAIRN_SMTP_URL: expected smtp://HOST:PORT or smtps://HOST:PORT")
    context = ssl.create_default_context()
    server: smtplib.SMTP
    if where.scheme == "smtps":
        server = smtplib.SMTP_SSL(where.hostname, where.port or 465, timeout=TIMEOUT_SECONDS, context=context)
    else:
        server = smtplib.SMTP(where.hostname, where.port or 587, timeout=TIMEOUT_SECONDS)
    try:
        is_private = where.scheme == "smtps" or where.hostname in _LOOPBACK
        server.ehlo()
        if where.scheme == "smtp" and server.has_extn("starttls"):
            server.starttls(context=context)
            is_private = True
        if where.username:
            if not is_private:
                raise smtplib.SMTPNotSupportedError("the server offers no STARTTLS: its password is not sent in clear")
            server.login(unquote(where.username), unquote(where.password or ""))
    except BaseException:
        server.close()
        raise
    return server
