"""Mails, and the server that they go out by."""

from __future__ import annotations

import smtplib
import ssl
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import NamedTuple
from urllib.parse import unquote

import structlog

from model.setting_types import LOOPBACK, TLS_OFF, smtp_server
from model.settings import Settings

TIMEOUT_SECONDS = 20.0
log = structlog.get_logger()


class Letter(NamedTuple):
    """``link`` stands on a line of its own between the texts."""

    to: str
    subject: str
    before: str
    link: str
    after: str


def send(settings: Settings, letter: Letter) -> None:
    """Blocks for some seconds. Raises OSError, SMTPException.

    Where mails are logged, what it leads to is in the log, in clear: for development alone.
    """
    if settings.smtp_url is None:
        if not settings.mails_are_logged:
            raise OSError("no mails are sent here: CAIRN_SMTP_URL is not set")
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
    where = smtp_server(url)
    host = where.hostname or ""
    context = ssl.create_default_context()
    server: smtplib.SMTP
    if where.scheme == "smtps":
        server = smtplib.SMTP_SSL(host, where.port or 465, timeout=TIMEOUT_SECONDS, context=context)
    else:
        server = smtplib.SMTP(host, where.port or 587, timeout=TIMEOUT_SECONDS)
    try:
        is_plain_allowed = host in LOOPBACK or where.query == TLS_OFF
        server.ehlo()
        if where.scheme == "smtp" and where.query != TLS_OFF:
            # What a mail holds is as good as a password.
            if server.has_extn("starttls"):
                server.starttls(context=context)
            elif not is_plain_allowed:
                raise smtplib.SMTPNotSupportedError("the server offers no STARTTLS: nothing is sent in clear")
        if where.username:
            server.login(unquote(where.username), unquote(where.password or ""))
    except BaseException:
        server.close()
        raise
    return server
