"""``cairn cron``."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

import typer

from cli import render
from cli.client import Client, is_id
from cli.completion import cron_jobs as job_names
from cli.errors import of_option, usage
from cli.listing import Listing, Table, print_list
from cli.options import pairs, seconds
from cli.render import All, Format, Limit, Output
from cli.several import remove_each
from cli.taking import taking
from model.secrets import new_webhook_secret

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Run things at certain times: requests, commands, workflows."
)

Name = Annotated[str, typer.Argument(help="Name or id.", show_default=False, autocompletion=job_names)]
Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Names or ids.", show_default=False, autocompletion=job_names)
]
Command = Annotated[
    list[str] | None,
    typer.Argument(metavar="-- CMD...", help="With --exec: what is run, after --.", show_default=False),
]
Url = Annotated[
    str | None, typer.Option(help="Send a request to this URL; without --secret one is made, and shown once.")
]
Method = Annotated[str, typer.Option(help="With --url: its method.")]
Header = Annotated[
    list[str] | None, typer.Option("--header", "-H", help="With --url: NAME=VALUE, or NAME=secret:SECRET. Repeatable.")
]
Body = Annotated[str | None, typer.Option(help="With --url: what is sent; JSON is sent as such.")]
Secret = Annotated[
    str | None,
    typer.Option(help="With --url: what requests are signed with, or secret:SECRET.", envvar="CAIRN_CRON_SECRET"),
]
Exec = Annotated[str | None, typer.Option("--exec", help="Run a command in this instance, by name or id.")]
Workflow = Annotated[str | None, typer.Option(help="Start a workflow of this kind, such as StopInstance.")]
Resource = Annotated[str | None, typer.Option(help="With --workflow: its instance, image or group.")]
Parameters = Annotated[str | None, typer.Option(help="With --workflow: the body of that request, as JSON.")]
TimeZone = Annotated[str | None, typer.Option("--time-zone", help="Of IANA's database (default: UTC).")]
Catchup = Annotated[str | None, typer.Option(help="A time that was missed by more is left out: 60s, 1h.")]
Label = Annotated[list[str] | None, typer.Option("--label", "-l", help="k=v; may be repeated.")]
Timeout = Annotated[str | None, typer.Option(help="Of a request or a command: 30s, 5m.")]


#: The kind of workflow that scales groups and deployments.
SCALES = "ScaleGroup"
#: Of the next times, in a line; JSON has all ten.
SHOWN = 3


class Overlap(StrEnum):
    SKIP = "skip"
    BUFFER_ONE = "buffer_one"
    BUFFER_ALL = "buffer_all"
    CANCEL_OTHER = "cancel_other"
    TERMINATE_OTHER = "terminate_other"
    ALLOW_ALL = "allow_all"


class State(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


Overlapping = Annotated[Overlap | None, typer.Option(help="What becomes of a time while the last still runs (skip).")]


class Said(NamedTuple):
    """What the options say of a job, whether it is new or not; ``fields``: None is what was not named."""

    request: dict[str, Any]
    exec: str | None
    command: list[str] | None
    workflow: dict[str, str | None]
    fields: dict[str, Any]

    @property
    def does(self) -> bool:
        """Whether they say what is done."""
        return bool(self.request["url"] or self.exec or self.workflow["kind"])


def _said(
    command: Command = None,
    url: Url = None,
    method: Method = "POST",
    header: Header = None,
    body: Body = None,
    secret: Secret = None,
    exec: Exec = None,
    workflow: Workflow = None,
    resource: Resource = None,
    parameters: Parameters = None,
    timeout: Timeout = None,
    time_zone: TimeZone = None,
    overlap: Overlapping = None,
    catchup: Catchup = None,
    label: Label = None,
) -> Said:
    return Said(
        {"url": url, "method": method, "header": header, "body": body, "secret": secret, "timeout": timeout},
        exec,
        command,
        {"kind": workflow, "resource": resource, "parameters": parameters},
        {
            "time_zone": time_zone,
            "overlap": overlap.value if overlap else None,
            "catchup_window_seconds": seconds("--catchup", catchup) if catchup else None,
            "labels": pairs("--label", label) or None,
        },
    )


@app.command(
    epilog='Example: cairn cron create nightly "30 2 * * *" --time-zone Europe/Berlin --url https://example.com'
)
@taking(_said)
def create(
    name: Annotated[str, typer.Argument(help="A name of your choice.", show_default=False)],
    schedule: Annotated[str, typer.Argument(help='Five fields, @hourly, or "@every 10s".', show_default=False)],
    given: Said,
    paused: Annotated[bool, typer.Option("--paused", help="Run nothing yet.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Run a request (--url), a command (--exec) or a workflow (--workflow) at certain times, in your name."""
    # Made here, so that a lost answer does not lose it: the API shows none again.
    secret = None if given.request["secret"] or not given.request["url"] else new_webhook_secret()
    given.request["secret"] = given.request["secret"] or secret
    job = {"name": name, "schedule": schedule, "target": _target(given), "paused": paused or None} | given.fields
    made = add(job)
    print_job(made if secret is None else made | {"secret": secret}, output)
    if secret is not None:
        render.say("keep the secret: it is not shown again")


