"""Contexts: the file, its secrecy, and which of all that name an API wins."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cli import config
from cli.client import Client, find_endpoint
from cli.errors import CommandFailed, Exit
from cli.given import given
from tests.cli.fake import Answer, FakeApi, cairn
from tests.cli.test_program import PROGRAM

PROJECT = "0199b3f0-0000-7000-8000-0000000000aa"
SECRET = "ck_0123456789abcdef"


@pytest.fixture(autouse=True)
def nothing_given() -> None:
    given.forget()


def file() -> Path:
    found = config.path()
    assert found
    return found


def add(name: str, *options: str, url: str = "https://h.example/v1", key: str = SECRET) -> None:
    os.environ["CAIRN_API_KEY"] = key
    try:
        result = cairn("context", "add", name, "--url", url, "--no-check", *options)
    finally:
        del os.environ["CAIRN_API_KEY"]
    assert result.exit_code == 0, result.stderr


def test_the_file_is_its_owners_alone() -> None:
    add("prod", "--project", PROJECT)
    assert stat.S_IMODE(file().stat().st_mode) == 0o600
    assert stat.S_IMODE(file().parent.stat().st_mode) == 0o700
    file().chmod(0o644)
    add("other")
    assert stat.S_IMODE(file().stat().st_mode) == 0o600, "whatever it was"
    assert {path.name for path in file().parent.iterdir()} == {"config.toml", ".config.toml.lock"}


def test_keys_are_never_shown(api: FakeApi) -> None:
    api.on("GET /projects", Answer(200, []))
    add("prod")
    for arguments in (["list"], ["list", "-o", "json"], ["show", "prod"], ["show"], ["show", "-o", "yaml"]):
        result = cairn("context", *arguments)
        assert result.exit_code == 0
        assert SECRET not in result.stdout + result.stderr
        assert "secret-key" not in result.stdout + result.stderr
    assert json.loads(cairn("context", "list", "-o", "json").stdout) == [
        {
            "name": "prod",
            "current": True,
            "url": "https://h.example/v1",
            "has_key": True,
            "user": None,
            "project": None,
            "ca_file": None,
        }
    ]


def test_there_is_no_option_for_a_key() -> None:
    assert "--key" not in cairn("context", "add", "--help").stdout.replace("--key-stdin", "")


def test_a_key_is_read_from_stdin() -> None:
    done = subprocess.run(
        [*PROGRAM, "context", "add", "prod", "--url", "http://127.0.0.1:9", "--key-stdin", "--no-check"],
        input=f"{SECRET}\n",
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert SECRET not in done.stdout + done.stderr
    assert config.read().find("prod") == config.Context("prod", "http://127.0.0.1:9/v1", SECRET)


def test_a_key_is_asked_for_without_being_shown() -> None:
    parent, child = pty.openpty()
    command = [*PROGRAM, "context", "add", "prod", "--url", "http://127.0.0.1:9", "--no-check"]
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, start_new_session=True)
    os.close(child)
    shown = os.read(parent, 4096)
    while b"API key" not in shown:
        shown += os.read(parent, 4096)
    until = time.monotonic() + 15
    while termios.tcgetattr(parent)[3] & termios.ECHO:  # what is typed before the echo is off is thrown away
        assert time.monotonic() < until, "the key would be shown"
        time.sleep(0.02)
    os.write(parent, f"{SECRET}\n".encode())
    try:
        while more := os.read(parent, 4096):
            shown += more
    except OSError:
        pass
    os.close(parent)
    assert process.wait(20) == 0
    assert SECRET.encode() not in shown
    assert config.read().find("prod").key == SECRET


def test_without_any_key_nothing_is_written() -> None:
    done = subprocess.run(
        [*PROGRAM, "context", "add", "prod", "--url", "http://127.0.0.1:9"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == Exit.USAGE
    assert "--key-stdin" in done.stderr
    assert not file().exists()


@pytest.mark.parametrize(
    "options",
    [
        ["prod", "--url", "h.example"],
        ["prod", "--url", "ftp://h.example"],
        ["prod", "--url", "https://me:pw@h.example"],
        ["prod", "--url", "https://h.example", "--project", "web"],
        ["prod", "--url", "https://h.example", "--ca-file", "/nowhere.pem"],
        ["a b", "--url", "https://h.example"],
        ["", "--url", "https://h.example"],
    ],
)
def test_nonsense_is_refused(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAIRN_API_KEY", SECRET)
    assert cairn("context", "add", *options, "--no-check").exit_code == Exit.USAGE
    assert not file().exists()


def test_the_first_is_chosen_then_use_and_rm_choose() -> None:
    add("a")
    add("b")
    assert config.read().current == "a"
    assert cairn("context", "use", "b").exit_code == 0
    assert config.read().current == "b"
    assert cairn("context", "use", "c").exit_code == Exit.NOT_FOUND
    assert cairn("context", "use").exit_code == Exit.USAGE
    assert cairn("context", "rm", "b").exit_code == 0
    assert config.read().current is None
    assert cairn("context", "rm", "b").exit_code == Exit.NOT_FOUND
    assert cairn("context", "use", "a").exit_code == 0
    assert cairn("context", "use", "--none").exit_code == 0
    assert config.read().current is None


def test_one_that_cannot_be_reached_is_not_chosen(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: nothing worked after a mistyped address."""
    assert cairn("context", "add", "bad", "--url", "http://127.0.0.1:1").exit_code == 0
    assert config.read().current is None and "bad" in config.read().contexts
    api.on("GET /projects", Answer(200, []))
    assert cairn("context", "add", "good", "--url", api.url).exit_code == 0
    assert config.read().current == "good"
    absent = cairn("context", "add", "lost", "--url", api.url, "--project", PROJECT)
    assert "not_found" in absent.stderr


