"""A Git server of the tests' own: smart http over TLS by git's own ``http-backend``, with and without a login."""

from __future__ import annotations

import base64
import datetime as dt
import os
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

#: Names and addresses of this machine, which nobody but a test may let users' URLs lead to.
ALLOW = "127.0.0.0/8,::1/128"
HOST = "localhost"
_AS = [
    "-c",
    "user.name=test",
    "-c",
    "user.email=test@example.org",
    "-c",
    "protocol.file.allow=always",
    "-c",
    "safe.directory=*",
]


def git(*words: str, at: Path) -> str:
    """What this machine's git says, away from the settings of whoever runs the tests."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(at), "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(["git", *_AS, *words], cwd=at, env=environ, check=True, capture_output=True, text=True)
    return done.stdout.strip()


class GitServer:
    """Repositories below ``/open/`` are for all, those below ``/private/`` for who has ``login``."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.login = ("robot", "s3cr3t-token-f00d")
        #: What requests showed of who they are, and what they asked for.
        self.shown: list[str | None] = []
        self.asked: list[str] = []
        #: Bytes a second of an answer; None: as fast as it goes.
        self.pace: int | None = None
        #: Where requests below ``/moved/`` are sent to.
        self.moved_to = ""

    @property
    def certificate(self) -> Path:
        return self.folder / "server.pem"

    def url(self, name: str, kind: str = "open") -> str:
        return f"https://{HOST}:{self.port}/{kind}/{name}.git"

    def repository(self, name: str, files: dict[str, bytes], kind: str = "open") -> str:
        """A repository on the branch main with one commit, whose id comes back."""
        work = self.folder / "work" / kind / name
        work.mkdir(parents=True)
        git("init", "-q", "-b", "main", at=work)
        commit = self.commit(name, files, kind)
        bare = self.folder / kind / f"{name}.git"
        git("clone", "-q", "--bare", str(work), str(bare), at=self.folder)
        git("config", "uploadpack.allowAnySHA1InWant", "true", at=bare)
        # What is random has nothing in common, and takes long to find that out.
        git("config", "core.bigFileThreshold", "1m", at=bare)
        git("remote", "add", "origin", str(bare), at=work)
        return commit

    def commit(self, name: str, files: dict[str, bytes], kind: str = "open") -> str:
        work = self.folder / "work" / kind / name
        for path, content in files.items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_bytes(content)
        git("add", "-A", at=work)
        git("commit", "-q", "--allow-empty", "-m", "more", at=work)
        return git("rev-parse", "HEAD", at=work)

    def push(self, name: str, *refs: str, kind: str = "open") -> None:
        git("push", "-q", "--force", "origin", *refs, at=self.folder / "work" / kind / name)


@contextmanager
def git_server() -> Iterator[GitServer]:
    with tempfile.TemporaryDirectory(prefix="cairn-git-") as folder:
        served = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        served.daemon_threads = True
        server = GitServer(Path(folder), served.server_address[1])
        served.cairn = server  # type: ignore[attr-defined]
        key = _certify(server.certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server.certificate, key)
        served.socket = context.wrap_socket(served.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=served.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            served.shutdown()
            served.server_close()


def _certify(path: Path) -> Path:
    """A certificate for ``localhost``; where its key is."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = path.with_suffix(".key")
    plain = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return private


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing is said."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        server: GitServer = self.server.cairn  # type: ignore[attr-defined]
        shown = self.headers.get("Authorization")
        server.shown.append(shown)
        server.asked.append(self.path)
        body = self._body()
        path, _, query = self.path.partition("?")
        wanted = "Basic " + base64.b64encode(":".join(server.login).encode()).decode()
        if path.startswith("/moved/"):
            self._say(302, b"", ("Location", server.moved_to + self.path.removeprefix("/moved/")))
        elif path.startswith("/private/") and shown != wanted:
            self._say(401, b"who are you?", ("WWW-Authenticate", 'Basic realm="git"'))
        else:
            self._serve(server, path, query, body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _serve(self, server: GitServer, path: str, query: str, body: bytes) -> None:
        environ = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(server.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type") or "",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or "",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
            "REMOTE_ADDR": "127.0.0.1",
        }
        process = subprocess.Popen(
            ["git", "http-backend"],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(body)
            process.stdin.close()
            head = []
            while line := process.stdout.readline().strip():
                head.append(line.decode().split(": ", 1))
            status = next((value for name, value in head if name == "Status"), "200 OK")
            self.send_response(int(status.split()[0]))
            for name, value in head:
                if name != "Status":
                    self.send_header(name, value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while piece := process.stdout.read1(16384):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                if server.pace is not None:
                    time.sleep(len(piece) / server.pace)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True  # whoever asked has gone
        finally:
            process.kill()
            process.stdout.close()
            process.wait()

    def _say(self, status: int, body: bytes, header: tuple[str, str]) -> None:
        self.send_response(status)
        self.send_header(*header)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
