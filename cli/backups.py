"""``cairn backup``: one file with the database and what else makes this installation what it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import psycopg
import typer

from cli import render
from cli.errors import CommandFailed, Exit, usage
from cli.options import cannot_open, new_file
from cli.settings import read_settings
from model.errors import CairnError
from model.settings import Settings
from worker import backups, blob_store, data_folder, postgres, restoring
from worker.backups import BackupError, Manifest
from worker.data_folder import StackError

File = Annotated[Path, typer.Argument(help="The backup.", show_default=False)]
Blobs = Annotated[bool, typer.Option("--blobs", help="With uploaded and downloaded images.")]
List = Annotated[bool, typer.Option("--list", help="Say what is in a backup.")]
Verify = Annotated[bool, typer.Option("--verify", help="Read all of a backup, and compare with its digests.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


#: Images that a refusal names.
NAMED = 10


@contextmanager
def failing() -> Iterator[None]:
    """Errors of backups as those of commands."""
    try:
        yield
    except (BackupError, StackError) as error:
        raise CommandFailed(str(error), "backup_failed", Exit.FAILED) from None
    except CairnError as error:  # of the blob store
        raise CommandFailed(error.message, "backup_failed", Exit.FAILED) from None
    except OSError as error:
        message = cannot_open(error.filename, error) if isinstance(error.filename, str) else str(error)
        raise CommandFailed(message, "backup_failed", Exit.FAILED) from None
    except psycopg.Error as error:
        raise CommandFailed(str(error).strip(), "backup_failed", Exit.FAILED) from None


def is_external(settings: Settings) -> bool:
    """Whether the database is one that CAIRN_DATABASE_URL names, not that of the data folder."""
    return "database_url" in settings.model_fields_set


def url_of(settings: Settings) -> str:
    """Of an external database, with its password. Raises BackupError."""
    try:
        return settings.database
    except ValueError as error:
        raise BackupError(str(error)) from None


def backup(
    file: File,
    blobs: Blobs = False,
    listing: List = False,
    verify: Verify = False,
    force: Force = False,
    output: render.Output = render.Format.TABLE,
) -> None:
    """Back the platform up into a file, also while it runs; the file holds its secrets."""
    settings = read_settings()
    without: list[str] = []
    with failing():
        if listing or verify:
            with backups.opened(file) as (archive, manifest):
                if verify:
                    backups.verify(archive, manifest)
                    render.say("every digest is right")
        else:
            new_file("FILE", file)
            if not force and os.path.lexists(file):
                message = f"FILE {file}: it is there already, and was left as it is"
                raise usage(message, "name another, or replace it with --force")
            manifest, without = _make(settings, file.absolute(), blobs)
        show(manifest, output)
    if without:
        raise CommandFailed(
            f"it was made without {len(without)} images, whose files are not in {blob_store.place_of(settings)}: "
            + ", ".join(without[:NAMED]),
            "images_missing",
            Exit.FAILED,
            "are they kept there (CAIRN_BLOBS_DIR)? Delete images whose files are lost, and upload them again",
        )


def _make(settings: Settings, file: Path, blobs: bool) -> tuple[Manifest, list[str]]:
    """The backup, and images that should be in it."""
    folder = settings.data_dir.absolute()
    if blobs and settings.blobs_s3_bucket:
        raise BackupError("images are in a bucket (CAIRN_BLOBS_S3_BUCKET): back that up by its own means")
    if blobs and is_external(settings) and settings.model_fields_set.isdisjoint({"blobs_dir", "data_dir"}):
        raise BackupError(
            "--blobs: CAIRN_DATABASE_URL does not tell where that platform's images are: say it with CAIRN_BLOBS_DIR "
            "(or CAIRN_DATA_DIR, where they are in its folder blobs)"
        )
    store = blob_store.connect(settings) if blobs else None

    def write(url: str, files: Path | None) -> tuple[Manifest, list[str]]:
        made = backups.write(file, url, files, store)
        return made, backups.without_file(url, made) if blobs else []

    if is_external(settings):
        return write(url_of(settings), None)
    if data_folder.read_installation(folder) is None:
        raise BackupError(f"no platform ever ran on {folder}: name its folder with CAIRN_DATA_DIR")
    server = postgres.find(folder)
    url = server.url(postgres.SUPERUSER)
    if data_folder.owner(folder):
        return write(url, folder)
    with data_folder.locked(folder), restoring.served(server, folder / "logs" / "postgres.log"):
        return write(url, folder)


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