def test_forgetting_a_context_ends_its_login(api: FakeApi) -> None:
    login = {"access_token": "access", "refresh_token": "refresh", "expires_at": "9999999999", "email": "jo@x.org"}
    for number, said in ((204, "its login has ended"), (500, "its login goes on")):
        with config.changing() as document:
            document["contexts"] = {"jo": {"url": api.url, **login}}
        api.scripts["POST /auth/logout"].clear()
        api.on("POST /auth/logout", Answer(number, error=None if number == 204 else {"code": "internal"}))
        done = cairn("context", "rm", "jo")
        assert done.exit_code == 0 and said in done.stderr and "key" not in done.stderr
        assert api.requests[-1].headers["authorization"] == "Bearer access"
        assert not config.read().contexts


def test_one_of_the_same_name_is_not_overwritten_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    add("a")
    monkeypatch.setenv("CAIRN_API_KEY", "another")
    again = ["context", "add", "a", "--url", "https://other.example", "--no-check"]
    assert cairn(*again).exit_code == Exit.REFUSED
    assert config.read().find("a").key == SECRET
    assert cairn(*again, "--replace").exit_code == 0
    assert config.read().find("a").key == "another"


def test_two_at_once_lose_nothing() -> None:
    def one(number: int) -> int:
        command = [*PROGRAM, "context", "add", f"c{number}", "--url", "http://127.0.0.1:9", "--key-stdin", "--no-check"]
        return subprocess.run(command, input=b"k", capture_output=True, timeout=60, check=False).returncode

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(one, range(8))) == {0}
    assert set(config.read().contexts) == {f"c{number}" for number in range(8)}


