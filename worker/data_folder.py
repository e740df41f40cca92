"""The data folder of an embedded stack: who owns it, who the installation is, where its API answers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from drivers.mounts import unmount_below
from model.base import new_id

#: How long a dying stack's servers may keep the lock after their supervisor is gone.
DYING_SECONDS = 10.0

#: Of a stack in the background.
SUPERVISOR_LOG = "supervisor.log"

#: Everything a stack makes in its folder; the folder may hold more, which is not ours to delete.
OWN = (
    "endpoint.json",
    "api-key",
    "ticket-key",
    "master-keys",
    "admin-password",
    "agents",
    "logs",
    "postgres",
    "postgres.new",
    "pycache",
    "run",
    "simulator",
    "restore.new",
    "restore.ready",
    "replaced",
    "temporal.sqlite",
    "temporal.sqlite-shm",
    "temporal.sqlite-wal",
    "blobs",
    # Last: it is what proves that the folder is ours.
    "installation.json",
    "lock",
)


class StackError(Exception):
    """The stack cannot start or go on; the message says what to do."""


class Installation(BaseModel):
    """What is decided once, at the first start, and must never change after it."""

    model_config = ConfigDict(frozen=True)

    installation: UUID
    #: This machine, whatever its name in the settings.
    local_host: UUID
    simulated_hosts: list[UUID] = []


class Endpoint(BaseModel):
    """``endpoint.json``: all that a program on this machine needs in order to use the platform."""

    api_url: str
    api_key: str
    temporal_address: str
    temporal_ui_url: str
    image: str
    installation: UUID
    docker_host: str | None
    data_dir: str
    pids: dict[str, int]


def make(folder: Path) -> Path:
    """The folder, made if absent, closed to other users unless it has been something else before: absolute."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if read_installation(folder) is not None or not any(folder.iterdir()):
        folder.chmod(0o700)
    (folder / "logs").mkdir(exist_ok=True)
    return folder


def write(path: Path, text: str) -> None:
    """Replace a file whole, mode 0600: a reader sees the old or the new, at a power cut too.

    It stays whose it was, or is whose the folder is: root may write for the user that an agent runs as.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        give(file.fileno(), path if path.exists() else path.parent)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def give(made: int | Path, like: Path) -> None:
    """Where root runs this: what it has made, a descriptor or a path, becomes that of whose ``like`` is."""
    if os.geteuid() == 0:
        whose = like.stat()
        os.chown(made, whose.st_uid, whose.st_gid)


def lock(folder: Path) -> int:
    """Become the folder's owner; the lock is held until the descriptor that comes back is closed everywhere.

    The two servers that write here inherit it. So a stack whose supervisor was killed frees its folder
    only when they are dead too, and never do two servers run on the same files.
    """
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    given_up = time.monotonic() + DYING_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            pid = _written_pid(fd)
            if (pid and is_alive(pid)) or time.monotonic() > given_up:
                os.close(fd)
                raise StackError(
                    f"a platform runs on {folder} already (process {pid or 'unknown'}): stop it with 'cairn down', "
                    "or choose another folder with CAIRN_DATA_DIR"
                ) from None
            time.sleep(0.1)
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Own the folder for a while, so that no stack runs on it. Raises StackError where one does."""
    fd = lock(folder)
    try:
        yield
    finally:
        os.close(fd)


def owner(folder: Path) -> int | None:
    """The process id of the supervisor that owns the folder; None when no stack runs on it."""
    try:
        fd = os.open(folder / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = _written_pid(fd)
        return pid if pid and is_alive(pid) else None
    else:
        return None
    finally:
        os.close(fd)


def _written_pid(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).decode()
    return int(text) if text.isdigit() else None


def is_alive(pid: int) -> bool:
    """Whether the process exists and can still do anything: a zombie cannot."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def read_installation(folder: Path) -> Installation | None:
    """Who the installation is; None before its first start."""
    try:
        return Installation.model_validate_json((folder / "installation.json").read_bytes())
    except FileNotFoundError:
        return None


def installation(folder: Path, wanted: UUID | None, simulated: int) -> Installation:
    """Who the installation is, with ids for at least ``simulated`` hosts; made up once and kept."""
    kept = read_installation(folder)
    if kept is None:
        chosen = Installation(installation=wanted or new_id(), local_host=new_id())
    elif wanted and wanted != kept.installation:
        raise StackError(
            f"CAIRN_INSTALLATION is {wanted}, but {folder} belongs to the installation {kept.installation}: "
            "unset it, or choose another folder with CAIRN_DATA_DIR"
        )
    else:
        chosen = kept
    missing = simulated - len(chosen.simulated_hosts)
    if missing > 0:
        hosts = chosen.simulated_hosts + [new_id() for _ in range(missing)]
        chosen = chosen.model_copy(update={"simulated_hosts": hosts})
    if chosen != kept:
        write(folder / "installation.json", chosen.model_dump_json(indent=2) + "\n")
    return chosen


def kept(path: Path, make: Callable[[], str]) -> str:
    """A secret of the installation; made up once and kept in its file, also where two make it at the same moment."""
    if not path.exists():
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        write(fresh, f"{make().strip()}\n")
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
    return path.read_text().strip()


def write_endpoint(folder: Path, endpoint: Endpoint) -> None:
    write(folder / "endpoint.json", endpoint.model_dump_json(indent=2) + "\n")


def read_endpoint(folder: Path) -> Endpoint | None:
    """The endpoint file; None when there is none that can be read."""
    try:
        return Endpoint.model_validate_json((folder / "endpoint.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def clear_pids(folder: Path) -> None:
    """Say that nothing of this stack runs, and leave the rest as it is."""
    path = folder / "endpoint.json"
    try:
        known: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return
    write(path, json.dumps(known | {"pids": {}}, indent=2) + "\n")


def is_of_a_refused_start(folder: Path) -> bool:
    """Whether all that is there is what a start makes before anything can refuse it: its lock and its own log."""
    try:
        there = {path.name for path in folder.iterdir()}
        logs = {path.name for path in (folder / "logs").iterdir()} if "logs" in there else set()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return there <= {"lock", "logs"} and logs <= {SUPERVISOR_LOG} and bool(logs or "lock" in there)


def delete(folder: Path) -> None:
    """Delete what a stack made there, and the folder itself when nothing else is in it."""
    for name in OWN:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            # Files of sessions stay mounted when their agent ends.
            unmount_below(path)
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
