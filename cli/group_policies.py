"""``cairn group policy``, ``policies``, ``metric`` and ``remove-policy``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client
from cli.errors import CommandFailed, Exit, usage
from cli.groups import Name, groups
from cli.listing import Listing, Table, print_list
from cli.options import Seconds, duration
from cli.render import Format, Output

__all__ = ["groups"]

#: What is not pushed: agents and load balancers measure it. (The model's table of it takes long to load.)
MEASURED = ("cpu", "memory", "requests")
PERCENT = 100
POLICIES = Table(
    ["NAME", "METRIC", "TARGET", "STEPS", "COOLDOWN", "ACTED", "ID"],
    lambda row: [
        *(row["name"], row["metric_type"], f"{row['target_value']:g}", _steps(row), f"{row['cooldown_sec']}s"),
        *(row["acted_at"] or "", row["id"]),
    ],
    wide=["ID"],
)


def _steps(row: dict[str, Any]) -> str:
    out, in_ = row["scale_out_step"], row["scale_in_step"]
    return f"+{out} -{in_}" if out is not None else ""


@groups.command(epilog="Example: cairn group policy web cpu --metric cpu --target 60")
def policy(
    group: Name,
    name: Annotated[str, typer.Argument(metavar="POLICY", help="What it is called.", show_default=False)],
    target: Annotated[float, typer.Option(help="Of the mean of all members.", show_default=False)],
    metric: Annotated[
        str, typer.Option(help="cpu or memory, in percent; requests a second; or what is pushed.")
    ] = "cpu",
    out: Annotated[int | None, typer.Option("--out", help="So many more at once; with --in: both, or none.")] = None,
    in_: Annotated[int | None, typer.Option("--in", help="So many fewer at once; with --out.")] = None,
    cooldown: Annotated[
        float, typer.Option(parser=duration, metavar="TIME", help="Between two changes: 5m.")
    ] = Seconds(60),
    output: Output = Format.TABLE,
) -> None:
    """Scale a group by what is measured. Every 30 s that is looked at.

    Without --out and --in there are as many members as bring the metric to its target.
    """
    body: dict[str, Any] = {"name": name, "metric_type": metric, "target_value": target, "cooldown_sec": cooldown}
    body |= {field: value for field, value in (("scale_out_step", out), ("scale_in_step", in_)) if value is not None}
    if metric in MEASURED[:2] and target > PERCENT:
        raise usage(f"--target {target:g}: {metric} is in percent of what members have: at most 100")
    with Client() as client:
        path = f"{client.path_of('group', group)}/policies"
        made = client.request("POST", path, body=body)["data"]
    if output is Format.JSON:
        render.print_json(made)
    else:
        shown = POLICIES.cells(made)
        render.print_facts([(label.lower(), value) for label, value in zip(POLICIES.headers, shown, strict=True)])


@groups.command(epilog="Example: cairn group policies web")
def policies(group: Name, output: Output = Format.TABLE) -> None:
    """List a group's policies."""
    with Client() as client:
        path = f"{client.path_of('group', group)}/policies"
        print_list(client, path, {}, Listing(50, True, output), POLICIES)


@groups.command(epilog="Example: cairn group metric web queue_length 17")
def metric(
    group: Name,
    name: Annotated[str, typer.Argument(metavar="METRIC", help="As its policies call it.", show_default=False)],
    value: Annotated[float, typer.Argument(min=0, help="The mean of all members.", show_default=False)],
) -> None:
    """Say what a metric of your own is now. It is of use for two minutes."""
    if name in MEASURED:
        raise usage(
            f"{name} is measured by Cairn itself: what is pushed of it would not count",
            f"call yours otherwise, here and in its policy: cairn group policy {group} NAME --metric my_{name}",
        )
    with Client() as client:
        path = f"{client.path_of('group', group)}/metrics"
        taken = client.request("POST", path, body={"metric_type": name, "value": value})["data"]["policies"]
    if taken:
        render.say(f"{name} of {group} is {value:g}; policies that go by it: {taken}")
    else:
        render.say(f"warning: no policy of {group} goes by {name}: see them with cairn group policies {group}")


@groups.command("remove-policy", epilog="Example: cairn group remove-policy web cpu")
def remove_policy(
    group: Name, name: Annotated[str, typer.Argument(metavar="POLICY", help="What it is called.", show_default=False)]
) -> None:
    """Delete a policy; the group stays as it is."""
    with Client() as client:
        path = f"{client.path_of('group', group)}/policies"
        found = [row["id"] for row in client.get(path) if name in (row["name"], row["id"])]
        if not found:
            message, hint = f"group {group} has no policy '{name}'", f"see them: cairn group policies {group}"
            raise CommandFailed(message, "not_found", Exit.NOT_FOUND, hint)
        client.request("DELETE", f"/autoscaling/policies/{found[0]}")
        render.say(f"policy {name} of {group} is deleted")
