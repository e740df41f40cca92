"""``cairn group schedule`` and ``schedules``, and the same of deployments; with them both programs are whole."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.client import Client
from cli.cron import SCALES, TimeZone, add, next_of, numbers_of, print_job, schedule_of
from cli.errors import usage
from cli.group_options import Least, Most
from cli.group_policies import groups
from cli.groups import DEPLOYMENT, GROUP, Name, Noun, deployments
from cli.listing import Listing, Table, print_list
from cli.render import All, Format, Limit, Output

__all__ = ["deployments", "groups"]

Times = Annotated[str, typer.Option("--cron", help='When: five fields, @hourly, or "@every 10s".', show_default=False)]
Called = Annotated[str | None, typer.Option("--name", help="What the cron job is called (default: such as web-to-6).")]


@groups.command(epilog="Example: cairn group schedule web --cron '0 8 * * 1-5' --desired 6 --time-zone Europe/Berlin")
def schedule(
    name: Name,
    cron: Times,
    desired: Annotated[int | None, typer.Option(help="Members that there should be from then on.")] = None,
    least: Least = None,
    most: Most = None,
    called: Called = None,
    time_zone: TimeZone = None,
    output: Output = Format.TABLE,
) -> None:
    """Scale a group at certain times, by a cron job in your name."""
    numbers = {"desired_count": desired, "min_instances": least, "max_instances": most}
    _schedule(GROUP, name, numbers, {"name": called, "schedule": cron, "time_zone": time_zone}, output)


@deployments.command("schedule", epilog="Example: cairn deployment schedule web --cron '0 20 * * *' --replicas 1")
def schedule_deployment(
    name: Name,
    cron: Times,
    replicas: Annotated[int, typer.Option(help="How many there should be from then on.", show_default=False)],
    called: Called = None,
    time_zone: TimeZone = None,
    output: Output = Format.TABLE,
) -> None:
    """Scale a deployment at certain times, by a cron job in your name."""
    job = {"name": called, "schedule": cron, "time_zone": time_zone}
    _schedule(DEPLOYMENT, name, {"replicas": replicas}, job, output)


def _schedule(noun: Noun, name: str, numbers: dict[str, int | None], job: dict[str, Any], output: Format) -> None:
    named = {field: number for field, number in numbers.items() if number is not None}
    if not named:
        raise usage("say how many: --desired, --min or --max")
    with Client() as client:
        row = client.find(noun.noun, name)
    job["name"] = job["name"] or f"{row['name']}-{f'to-{named[noun.desired]}' if noun.desired in named else 'bounds'}"
    target = {"workflow": {"kind": SCALES, "resource_id": row["id"], "parameters": named}}
    print_job(add(job | {"target": target}), output)


def _list(noun: Noun) -> None:
    @noun.app.command("schedules", epilog=f"Example: cairn {noun.noun} schedules web")
    def schedules(name: Name, limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
        """The cron jobs that scale it, newest first; see cairn cron for what may be done with them."""
        table = Table(
            ["NAME", "SCHEDULE", "NUMBERS", "NEXT", "ID"],
            lambda row: [row["name"], schedule_of(row), numbers_of(row), next_of(row), row["id"]],
            wide=["ID"],
        )
        with Client() as client:
            asked = {"resource_id": client.find(noun.noun, name)["id"]}
            print_list(client, "/cron/jobs", asked, Listing(limit, everything, output), table)


_list(GROUP)
_list(DEPLOYMENT)
