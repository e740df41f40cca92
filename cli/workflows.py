"""``cairn workflow``."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client, checked_id
from cli.completion import instances as instance_names
from cli.completion import workflows as workflow_ids
from cli.errors import CommandFailed, Exit, of_option, usage
from cli.listing import Listing, Table, print_list
from cli.options import between
from cli.progress import DEFAULT_TIMEOUT, Timeline, Timeout, Wait, require_completed, watch
from cli.render import All, Format, Limit, Output
from cli.resources import HELP, resource_id
from cli.routes import as_commands

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Look at workflows, wait for them, cancel and retry them."
)

WorkflowId = Annotated[str, typer.Argument(metavar="ID", help="Id of the workflow.", autocompletion=workflow_ids)]

#: Of the moves of a drain, how many are shown.
PARTS = 50


@app.command("list", epilog="Example: cairn workflow list --state failed --since 1h")
def list_(
    state: Annotated[
        str | None, typer.Option(help="Only in this state: accepted, running, completed, failed, cancelled.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Only of this kind, such as ProvisionInstance.")] = None,
    resource_type: Annotated[
        str | None,
        typer.Option(help="Only those of such resources: instance, group, load_balancer, session, image and so on."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only those of so long (30m, 24h, 7d), or from this time on (RFC 3339).")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only those from before this time, or so long ago.")] = None,
    instance: Annotated[
        str | None, typer.Option(help="Only those of this instance (name or id).", autocompletion=instance_names)
    ] = None,
    resource: Annotated[str | None, typer.Option(help=f"Only those of this {HELP}.")] = None,
    limit: Limit = 50,
    everything: All = False,
    output: Output = Format.TABLE,
) -> None:
    """List workflows, newest first."""
    after, before = between(since, until)
    if instance and resource:
        raise usage("give either --instance or --resource")
    with Client() as client:
        with of_option("--instance" if instance else "--resource"):
            found = resource_id(client, instance or resource or "") if instance or resource else None
        params = {"state": state, "kind": kind, "resource_type": resource_type, "resource_id": found}
        params |= {"created_after": after, "created_before": before}
        print_list(client, "/workflows", params, Listing(limit, everything, output), _TABLE)


@app.command(epilog="Example: cairn workflow show 0199b3f0-0000-7000-8000-000000000001")
def show(workflow: WorkflowId, output: Output = Format.TABLE) -> None:
    """Show one workflow and its steps; of a drain, also its moves."""
    with Client() as client:
        found = client.get(f"/workflows/{checked_id(workflow)}", steps="true")
        parts: list[dict[str, Any]] = []
        if found["kind"] == "DrainHost" and output is not Format.JSON:
            parts, _ = client.pages("/workflows", {"parent_id": found["id"]}, PARTS)
    _print(found, output)
    if parts:
        render.out().print("moves, newest first", style="bold")
        _TABLE.print(parts)


@app.command(epilog="Example: cairn workflow wait 0199b3f0-0000-7000-8000-000000000001 --timeout 60")
def wait(workflow: WorkflowId, timeout: Timeout = DEFAULT_TIMEOUT, output: Output = Format.TABLE) -> None:
    """Wait until a workflow ends; exits with 0 only where it completed."""
    with Client() as client:
        ended = watch(client, checked_id(workflow), timeout, asked=False)
    _print_end(ended, output)
    require_completed(ended)


@app.command(epilog="Example: cairn workflow cancel 0199b3f0-0000-7000-8000-000000000001")
def cancel(
    workflow: WorkflowId, wait: Wait = True, timeout: Timeout = DEFAULT_TIMEOUT, output: Output = Format.TABLE
) -> None:
    """Cancel a workflow; what it had done is undone. Exits with 1 where it completed all the same."""
    with Client() as client:
        accepted = client.request("POST", f"/workflows/{checked_id(workflow)}/cancel")["data"]
        if not wait:
            _print_end(accepted, output)
            return
        ended = watch(client, workflow, timeout)
    _print_end(ended, output)
    if ended["state"] != "cancelled":
        message = f"workflow {workflow} {ended['state']} before the cancel reached it"
        raise CommandFailed(message, "not_cancelled", Exit.FAILED, "remove what it made: cairn instance rm NAME")


@app.command(epilog="Example: cairn workflow retry 0199b3f0-0000-7000-8000-000000000001")
def retry(
    workflow: WorkflowId, wait: Wait = True, timeout: Timeout = DEFAULT_TIMEOUT, output: Output = Format.TABLE
) -> None:
    """Try a failed or cancelled workflow again, as a new one. Exits with 0 only where that completed.

    These can be: launch, start, stop, restart, pause, resume and rm of an instance, drain of a host. Everything else is
    asked for anew; an import that failed, after cairn image rm.
    """
    with Client() as client:
        client.about("workflow", workflow)
        accepted = client.request("POST", f"/workflows/{checked_id(workflow)}/retry")["data"]
        if not wait:
            _print_end(accepted, output)
            return
        render.say(f"retried as workflow {accepted['id']}")
        ended = watch(client, accepted["id"], timeout)
    _print_end(ended, output)
    require_completed(ended)


_TABLE = Table(
    ["ID", "KIND", "RESOURCE", "STATE", "TOOK", "AGE", "ERROR"],
    lambda row: [
        row["id"],
        row["kind"],
        _resource(row),
        row["state"],
        render.between(row.get("started_at"), row.get("finished_at")),
        render.age(row["created_at"]),
        str((row.get("error") or {}).get("code") or ""),
    ],
    wide=["TOOK", "ERROR"],
)


def _resource(workflow: dict[str, Any]) -> str:
    """An older platform does not say its name."""
    return str(workflow.get("resource_name") or workflow["resource_id"])


def _print_end(workflow: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(workflow)
    else:
        what = f"{workflow['kind']} {workflow.get('resource_name') or ''}".strip()
        print(render.clean(f"{what} {workflow['id']}"), render.status(workflow["state"]), sep="  ")


def _print(workflow: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(workflow)
        return
    error = workflow.get("error") or {}
    name, id = workflow.get("resource_name"), workflow["resource_id"]
    render.print_facts(
        [
            ("id", workflow["id"]),
            ("kind", workflow["kind"]),
            ("state", workflow["state"]),
            ("resource", f"{workflow['resource_type']} {name} ({id})" if name else f"{workflow['resource_type']} {id}"),
            ("actor", workflow.get("actor") or ""),
            ("retry of", workflow.get("retry_of") or ""),
            ("created", workflow["created_at"]),
            ("took", render.between(workflow.get("started_at"), workflow.get("finished_at"))),
            ("error", f"{as_commands(str(error.get('message')))} ({error.get('code')})" if error else ""),
            ("history", workflow.get("temporal_url") or ""),
        ]
    )
    if workflow.get("steps"):
        console = render.out()
        timeline = Timeline(console, indent="  ", live=False)
        if console.is_terminal:
            print(render.paint("steps", sys.stdout, bold=True), flush=True)
            timeline.show(workflow)
        else:
            render.print_lines(["steps", *(f"  {timeline.line(step)}" for step in workflow["steps"])])
