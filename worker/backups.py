"""Backups: one file with a consistent copy of the database and what else makes an installation what it is.

A ZIP archive of stored members, written and read as a stream: ``database.dump`` (PostgreSQL's custom format, which
is compressed), small files of the data folder, blobs where they are asked for, and, last, ``manifest.json`` with the
SHA-256 of each of them.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from drivers.blobs import Blobs, Reader
from model.base import Frozen
from model.errors import NotFound
from worker import postgres
from worker.children import die_with_parent
from worker.data_folder import StackError, is_alive

MANIFEST, DUMP, BLOBS = "manifest.json", "database.dump", "blobs"
FORMAT = 1
#: Of the data folder: who the installation is, and its secrets.
FILES = ("installation.json", "api-key", "ticket-key", "master-keys", "admin-password")
FOLDERS = ("agents",)
CHUNK = 1 << 20
#: What people want to know of a backup.
COUNTED = ("projects", "hosts", "instances", "workflows", "events", "images")
PROGRAM_SECONDS = 20
_MAJOR = re.compile(r"\b(\d+)(?:\.\d+|devel|beta\d|rc\d)")


class BackupError(Exception):
    """The backup cannot be made, read or restored; the message says why, and what to do."""


class Member(Frozen):
    name: str
    size: int
    sha256: str


class Manifest(Frozen):
    """What a backup holds. Times are UTC."""

    format: int = FORMAT
    #: Of the program that made it.
    version: str
    #: Revision of the database's schema.
    schema_revision: str
    postgres_major: int
    installation: UUID
    epoch: int
    made_at: dt.datetime
    #: Rows of some tables, in the same snapshot as the dump.
    counts: dict[str, int]
    members: list[Member] = []


def program(name: str, major: int) -> str:
    """The path of a PostgreSQL program of just this major version: the wheel's, or the system's. Raises BackupError."""
    folders: list[Path] = []
    with suppress(StackError):
        folders.append(postgres.find_binaries())
    folders += [Path(part) for part in os.environ.get("PATH", "").split(os.pathsep) if part]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    seen: set[int] = set()
    for folder in folders:
        path = folder / name
        if path.is_file() and os.access(path, os.X_OK):
            said = subprocess.run(
                [str(path), "--version"], check=False, capture_output=True, text=True, timeout=PROGRAM_SECONDS
            ).stdout
            if found := _MAJOR.search(said):
                seen.add(int(found[1]))
                if int(found[1]) == major:
                    return str(path)
    there = f"found: {', '.join(map(str, sorted(seen)))}" if seen else "found none"
    raise BackupError(f"{name} of PostgreSQL {major} is needed ({there}): install postgresql-client-{major}")


def without_password(url: str) -> tuple[str, dict[str, str]]:
    """How to connect, for a command line, which everybody can read, and the environment that brings the password."""
    found = conninfo_to_dict(url)
    password = found.pop("password", None)
    return make_conninfo("", **found), {} if password is None else {"PGPASSWORD": str(password)}


@contextmanager
def running(argv: list[str], env: dict[str, str], **more: IO[bytes] | int) -> Iterator[subprocess.Popen[bytes]]:
    """A program that does not outlive this one. Raises BackupError with its words where it fails."""
    process = subprocess.Popen(
        argv,
        env=os.environ | env,
        stderr=subprocess.PIPE,
        preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - it does two system calls
        **more,  # type: ignore[call-overload]
    )
    try:
        yield process
        _, said = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode:
        raise BackupError(f"{Path(argv[0]).name} failed: {said.decode(errors='replace').strip()[-1000:]}")


def write(file: Path, url: str, folder: Path | None, blobs: Blobs | None) -> Manifest:
    """Make a backup in ``file``, which is there whole or not at all; one that was there is replaced then.

    ``url``: the database, as a role that may read all of it. ``folder``: the data folder whose files go with it.
    Memory does not grow with the database. Raises BackupError, OSError, psycopg.Error.
    """
    _remove_partial(file)
    partial_file = file.with_name(f".{file.name}.{os.getpid()}.partial")
    fd = os.open(partial_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as output:
            with zipfile.ZipFile(output, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                manifest = _fill(archive, url, folder, blobs)
            output.flush()
            os.fsync(output.fileno())
        partial_file.replace(file)
    except BaseException:
        partial_file.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)
    return manifest


def _remove_partial(file: Path) -> None:
    """What backups that were killed have left."""
    for left in file.parent.glob(f".{file.name}.*.partial"):
        pid = left.name.split(".")[-2]
        if pid.isdigit() and not is_alive(int(pid)):
            left.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in it survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _fill(archive: zipfile.ZipFile, url: str, folder: Path | None, blobs: Blobs | None) -> Manifest:
    members = []
    with psycopg.connect(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        manifest = _describe(connection)
        ((snapshot,),) = connection.execute("SELECT pg_export_snapshot()").fetchall()
        bare, env = without_password(url)
        argv = [
            program("pg_dump", manifest.postgres_major),
            *("--format=custom", "--no-owner", "--lock-wait-timeout=60s", f"--snapshot={snapshot}"),
            f"--dbname={bare}",
        ]
        with running(argv, env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None  # noqa: S101 - it was asked for
            members.append(_add(archive, DUMP, process.stdout))
    for path in _files(folder):
        with path.open("rb") as source:
            members.append(_add(archive, f"files/{path.relative_to(folder or path)}", source))
    if blobs is not None:
        members += _blobs(archive, blobs)
    manifest = manifest.model_copy(update={"members": members})
    archive.writestr(_info(MANIFEST), manifest.model_dump_json(indent=2))
    return manifest


def _files(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    inside = [path for name in FOLDERS for path in sorted((folder / name).glob("*.json"))]
    return [path for path in (*(folder / name for name in FILES), *inside) if path.is_file()]


def _blobs(archive: zipfile.ZipFile, store: Blobs) -> Iterator[Member]:
    """Those that are whole; what is removed meanwhile, as its image was deleted, is not wanted any more."""
    for digest, _ in store.all():
        with suppress(NotFound), closing(store.open(digest).source) as source:
            name = digest.replace(":", "/")
            yield _add(archive, f"{BLOBS}/{name}", source)


def without_file(url: str, manifest: Manifest) -> list[str]:
    """Images that were available when the backup was made, and are yet, and whose file it does not hold."""
    if "images" not in manifest.counts:  # a schema that is older than they are
        return []
    held = {member.name.removeprefix(f"{BLOBS}/").replace("/", ":", 1) for member in manifest.members}
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT name, id, digest FROM images WHERE status = 'available' AND source <> 'registry'"
            " AND updated_at <= %s ORDER BY id",
            [manifest.made_at],
        ).fetchall()
    return [f"{name} ({id})" for name, id, digest in found if digest not in held]


def _describe(connection: psycopg.Connection[tuple[object, ...]]) -> Manifest:
    def one(query: sql.SQL | sql.Composed | str) -> object:
        row = connection.execute(sql.SQL(query) if isinstance(query, str) else query).fetchone()
        return row[0] if row else None

    if one("SELECT to_regclass('public.installation')") is None:
        raise BackupError("the database is not Cairn's: it has no table 'installation'")
    counts = {
        name: int(str(one(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(name)))))
        for name in COUNTED
        if one(sql.SQL("SELECT to_regclass({})").format(f"public.{name}")) is not None
    }
    return Manifest(
        version=version("cairn-platform"),
        schema_revision=str(one("SELECT version_num FROM alembic_version")),
        postgres_major=connection.info.server_version // 10_000,
        installation=UUID(str(one("SELECT id FROM installation"))),
        epoch=int(str(one("SELECT epoch FROM installation"))),
        made_at=dt.datetime.fromisoformat(str(one("SELECT now() AT TIME ZONE 'UTC'"))).replace(tzinfo=dt.UTC),
        counts=counts,
    )


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, dt.datetime.now().timetuple()[:6])
    info.external_attr = 0o600 << 16
    return info


def _add(archive: zipfile.ZipFile, name: str, source: Reader) -> Member:
    digest, size = hashlib.sha256(), 0
    with archive.open(_info(name), "w", force_zip64=True) as target:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            target.write(chunk)
    return Member(name=name, size=size, sha256=digest.hexdigest())


@contextmanager
def opened(file: Path) -> Iterator[tuple[zipfile.ZipFile, Manifest]]:
    """A backup and its manifest. Raises BackupError."""
    try:
        with zipfile.ZipFile(file) as archive:
            manifest = Manifest.model_validate_json(archive.read(MANIFEST))
            if manifest.format > FORMAT:
                raise BackupError(f"{file} was made by a newer version ({manifest.version}): update this one first")
            yield archive, manifest
    except (FileNotFoundError, IsADirectoryError):
        raise BackupError(f"there is no backup {file}") from None
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise BackupError(f"{file} is not a whole backup: {error}") from error


def verify(archive: zipfile.ZipFile, manifest: Manifest) -> None:
    """Read all of it, and compare with the digests of the manifest. Raises BackupError."""
    told = {member.name: member for member in manifest.members}
    names = set(archive.namelist()) - {MANIFEST}
    if names != set(told):
        raise BackupError(f"members differ from the manifest: {', '.join(sorted(names ^ set(told)))}")
    for member in manifest.members:
        digest = hashlib.sha256()
        try:
            with archive.open(member.name) as source:
                while chunk := source.read(CHUNK):
                    digest.update(chunk)
        except zipfile.BadZipFile as error:
            raise BackupError(f"{member.name} is damaged: {error}") from error
        if digest.hexdigest() != member.sha256:
            raise BackupError(f"{member.name} is damaged: its digest is another than when it was written")


def load(archive: zipfile.ZipFile, manifest: Manifest, url: str) -> None:
    """Restore the dump into the empty database of ``url``, in one transaction. Raises BackupError."""
    bare, env = without_password(url)
    argv = [
        program("pg_restore", manifest.postgres_major),
        *("--no-owner", "--single-transaction", "--exit-on-error", f"--dbname={bare}"),
    ]
    with running(argv, env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin is not None  # noqa: S101 - it was asked for
        with archive.open(DUMP) as source:
            with suppress(BrokenPipeError):  # it says itself why it ended
                shutil.copyfileobj(source, process.stdin, CHUNK)
                process.stdin.close()
            process.stdin = None


def unpack(archive: zipfile.ZipFile, manifest: Manifest, prefix: str, folder: Path) -> list[str]:
    """Write the members below ``prefix`` into ``folder``, for their owner alone; their names. Raises BackupError."""
    names = []
    for member in manifest.members:
        if not member.name.startswith(f"{prefix}/"):
            continue
        name = Path(member.name.removeprefix(f"{prefix}/"))
        if name.is_absolute() or ".." in name.parts:
            raise BackupError(f"{member.name} would be written elsewhere")
        path = folder / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as target, archive.open(member.name) as source:
            shutil.copyfileobj(source, target, CHUNK)
            target.flush()
            os.fsync(target.fileno())
        names.append(str(name))
    return names


def unpack_blobs(archive: zipfile.ZipFile, manifest: Manifest, store: Blobs) -> None:
    """Put the images' files among those that are there. Each is kept under what it is, so nothing becomes another, and
    to die on the way costs nothing. Raises BackupError, Unavailable."""
    for member in manifest.members:
        if member.name.startswith(f"{BLOBS}/"):
            with store.receive() as file, archive.open(member.name) as source:
                while chunk := source.read(CHUNK):
                    file.write(chunk)
                store.put(file)