def add(job: dict[str, Any]) -> dict[str, Any]:
    """Make a job of what is named."""
    with Client() as client:
        named = {what: value for what, value in job.items() if value is not None}
        made: dict[str, Any] = client.request("POST", "/cron/jobs", body=named)["data"]
        return made


@app.command("list", epilog="Example: cairn cron list -o json")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List cron jobs, newest first."""
    table = Table(
        ["NAME", "SCHEDULE", "TARGET", "NEXT", "ID"],
        lambda row: [row["name"], schedule_of(row), does(row), next_of(row), row["id"]],
        wide=["ID"],
    )
    with Client() as client:
        print_list(client, "/cron/jobs", {}, Listing(limit, everything, output), table)


def schedule_of(job: dict[str, Any]) -> str:
    return str(job["schedule"]) + ("" if job["time_zone"] == "UTC" else f" ({job['time_zone']})")


def next_of(job: dict[str, Any]) -> str:
    return "paused" if job["paused"] else str((job["next_runs"] or [""])[0])


@app.command(epilog="Example: cairn cron show nightly")
def show(name: Name, output: Output = Format.TABLE) -> None:
    """Show one cron job, with its next times."""
    with Client() as client:
        print_job(client.find("cron", name), output)


@app.command(epilog='Example: cairn cron update nightly --schedule "0 3 * * *" --overlap buffer_one')
@taking(_said)
def update(
    name: Name,
    *,
    rename: Annotated[str | None, typer.Option("--name", help="Another name.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Other times.")] = None,
    given: Said,
    output: Output = Format.TABLE,
) -> None:
    """Change a cron job; what is not named stays. From then on it runs in your name."""
    wanted = {"name": rename, "schedule": schedule, "target": _target(given) if given.does else None} | given.fields
    changes = {what: value for what, value in wanted.items() if value is not None}
    if not changes:
        raise usage("nothing to change", "name what: --schedule, --url, --exec, --workflow, --overlap, --name …")
    with Client() as client:
        job = client.find("cron", name)
        same = {what: job[what] for what in (*wanted, "paused")}
        path = f"/cron/jobs/{job['id']}"
        changed = client.build("PUT", path, json=same | changes, headers={"If-Match": f'"{job["version"]}"'})
        answer = client.send(changed)
        print_job(client.opened(answer.status_code, answer.content, path)["data"], output)


@app.command(epilog="Example: cairn cron rm nightly")
def rm(names: Names) -> None:
    """Forget cron jobs and their runs. One that is under way goes on."""
    remove_each(names, lambda client, name: client.path_of("cron", name))


@app.command(epilog="Example: cairn cron pause nightly")
def pause(name: Name) -> None:
    """Begin no more runs by the schedule."""
    _post(name, "pause")
    render.say(f"cron job {name} is paused")


@app.command(epilog="Example: cairn cron resume nightly")
def resume(name: Name) -> None:
    """Go on with the times that come."""
    job = _post(name, "resume")
    render.say(f"cron job {name} runs again, next at {(job['next_runs'] or ['no time'])[0]}")


@app.command(epilog="Example: cairn cron trigger nightly")
def trigger(name: Name, output: Output = Format.TABLE) -> None:
    """Run it now, once, beside whatever runs already."""
    run = _post(name, "trigger")
    if output is Format.JSON:
        render.print_json(run)
        return
    render.say(f"run {run['id']} begins; see: cairn cron runs {name} {run['id']}")


@app.command(epilog="Example: cairn cron backfill nightly --start 2026-11-01T00:00:00Z --end 2026-11-03T00:00:00Z")
def backfill(
    name: Name,
    start: Annotated[str, typer.Option(help="Times from here, as 2026-11-01T00:00:00Z.", show_default=False)],
    end: Annotated[str, typer.Option(help="Up to here, which is past.", show_default=False)],
) -> None:
    """Make up for times that are past: those that had no run, one after the other."""
    done = _post(name, "backfill", {"start": start, "end": end})
    render.say(f"{done['runs']} times are made up for; see: cairn cron runs {name}")


@app.command(epilog="Example: cairn cron runs nightly --state failed")
def runs(
    name: Name,
    run: Annotated[str | None, typer.Argument(help="The id of one, to show it with its output.")] = None,
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    limit: Limit = 50,
    everything: All = False,
    output: Output = Format.TABLE,
) -> None:
    """What became of its times, newest first; of one run, what was answered or written."""
    table = Table(
        ["TIME", "STATE", "ATTEMPTS", "ANSWER", "WORKFLOW", "ID"],
        lambda row: [
            row["scheduled_at"] + (" (by hand)" if row["manual"] else ""),
            row["state"],
            str(row["attempts"]),
            (row["error"] or {}).get("message") or ("" if row["status_code"] is None else str(row["status_code"])),
            row["workflow_id"] or "",
            row["id"],
        ],
        wide=["WORKFLOW"],
    )
    with Client() as client:
        path = f"{client.path_of('cron', name)}/runs"
        if run is None:
            print_list(client, path, {"state": state}, Listing(limit, everything, output), table)
            return
        shown = client.get(f"{path}/{run}")
    if output is Format.JSON:
        render.print_json(shown)
        return
    table.print([shown])
    if shown["output"]:
        typer.echo(shown["output"], nl=not shown["output"].endswith("\n"))
    if shown["truncated"]:
        render.say("there was more, which is not kept")


def _post(name: str, verb: str, body: dict[str, Any] | None = None) -> Any:
    with Client() as client:
        path = f"{client.path_of('cron', name)}/{verb}"
        return client.request("POST", path, body=body)["data"]


def _target(said: Said) -> dict[str, Any]:
    request, exec, workflow = said.request, said.exec, said.workflow
    if sum(map(bool, (request["url"], exec, workflow["kind"]))) != 1:
        raise usage("say what is done", "one of --url URL, --exec INSTANCE -- CMD..., --workflow KIND")
    timeout = {"timeout": seconds("--timeout", request["timeout"])} if request["timeout"] else {}
    if request["url"]:
        headers = {name: _value(value) for name, value in pairs("--header", request["header"]).items()}
        http = {"url": request["url"], "method": request["method"], "headers": headers} | timeout
        more = {"body": _json(request["body"]), "secret": _value(request["secret"]) if request["secret"] else None}
        return {"http": http | {name: value for name, value in more.items() if value is not None}}
    if exec:
        if not said.command:
            raise usage("say what is run", f"cairn cron … --exec {exec} -- CMD...")
        return {"exec": {"instance_id" if is_id(exec) else "name": exec, "cmd": said.command} | timeout}
    parameters = _json(workflow["parameters"] or "{}")
    if not isinstance(parameters, dict):
        raise usage("--parameters: expected a JSON object")
    kind, wanted = str(workflow["kind"]), workflow["resource"]
    about = {"resource_id": _resource_id(kind, wanted, parameters)} if wanted else {}
    return {"workflow": {"kind": kind, "parameters": parameters} | about}


def _resource_id(kind: str, wanted: str, parameters: dict[str, Any]) -> str:
    """An id as it is; else that of the instance, image, group or deployment of this name."""
    if is_id(wanted):
        return wanted
    with Client() as client, of_option("--resource"):
        if kind == "DeleteImage":
            return str(client.find("image", wanted)["id"])
        if kind != SCALES:
            return str(client.find("instance", wanted)["id"])
        return str(client.find("deployment" if "replicas" in parameters else "group", wanted)["id"])


def _value(value: str) -> Any:
    return {"secret": value.removeprefix("secret:")} if value.startswith("secret:") else value


def _json(value: str | None) -> Any:
    """What is JSON is taken as such, everything else as text."""
    try:
        found = json.loads(value or "null")
    except ValueError:
        return value
    return found if isinstance(found, dict | list) else value


def does(job: dict[str, Any]) -> str:
    """What is done, in a line."""
    ((kind, target),) = job["target"].items()
    if kind == "http":
        return f"{target['method']} {target['url']}"
    if kind == "exec":
        return f"exec {target.get('name') or target['instance_id']}: {' '.join(target['cmd'])}"
    words = [target["kind"], target.get("resource_id", "")]
    if target["kind"] == SCALES:
        words.append(numbers_of(job))
    return " ".join(filter(None, words))


def numbers_of(job: dict[str, Any]) -> str:
    """What a job that scales says of numbers."""
    return " ".join(f"{name}={number}" for name, number in job["target"]["workflow"]["parameters"].items())


def print_job(job: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(job)
        return
    render.print_facts(
        [
            ("name", job["name"]),
            ("id", job["id"]),
            ("schedule", f"{job['schedule']} {job['time_zone']}"),
            ("state", "paused" if job["paused"] else "active"),
            ("target", does(job)),
            ("overlap", job["overlap"]),
            ("catch-up", f"{job['catchup_window_seconds']} s"),
            ("in the name of", job["owner"]),
            ("next", ", ".join(job["next_runs"][:SHOWN])),
            ("secret", job.get("secret") or ""),
            ("created", f"{job['created_at']} ({render.age(job['created_at'])} ago)"),
        ]
    )
