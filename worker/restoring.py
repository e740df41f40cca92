"""Restoring a backup: everything is made beside what is there, and takes its place in one step.

Killed at any moment, the platform is the old one or the new one. What was replaced is kept beside it.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

import migrations
from drivers.blobs import Blobs
from model.base import new_id
from worker import backups, data_folder, database, postgres
from worker.backups import BackupError, Manifest
from worker.children import die_with_parent
from worker.data_folder import StackError

#: Folders of a data folder: where a restore is made, what is complete and takes its place, what it replaced.
MAKING, READY, REPLACED = "restore.new", "restore.ready", "replaced"
START_SECONDS, STOP_SECONDS = 60.0, 30.0
#: A server knows for a moment yet connections that were closed.
IDLE_SECONDS = 3.0


@contextmanager
def served(server: postgres.Postgres, log: Path) -> Iterator[postgres.Postgres]:
    """The embedded server, for as long as it is needed here. Raises StackError."""
    server.prepare()
    with log.open("ab") as output:
        process = subprocess.Popen(
            server.command(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - it does two system calls
        )
    try:
        given_up = time.monotonic() + START_SECONDS
        while not server._accepts():
            if process.poll() is not None or time.monotonic() > given_up:
                raise StackError(f"PostgreSQL does not start: see {log}")
            time.sleep(0.05)
        yield server
    finally:
        process.send_signal(postgres.STOP_SIGNAL)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def into_folder(file: Path, folder: Path, blobs: Blobs, *, replace: bool) -> Manifest:
    """Restore into a data folder whose lock the caller holds. Raises BackupError, StackError, Unavailable."""
    take_place(folder)
    if (folder / "postgres").exists() and not replace:
        raise BackupError(f"{folder} holds a platform already: --replace puts the backup in its place, and keeps it")
    making = folder / MAKING
    shutil.rmtree(making, ignore_errors=True)
    with backups.opened(file) as (archive, manifest):
        backups.verify(archive, manifest)
        _check_schema(manifest)
        _check_same(folder, manifest)
        making.mkdir(mode=0o700)
        backups.unpack(archive, manifest, "files", making)
        backups.unpack_blobs(archive, manifest, blobs)
        with served(postgres.find(making), making / "log") as server:
            database.bootstrap(server.url(postgres.SUPERUSER, "postgres"))
            _fill(server.url("cairn_owner"), archive, manifest)
    (making / "log").unlink()
    shutil.rmtree(making / "run", ignore_errors=True)
    data_folder.write(making / "stamp", _stamp())
    making.replace(folder / READY)  # from here on it is restored
    backups.sync_folder(folder)
    take_place(folder)
    return manifest


def _check_schema(manifest: Manifest) -> None:
    if migrations.standing(manifest.schema_revision) == "newer":
        raise BackupError(
            f"the backup was made by a newer version ({manifest.version}, schema {manifest.schema_revision}; this one "
            f"knows {migrations.newest()}): update this one first"
        )


def _check_same(folder: Path, manifest: Manifest) -> None:
    known = data_folder.read_installation(folder)
    if known is not None and known.installation != manifest.installation:
        raise BackupError(
            f"the backup is of the installation {manifest.installation}, and {folder} belongs to {known.installation}: "
            "restore it into a folder of its own (CAIRN_DATA_DIR)"
        )


def take_place(folder: Path) -> None:
    """Put what a restore has completed into its place; where one was interrupted, go on with it. Else nothing."""
    ready = folder / READY
    if not ready.exists():
        return
    if (ready / "stamp").exists():  # else it was interrupted in the last line, and all is in its place
        _move(ready, folder)
    shutil.rmtree(ready)


def _move(ready: Path, folder: Path) -> None:
    replaced = folder / REPLACED / (ready / "stamp").read_text().strip()
    replaced.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = ["postgres"] if (ready / "postgres").exists() else []
    names += [
        str(path.relative_to(ready))
        for path in sorted(ready.rglob("*"))
        if path.is_file() and path.relative_to(ready).parts[0] not in ("postgres", "stamp")
    ]
    for name in names:
        there, old = folder / name, replaced / name
        there.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if there.exists():
            old.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            there.replace(old)
        (ready / name).replace(there)
    for empty in (replaced, replaced.parent):
        if not any(empty.iterdir()):
            empty.rmdir()
    backups.sync_folder(folder)


def into_database(file: Path, url: str, blobs: Blobs, *, replace: bool) -> Manifest:
    """Restore into the database of ``url``, whose role owns it and may make others. Raises BackupError, psycopg.Error,
    Unavailable.

    The one that is replaced is renamed, in the transaction that gives the new one its name.
    """
    parts = urlsplit(url)
    name = parts.path.removeprefix("/")
    if not name:
        raise BackupError("CAIRN_DATABASE_URL names no database")
    fresh = f"{name}_restoring"
    admin = urlunsplit(parts._replace(path="/postgres"))
    with backups.opened(file) as (archive, manifest), psycopg.connect(admin, autocommit=True) as connection:
        backups.verify(archive, manifest)
        _check_schema(manifest)
        there = _look(connection, url, name)
        if there == "used" and not replace:
            raise BackupError(f"database {name} is not empty: --replace puts the backup in its place, and renames it")
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(fresh)))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(fresh)))
        _fill(urlunsplit(parts._replace(path=f"/{fresh}")), archive, manifest)
        backups.unpack_blobs(archive, manifest, blobs)
        _check_idle(connection, name)
        rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
        with connection.transaction():
            if there is not None:
                old = sql.Identifier(f"{name}_{REPLACED}_{_stamp().lower()}")
                connection.execute(rename.format(sql.Identifier(name), old))
            connection.execute(rename.format(sql.Identifier(fresh), sql.Identifier(name)))
    return manifest


def _look(connection: psycopg.Connection[tuple[object, ...]], url: str, name: str) -> str | None:
    """Whether the database is there: used, empty or None."""
    if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
        return None
    _check_idle(connection, name)
    with psycopg.connect(url) as inside:
        tables = inside.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    return "used" if tables and tables[0] else "empty"


def _check_idle(connection: psycopg.Connection[tuple[object, ...]], name: str) -> None:
    """Raises BackupError where somebody still uses it after IDLE_SECONDS, or comes meanwhile."""
    until = time.monotonic() + IDLE_SECONDS
    known = used = _used(connection, name)
    while used and used.keys() <= known.keys() and time.monotonic() < until:
        time.sleep(0.1)
        used = _used(connection, name)
    if used:
        said = f"{len(used)} connections: {', '.join(sorted(set(used.values())))}"
        raise BackupError(f"database {name} is in use ({said}): stop every API and worker first")


def _used(connection: psycopg.Connection[tuple[object, ...]], name: str) -> dict[object, str]:
    """Who is connected, by process and since when."""
    rows = connection.execute(
        "SELECT pid, backend_start, usename FROM pg_stat_activity"
        # Of other roles' connections only a superuser is told which kind they are; the server's own have no role.
        " WHERE datname = %s AND usename IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'",
        [name],
    )
    return {(pid, since): str(user) for pid, since, user in rows}


def _fill(owner_url: str, archive: zipfile.ZipFile, manifest: Manifest) -> None:
    backups.load(archive, manifest, owner_url)
    database.migrate(owner_url)
    with psycopg.connect(owner_url) as connection:
        _mark(connection, manifest)


def _mark(connection: psycopg.Connection[tuple[object, ...]], manifest: Manifest) -> None:
    """Say in the database that it is restored: nothing is removed or placed from its first moment on."""
    # The minute: more than any epoch before, whichever backups were restored since this one was made.
    epoch = max(manifest.epoch + 1, int(time.time() // 60))
    id = new_id()
    connection.execute("UPDATE installation SET epoch = %s", [epoch])
    connection.execute("UPDATE restores SET finished_at = now() WHERE finished_at IS NULL")
    connection.execute("INSERT INTO restores (id, backup_at, epoch) VALUES (%s, %s, %s)", [id, manifest.made_at, epoch])
    connection.execute("DELETE FROM restore_hosts")
    connection.execute("DELETE FROM restore_differences")
    connection.execute("DELETE FROM restore_trees")
    # What was used, ended or taken back since would be valid again.
    connection.execute("DELETE FROM host_tokens")
    connection.execute("UPDATE sessions SET ended_at = now() WHERE ended_at IS NULL")
    connection.execute("DELETE FROM password_resets")
    connection.execute("UPDATE invitations SET expires_at = now() WHERE accepted_at IS NULL AND expires_at > now()")
    connection.execute("UPDATE hosts SET inventory = NULL, reconciled = NULL, warning = NULL")
    told = {"backup_at": manifest.made_at.isoformat(), "epoch": epoch}
    connection.execute(
        "INSERT INTO events (project_id, type, resource_type, resource_id, data)"
        " SELECT id, 'platform.restored', 'platform', %s, %s FROM projects",
        [id, Jsonb(told)],
    )


def _stamp() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