def test_a_write_that_fails_leaves_the_file_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    add("a")
    before = file().read_text()
    monkeypatch.setattr(config.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(CommandFailed, match="no space left"), config.changing() as document:
        document["current"] = "b"
    assert file().read_text() == before
    assert {path.name for path in file().parent.iterdir()} == {"config.toml", ".config.toml.lock"}


def test_what_its_owner_wrote_beside_stays() -> None:
    add("a")
    file().write_text("# mine\n" + file().read_text() + "\n[later]\nthing = 1 # kept\n")
    add("b")
    assert "# mine" in file().read_text()
    assert "thing = 1 # kept" in file().read_text()


@pytest.mark.parametrize("content", ["x", "contexts = 1", "[contexts.a]\nkey = 'k'", "[contexts.a]\nurl = 1"])
def test_a_broken_file_says_so_and_is_left_alone(content: str) -> None:
    file().parent.mkdir(parents=True)
    file().write_text(content)
    for arguments in (["instance", "list"], ["context", "list"], ["context", "use", "a"]):
        result = cairn(*arguments)
        assert result.exit_code == Exit.UNREACHABLE
        assert "config.toml cannot be used" in result.stderr
    assert file().read_text() == content


def test_which_of_all_that_name_an_api_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "endpoint.json").write_text(json.dumps({"api_url": "http://here/v1", "api_key": "of-here"}))
    monkeypatch.setenv("CAIRN_DATA_DIR", str(tmp_path))

    def found() -> tuple[str, str | None]:
        endpoint = find_endpoint()
        return endpoint.api_url, endpoint.api_key

    assert found() == ("http://here/v1", "of-here")
    add("a", url="https://a/v1", key="of-a")
    add("b", url="https://b/v1", key="of-b")
    given.forget()
    assert found() == ("https://a/v1", "of-a")
    monkeypatch.setenv("CAIRN_CONTEXT", "b")
    assert found() == ("https://b/v1", "of-b")
    monkeypatch.setenv("CAIRN_API_KEY", "of-env")
    assert found() == ("https://b/v1", "of-env")
    monkeypatch.setenv("CAIRN_API_URL", "http://env/v1")
    assert found() == ("http://env/v1", "of-env")
    given.context = "a"
    assert found() == ("https://a/v1", "of-a"), "flags are stronger than the environment, its key too"
    given.api_url = "http://flag/v1"
    assert found() == ("http://flag/v1", "of-env")
    monkeypatch.delenv("CAIRN_API_KEY")
    assert found() == ("http://flag/v1", None), "a key that is stored with an address goes to no other"
    given.api_url = "https://a/v1/"
    assert found() == ("https://a/v1", "of-a")


def test_an_unknown_context_is_named(api: FakeApi) -> None:
    result = cairn("instance", "list", "-c", "nothing")
    assert result.exit_code == Exit.NOT_FOUND
    assert "nothing" in result.stderr
    assert "cairn context list" in result.stderr
    assert api.requests == []


def test_a_context_sends_its_key_and_project(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAIRN_API_URL")
    monkeypatch.delenv("CAIRN_API_KEY")
    api.on("GET /instances", Answer(200, []))
    add("prod", "--project", PROJECT, url=api.url)
    assert cairn("instance", "list").exit_code == 0
    assert api.requests[0].headers["x-api-key"] == SECRET
    assert api.requests[0].headers["x-project-id"] == PROJECT


def test_a_key_that_the_api_does_not_know_is_refused(api: FakeApi) -> None:
    api.on("GET /projects", Answer(401, error={"code": "unauthenticated", "message": "the API key is not known"}))
    result = cairn("context", "add", "prod", "--url", api.url)
    assert result.exit_code == Exit.UNREACHABLE
    assert "the API key is not known" in result.stderr and "--no-check" in result.stderr
    assert not config.read().contexts
    assert cairn("context", "add", "prod", "--url", api.url, "--no-check").exit_code == 0
    assert list(config.read().contexts) == ["prod"]


def test_show_says_where_the_address_is_from(api: FakeApi) -> None:
    assert "CAIRN_API_URL" in cairn("context", "show").stdout


def test_a_ca_file_without_certificates_says_so(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    add("prod", "--ca-file", str(tmp_path / "ca.pem"))
    result = cairn("instance", "list")
    assert result.exit_code == Exit.UNREACHABLE
    assert "ca.pem" in result.stderr


def test_a_context_of_the_environment_without_a_home() -> None:
    assert config.path({}) is None
    assert config.path({"HOME": "/h"}) == Path("/h/.config/cairn/config.toml")
    assert config.path({"HOME": "/h", "XDG_CONFIG_HOME": "rel"}) == Path("/h/.config/cairn/config.toml")
    assert config.path({"HOME": "/h", "XDG_CONFIG_HOME": "/x"}) == Path("/x/cairn/config.toml")


def test_tls_is_trusted_by_the_contexts_own_authority_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ssl
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    certificate, key = _certificate(tmp_path)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"data": [], "error": null, "meta": {}}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Only the command is looked at."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        url = f"https://127.0.0.1:{server.server_address[1]}"
        add("trusting", "--ca-file", str(certificate), url=url)
        add("strange", url=url)
        with Client() as client:
            assert client.get("/instances") == []
        result = cairn("instance", "list", "-c", "strange")
        assert result.exit_code == Exit.UNREACHABLE
        assert "--ca-file" in result.stderr
    finally:
        server.shutdown()
        server.server_close()


def _certificate(folder: Path) -> tuple[Path, Path]:
    import datetime as dt
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cairn test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, private
