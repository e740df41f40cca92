"""``cairn backup``: one file with the database and what else makes this installation what it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import psycopg
import typer

from cli import render
from cli.errors import CommandFailed, Exit
from cli.settings import read_settings
from model.settings import Settings
from worker import backups, data_folder, postgres, restoring
from worker.backups import BackupError, Manifest
from worker.data_folder import StackError

File = Annotated[Path, typer.Argument(help="The backup.", show_default=False)]
Blobs = Annotated[bool, typer.Option("--blobs", help="With uploaded and downloaded images.")]
List = Annotated[bool, typer.Option("--list", help="Say what is in a backup.")]
Verify = Annotated[bool, typer.Option("--verify", help="Read all of a backup, and compare with its digests.")]


@contextmanager
def failing() -> Iterator[None]:
    """Errors of backups as those of commands."""
    try:
        yield
    except (BackupError, StackError) as error:
        raise CommandFailed(str(error), "backup_failed", Exit.FAILED) from None
    except (psycopg.Error, OSError) as error:
        raise CommandFailed(str(error).strip(), "backup_failed", Exit.FAILED) from None


def is_external(settings: Settings) -> bool:
    """Whether the database is one that CAIRN_DATABASE_URL names, not that of the data folder."""
    return "database_url" in settings.model_fields_set


def backup(
    file: File,
    blobs: Blobs = False,
    listing: List = False,
    verify: Verify = False,
    output: render.Output = render.Format.TABLE,
) -> None:
    """Back the platform up into a file, also while it runs; the file holds its secrets."""
    settings = read_settings()
    with failing():
        if listing or verify:
            with backups.opened(file) as (archive, manifest):
                if verify:
                    backups.verify(archive, manifest)
                    render.say("every digest is right")
        else:
            manifest = _make(settings, file.absolute(), blobs)
        show(manifest, output)


def _make(settings: Settings, file: Path, blobs: bool) -> Manifest:
    folder = settings.data_dir.absolute()
    store = (settings.blobs_dir or folder / "blobs") if blobs else None
    if store is not None and settings.blobs_s3_bucket:
        raise BackupError("images are in a bucket (CAIRN_BLOBS_S3_BUCKET): back that up by its own means")
    if is_external(settings):
        return backups.write(file, settings.database_url.get_secret_value(), None, store)
    if data_folder.read_installation(folder) is None:
        raise BackupError(f"no platform ever ran on {folder}: name its folder with CAIRN_DATA_DIR")
    server = postgres.find(folder)
    url = server.url(postgres.SUPERUSER)
    if data_folder.owner(folder):
        return backups.write(file, url, folder, store)
    with data_folder.locked(folder), restoring.served(server, folder / "logs" / "postgres.log"):
        return backups.write(file, url, folder, store)


def show(manifest: Manifest, output: render.Format) -> None:
    if output is render.Format.JSON:
        render.print_json(manifest.model_dump(mode="json"))
        return
    render.print_facts(
        [
            ("installation", str(manifest.installation)),
            ("made", manifest.made_at.isoformat()),
            ("version", f"{manifest.version}, schema {manifest.schema_revision}, PostgreSQL {manifest.postgres_major}"),
            ("rows", ", ".join(f"{count} {name}" for name, count in manifest.counts.items())),
            ("members", ", ".join(f"{m.name} ({render.size(m.size)})" for m in manifest.members)),
        ]
    )
