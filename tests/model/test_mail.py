"""Mails, sent to a server that speaks just enough SMTP."""

from __future__ import annotations

import smtplib
import socketserver
import threading
from collections.abc import Iterator

import pytest
import structlog.testing
from pydantic import SecretStr

from model.mail import Letter, send
from model.settings import Settings

LETTER = Letter("jo@example.org", "Another password", "Hello Jö,\n", "http://h/reset-password#t0ken", "Bye\n")


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self) -> None:
        self.said: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        in_data = False
        for line in self.rfile:
            text = line.decode().rstrip("\r\n")
            self.server.said.append(text)
            if in_data and text != ".":
                continue
            in_data = text.upper() == "DATA"
            verb = text.partition(" ")[0].upper()
            answers = {
                "DATA": "354 go on",
                "QUIT": "221 bye",
                "EHLO": "250-here\r\n250 AUTH PLAIN",
                "AUTH": "235 you are",
            }
            self.wfile.write(f"{answers.get(verb, '250 ok')}\r\n".encode())


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        made.shutdown()


def settings(server: Server, user: str = "", query: str = "") -> Settings:
    url = f"smtp://{user}127.0.0.1:{server.server_address[1]}{query}"
    return Settings(smtp_url=SecretStr(url), mail_from="Cairn <c@x.org>")


def test_mail_reaches_its_recipient_with_the_link_whole(server: Server) -> None:
    send(settings(server, "me:pass%40word@"), LETTER)
    assert any(line.startswith("AUTH PLAIN") for line in server.said)
    assert "mail FROM:<c@x.org>" in " ".join(server.said)
    assert "rcpt TO:<jo@example.org>" in server.said
    assert "Subject: Another password" in server.said
    assert LETTER.link in server.said


@pytest.mark.parametrize("user", ["me:secret@", ""])
def test_nothing_is_sent_in_clear(server: Server, monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    for module in ("mail", "setting_types"):
        monkeypatch.setattr(f"model.{module}.LOOPBACK", ())
    with pytest.raises(smtplib.SMTPException):
        send(settings(server, user), LETTER)
    assert not any("AUTH" in line or "RCPT" in line.upper() for line in server.said)


def test_in_clear_where_the_operator_says_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("mail", "setting_types"):
        monkeypatch.setattr(f"model.{module}.LOOPBACK", ())
    send(settings(server, query="?tls=off"), LETTER)
    assert LETTER.link in server.said


@pytest.mark.parametrize(
    "url", ["http://x", "smtp://", "x", "smtp://h?tls=no", "smtps://h?tls=off", "smtp://u:p@h?tls=off"]
)
def test_what_is_no_server_is_said(url: str) -> None:
    with pytest.raises(ValueError, match="smtp_url"):
        Settings(smtp_url=SecretStr(url))


def test_links_are_logged_in_development_alone() -> None:
    with structlog.testing.capture_logs() as logged:
        with pytest.raises(OSError, match="CAIRN_SMTP_URL"):
            send(Settings(), LETTER)
        assert logged == []
        send(Settings(mailer="log"), LETTER)
    assert [line["link"] for line in logged] == [LETTER.link]
