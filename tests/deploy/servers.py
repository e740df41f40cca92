"""The services of a production platform as a test finds them: the distribution's PostgreSQL and HAProxy, and Temporal.

PostgreSQL listens on TCP, with SCRAM passwords and TLS, as any external server does.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import signal
import subprocess
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psycopg
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from model.settings import with_password
from tests.folders import new_folder
from tests.services import child, until
from worker import packages, ports, temporal

PACKAGES = ("postgresql", "haproxy", "docker-compose")
#: Whom PostgreSQL runs as, where the tests run as root.
NOBODY = 65534
DYNAMIC_CONFIG = Path(__file__).parents[2] / "deploy" / "temporal" / "dynamic.yaml"
TAKEN: set[int] = set()


def install(*more: str) -> None:
    """From the distribution, as root; raises where that is not possible. ``more``: packages that are programs."""
    if all(shutil.which(program) for program in ("haproxy", "docker-compose", *more)) and postgres_folders():
        return
    packages.install(*PACKAGES, *more)


def postgres_folders() -> list[Path]:
    return sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def free_port() -> int:
    port = ports.choose("127.0.0.1", TAKEN, (20_000, 29_999))
    TAKEN.add(port)
    return port


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "server.crt", folder / "server.key"
    paths[0].write_bytes(made.public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    paths[1].chmod(0o600)
    return paths


class ExternalPostgres:
    """A server on loopback that knows one role: ``postgres``, with this password."""

    def __init__(self, password: str, **settings: str) -> None:
        self.password = password
        self.settings = settings
        self.folder = new_folder("cdp-")
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.certificate, key = certificate(self.folder)
        secret = self.folder / "password"
        secret.write_text(password)
        self._as = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []
        if self._as:
            for path in (self.folder, key, secret):
                os.chown(path, NOBODY, NOBODY)
        self._bin = postgres_folders()[-1]
        made = [*self._as, str(self._bin / "initdb"), "-D", str(self.data), "-U", "postgres", "--no-sync"]
        options = ["--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "--locale=C"]
        subprocess.run([*made, *options], check=True, capture_output=True, timeout=60, cwd=self.folder)
        with (self.data / "pg_hba.conf").open("w") as rules:
            rules.write("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        self.start()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def url(self, role: str = "postgres", password: str | None = None, name: str = "postgres") -> str:
        secret = self.password if password is None else password
        where = f"127.0.0.1:{self.port}/{name}?sslmode=verify-full&sslrootcert={self.certificate}"
        return with_password(f"postgresql://{role}@{where}", secret)

    def start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "ssl": "on",
            "ssl_cert_file": str(self.folder / "server.crt"),
            "ssl_key_file": str(self.folder / "server.key"),
            "fsync": "off",
            "shared_buffers": "32MB",
            "max_connections": "300",
            **self.settings,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [*self._as, str(self._bin / "postgres"), "-D", str(self.data), *options]
        self.process = child(command, self.folder / "log")
        assert until(self._answers, 20), (self.folder / "log").read_text()[-2000:]

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def admin(self, statement: str, name: str = "postgres") -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url(name=name), autocommit=True) as connection:
            found = connection.execute(statement)
            return found.fetchall() if found.description else []

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(20)
            self.process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class ExternalTemporal:
    """A server that knows nothing of Cairn: neither its namespace nor its search attributes."""

    def __init__(self) -> None:
        self.folder = new_folder("cdt-")
        self.address = f"127.0.0.1:{free_port()}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        port = self.address.rpartition(":")[2]
        command = [
            str(temporal.find_binary()),
            "server",
            "start-dev",
            "--ip",
            "127.0.0.1",
            "--port",
            port,
            "--headless",
        ]
        quiet = ["--log-level", "error", "--db-filename", str(self.folder / "temporal.sqlite")]
        # As production tells its own, but for where it keeps things.
        told = yaml.safe_load(DYNAMIC_CONFIG.read_text()).items()
        quiet += [
            word for name, [one] in told for word in ("--dynamic-config-value", f"{name}={json.dumps(one['value'])}")
        ]
        quiet += [word for name, value in temporal.PRAGMAS.items() for word in ("--sqlite-pragma", f"{name}={value}")]
        self.process = child([*command, *quiet], self.folder / "log")

    def remove(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)
