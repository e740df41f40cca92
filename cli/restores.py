"""``cairn restore``: put a backup in the place of the platform, and decide about what differs since it was made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli import render
from cli.backups import failing, is_external, show, url_of
from cli.client import Client, workflow_of
from cli.errors import CommandFailed, Exit, usage
from cli.options import cannot_open
from cli.progress import DEFAULT_TIMEOUT, Timeout, Wait, require_completed, watch
from cli.render import Format, Output
from cli.settings import read_settings
from cli.several import end
from worker import backups, blob_store, data_folder, restoring

#: What each decision can be about.
ADOPTED = ("machine_without_row", "machine_differs")
FORGOTTEN = ("row_without_machine", "row_without_run", "run_without_row")


class Restore(TyperGroup):
    """What is no command of it is the file of a backup."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["from", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Restore,
    no_args_is_help=True,
    add_completion=False,
    help="Restore a backup (cairn restore FILE), and decide about what differs since it was made.",
)
Ids = Annotated[list[str] | None, typer.Argument(help="Ids, as status shows them.", show_default=False)]
Everything = Annotated[bool, typer.Option("--all", help="Every one that this can be done to.")]


@app.command("from", epilog="Example: cairn restore from cairn.backup --replace")
def restore(
    file: Annotated[Path, typer.Argument(help="The backup.", show_default=False)],
    replace: Annotated[bool, typer.Option("--replace", help="In the place of what is there, which is kept.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Restore a backup. The platform must not run."""
    try:
        file.open("rb").close()  # first of all: whatever else is wrong, nothing can come of it
    except OSError as error:
        raise usage(cannot_open(str(file), error)) from None
    settings = read_settings()
    if replace and not yes and not (sys.stdin.isatty() and typer.confirm("Replace the platform by the backup?")):
        raise CommandFailed("nothing was restored", "not_confirmed", Exit.REFUSED, "confirm with --yes")
    with failing():
        blobs = blob_store.connect(settings)
        if is_external(settings):
            manifest = restoring.into_database(file, url_of(settings), blobs, replace=replace)
        else:
            folder = data_folder.make(settings.data_dir)
            with data_folder.locked(folder):
                manifest = restoring.into_folder(file.absolute(), folder, blobs, replace=replace)
    show(manifest, output)
    if images := sum(member.name.startswith(f"{backups.BLOBS}/") for member in manifest.members):
        place = blob_store.place_of(settings)
        render.say(f"its images ({images}) are in {place}: the platform must look for them there")
    render.say("restored: start the platform, then see what differs with 'cairn restore status'")


@app.command(epilog="Example: cairn restore status -o json")
def status(output: Output = Format.TABLE) -> None:
    """What differs between database, Temporal and engines since the restore, by name."""
    with Client() as client:
        found = client.get("/operations/restore")
    if output is Format.JSON:
        render.print_json(found)
        return
    facts = [("state", found["state"])]
    if found["state"] != "never":
        names = ("backup_at", "restored_at", "finished_at", "looked_at")
        facts += [(name.removesuffix("_at"), found[name] or "not yet") for name in names]
    render.print_facts(facts)
    if found["differences"]:
        render.print_table(
            ["KIND", "NAME", "HOST", "GENERATION", "WHAT", "PROJECT", "ID"],
            [
                [
                    *(d["kind"], d["name"], d["host"] or "", str(d["generation"] or "")),
                    *(d["what"], d["project_id"] or "", d["id"] or ""),
                ]
                for d in found["differences"]
            ],
            wide=["WHAT", "PROJECT", "ID"],
        )


@app.command(epilog="Example: cairn restore adopt --all")
def adopt(
    ids: Ids = None, everything: Everything = False, wait: Wait = True, timeout: Timeout = DEFAULT_TIMEOUT
) -> None:
    """Make rows of machines, as they are. They are not touched."""
    _decide("adopt", ids, ADOPTED if everything else (), wait, timeout)


@app.command(epilog="Example: cairn restore forget --all")
def forget(
    ids: Ids = None, everything: Everything = False, wait: Wait = True, timeout: Timeout = DEFAULT_TIMEOUT
) -> None:
    """End instances whose machine is gone, workflows whose run has ended, runs that no row knows."""
    _decide("forget", ids, FORGOTTEN if everything else (), wait, timeout)


@app.command(epilog="Example: cairn restore discard 0199b3f0-0000-7000-8000-000000000001")
def discard(
    ids: Annotated[list[str], typer.Argument(help="Ids, as status shows them.", show_default=False)],
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
) -> None:
    """Remove the machines that are named, for good."""
    _decide("discard", ids, (), wait, timeout)


@app.command(epilog="Example: cairn restore finish --leave rack-7")
def finish(
    leave: Annotated[
        list[str] | None, typer.Option("--leave", help="An id, or a host's name, that stays as it is; repeatable.")
    ] = None,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
) -> None:
    """Let the platform work as before, where nothing is undecided."""
    with Client() as client:
        envelope = client.request("POST", "/operations/restore/finish", body={"leave": leave or []})
        _end(client, envelope, "finish", "finished: the platform works as before", wait, timeout)


def _decide(verb: str, ids: list[str] | None, kinds: tuple[str, ...], wait: bool, timeout: float) -> None:
    """One after the other: each is a workflow. One that fails does not keep the others from being tried."""
    failures: list[CommandFailed] = []
    with Client() as client:
        found = client.get("/operations/restore")["differences"]
        chosen = list(
            dict.fromkeys([*(ids or []), *(d["id"] for d in found if d["kind"] in kinds and d["blocks"] and d["id"])])
        )
        if not chosen and not kinds:
            raise CommandFailed(f"nothing to {verb}: name ids, or --all", "nothing_named", Exit.USAGE)
        for id in chosen:
            try:
                envelope = client.request("POST", f"/operations/restore/{id}/{verb}")
                what = f"{verb} {envelope['data']['name']}"
                _end(client, envelope, what, f"{what}: done", wait, timeout)
            except CommandFailed as failure:
                failures.append(failure)
    end(failures)


def _end(client: Client, envelope: Any, what: str, done: str, wait: bool, timeout: float) -> None:
    workflow_id = str(workflow_of(envelope))
    if not wait:
        render.say(f"{what} accepted; wait for it: cairn workflow wait {workflow_id}")
        return
    require_completed(watch(client, workflow_id, timeout))
    render.say(done)
