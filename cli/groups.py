"""``cairn group`` and ``cairn deployment``: the same, of which each has its own names for its numbers."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, NamedTuple

import typer

from cli import group_views, render
from cli.client import Client
from cli.completion import groups as group_names
from cli.ending import Ending, Kind, each, finish, kind_of
from cli.errors import CommandFailed, usage
from cli.group_options import Backend, Image, Least, Most, named, said
from cli.listing import Listing, Table, print_list
from cli.progress import DEFAULT_TIMEOUT, Timeout, Wait
from cli.render import All, Format, Limit, Output
from cli.routes import PATHS, as_commands
from cli.taking import taking

groups = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Instances from one template, as many as desired."
)
deployments = typer.Typer(no_args_is_help=True, add_completion=False, help="An image, so many times.")


class Noun(NamedTuple):
    """``desired``, ``ready``, ``updated``: the fields that say how many."""

    app: typer.Typer
    noun: str
    desired: str
    ready: str
    updated: str

    @property
    def path(self) -> str:
        return PATHS[self.noun]

    @property
    def kind(self) -> Kind:
        return kind_of(self.noun, self.show, group_views.status, group_views.names)

    def numbers(self, row: dict[str, Any]) -> str:
        return f"{row[self.ready]}/{row[self.desired]}"

    def show(self, row: dict[str, Any], output: Format) -> None:
        if output is Format.JSON:
            render.print_json(row)
        else:
            group_views.show(row, self.numbers(row), row[self.updated])


GROUP = Noun(groups, "group", "desired_count", "ready_count", "updated_count")
DEPLOYMENT = Noun(deployments, "deployment", "replicas", "ready_replicas", "updated_replicas")

#: What the API says of a number that the group's own bounds refuse.
_BOUNDS = re.compile(r"is not within .*, (\d+ to \d+): \d+")
Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Names or ids.", show_default=False, autocompletion=group_names)
]
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name or id.", show_default=False, autocompletion=group_names)
]


def _count(written: str) -> int:
    """Not +1, which reads as one more, and would be one. Raises BadParameter."""
    if not re.fullmatch(r"\d{1,6}", str(written)):
        raise typer.BadParameter(f"{written}: expected how many there should be, such as 3")
    return int(written)


@groups.command("create", epilog="Example: cairn group create web --image cairn/base:latest --max 5 --desired 2")
@taking(said)
def create_group(
    name: Annotated[str, typer.Argument(help="Its name; members are named after it.")],
    *,
    image: Image = "cairn/base:latest",
    least: Least = None,
    most: Annotated[
        int | None,
        typer.Option("--max", help="Most members (default: as many as desired, or 1).", show_default=False),
    ] = None,
    desired: Annotated[
        int | None, typer.Option(help="Members that there should be (default: the fewest, 0 without --min).")
    ] = None,
    backend: Backend = None,
    given: dict[str, Any],
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Make a group, and launch its members."""
    most = max(1, least or 0, desired or 0) if most is None else most
    numbers = {"min_instances": least, "max_instances": most, "desired_count": desired}
    body = {"name": name} | given | named({"image": image, "backend": backend} | numbers)
    _create(GROUP, body, Ending(wait, timeout, output))
    if not desired and not least:
        render.say(f"group {name} begins without members: more with --desired or --min, or cairn group scale {name} N")


@deployments.command("create", epilog="Example: cairn deployment create web --image cairn/base:latest --replicas 3")
@taking(said)
def create_deployment(
    name: Annotated[str, typer.Argument(help="Its name; replicas are named after it.")],
    *,
    image: Image = "cairn/base:latest",
    replicas: Annotated[int, typer.Option(help="How many there should be.")] = 1,
    backend: Backend = None,
    given: dict[str, Any],
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Make a deployment, and launch its replicas."""
    body = {"name": name} | given | named({"image": image, "backend": backend, "replicas": replicas})
    _create(DEPLOYMENT, body, Ending(wait, timeout, output))


@groups.command("update", epilog="Example: cairn group update web --image cairn/base:2 --max 8")
@taking(said)
def update_group(
    name: Name,
    *,
    image: Image = None,
    least: Least = None,
    most: Most = None,
    given: dict[str, Any],
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Change a group; members of another image, type, environment … are replaced. What is not named stays."""
    body = given | named({"image": image, "min_instances": least, "max_instances": most})
    _change(GROUP, name, body, Ending(wait, timeout, output))


@deployments.command("update", epilog="Example: cairn deployment update web --image cairn/base:2")
@taking(said)
def update_deployment(
    name: Name,
    *,
    image: Image = None,
    given: dict[str, Any],
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Change a deployment; replicas of another image, type, environment … are replaced. What is not named stays."""
    _change(DEPLOYMENT, name, given | named({"image": image}), Ending(wait, timeout, output))


def _change(noun: Noun, name: str, body: dict[str, Any], ending: Ending) -> None:
    if not body:
        raise usage("nothing to change", f"name what, such as --image: see cairn {noun.noun} update --help")
    _ask(noun, name, ("PATCH", ""), body, "update", ending)


def _create(noun: Noun, body: dict[str, Any], ending: Ending) -> None:
    with Client() as client:
        client.about(noun.noun, body["name"])
        finish(client, [client.request("POST", noun.path, body=body)], "create", ending, noun.kind)


def _ask(noun: Noun, name: str, route: tuple[str, str], body: dict[str, Any], verb: str, ending: Ending) -> None:
    """``route``: the method, and what follows the path of the one of this name."""
    method, suffix = route
    with Client() as client:
        path = f"{client.path_of(noun.noun, name)}{suffix}"
        finish(client, [client.request(method, path, body=body)], verb, ending, noun.kind)


def _common(noun: Noun) -> None:
    """The commands that both have."""
    app, kind, example = noun.app, noun.kind, f"Example: cairn {noun.noun}"

    @app.command("list", epilog=f"{example} list")
    def list_(
        status: Annotated[str | None, typer.Option(help="Only in this state.")] = None,
        limit: Limit = 50,
        everything: All = False,
        output: Output = Format.TABLE,
    ) -> None:
        """List them, newest first."""
        table = Table(
            ["NAME", "STATUS", "READY", "IMAGE", "CONFIGURATION", "AGE", "ID"],
            lambda row: [
                *(row["name"], group_views.status(row), noun.numbers(row), row["image"], str(row["revision"])),
                *(render.age(row["created_at"]), row["id"]),
            ],
            wide=["ID"],
        )
        with Client() as client:
            print_list(client, noun.path, {"status": status}, Listing(limit, everything, output), table)

    @app.command(epilog=f"{example} show web")
    def show(name: Name, output: Output = Format.TABLE) -> None:
        """Show one, and its members."""
        with Client() as client:
            row = client.find(noun.noun, name)
            noun.kind.display(client, row, output)
            if output is Format.TABLE:
                group_views.show_members(client, row)

    # So that -1 is a number which is refused, and no option.
    @app.command(epilog=f"{example} scale web 5", context_settings={"ignore_unknown_options": True})
    def scale(
        name: Name,
        number: Annotated[
            int, typer.Argument(metavar="N", parser=_count, help="How many there should be.", show_default=False)
        ],
        wait: Wait = True,
        timeout: Timeout = DEFAULT_TIMEOUT,
        output: Output = Format.TABLE,
    ) -> None:
        """Another number of members. A newer wish takes the place of one that is under way."""
        _scale(noun, name, number, Ending(wait, timeout, output))

    @app.command(epilog=f"{example} configurations web")
    def configurations(name: Name, output: Output = Format.TABLE) -> None:
        """What members are made from, and what rollback can go back to, newest first."""
        with Client() as client:
            rows = client.get(f"{client.path_of(noun.noun, name)}/configurations")
        if output is not Format.TABLE:
            render.print_json(rows)
            return
        render.print_table(
            ["REVISION", "IMAGE", "TYPE", "CMD", "NOW", "ALL HAD IT", "AGE"],
            [
                [
                    *(str(row["revision"]), row["image"], row["instance_type"], " ".join(row["cmd"] or [])),
                    *("*" if row["current"] else "", render.age(row["rolled_out_at"]), render.age(row["created_at"])),
                ]
                for row in rows
            ],
        )

    @app.command(epilog=f"{example} rollback web --revision 1")
    def rollback(
        name: Name,
        revision: Annotated[
            int | None, typer.Option("--revision", "--to", help="Which (default: what all members had last).")
        ] = None,
        wait: Wait = True,
        timeout: Timeout = DEFAULT_TIMEOUT,
        output: Output = Format.TABLE,
    ) -> None:
        """Back to an earlier configuration; which there are: configurations."""
        body = {} if revision is None else {"revision": revision}
        _ask(noun, name, ("POST", "/rollback"), body, "rollback", Ending(wait, timeout, output))

    @app.command(epilog=f"{example} pause web")
    def pause(names: Names, output: Output = Format.TABLE) -> None:
        """Replace no member for its configuration any more."""
        send = partial(_post, verb="pause")
        each(kind, names, "pause", send, Ending(False, 0, output))

    @app.command(epilog=f"{example} resume web")
    def resume(
        names: Names, wait: Wait = True, timeout: Timeout = DEFAULT_TIMEOUT, output: Output = Format.TABLE
    ) -> None:
        """Replace members for their configuration again."""
        each(kind, names, "resume", partial(_post, verb="resume"), Ending(wait, timeout, output))

    @app.command(epilog=f"{example} activities web")
    def activities(name: Name, limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
        """What was done, and why, newest first."""
        table = Table(
            ["WHAT", "WHY", "DESIRED", "CONFIGURATION", "LAUNCHED", "REMOVED", "RESULT", "AGE"],
            lambda row: [
                *(row["action"], row["cause"], f"{row['desired_before']} → {row['desired_after']}"),
                *(f"{row['revision_before']} → {row['revision_after']}", str(row["launched"]), str(row["removed"])),
                *(_result(row), render.age(row["created_at"])),
            ],
            wide=["WHY"],
        )
        with Client() as client:
            path = f"{client.path_of(noun.noun, name)}/activities"
            print_list(client, path, {}, Listing(limit, everything, output), table)

    @app.command(epilog=f"{example} rm web")
    def rm(names: Names, wait: Wait = True, timeout: Timeout = DEFAULT_TIMEOUT, output: Output = Format.TABLE) -> None:
        """Remove them with all their members. Cron jobs that scale them stay, and are named."""
        each(kind, names, "rm", _remove, Ending(wait, timeout, output))


def _scale(noun: Noun, name: str, number: int, ending: Ending) -> None:
    try:
        _ask(noun, name, ("PUT", "/scale"), {noun.desired: number}, "scale", ending)
    except CommandFailed as failure:
        if bounds := _BOUNDS.search(failure.message):
            failure.message = f"{noun.noun} {name} may have {bounds[1]} members, and {number} is not within that"
            failure.fields = []
        raise


def _remove(client: Client, path: str) -> dict[str, Any]:
    """The jobs that scale it fail from then on, until somebody removes them."""
    jobs: list[str] = []
    with suppress(CommandFailed):  # they may not be seen; what is asked for is the delete
        rows, _ = client.pages("/cron/jobs", {"resource_id": path.rpartition("/")[2]}, None)
        jobs = [row["name"] for row in rows]
    accepted = client.request("DELETE", path)
    if jobs:
        render.say(
            f"warning: cron jobs that scale {accepted['data']['name']} stay, and fail from now on: {', '.join(jobs)};"
            f" remove them: cairn cron rm {' '.join(jobs)}"
        )
    return accepted


def _post(client: Client, path: str, verb: str) -> dict[str, Any]:
    return client.request("POST", f"{path}/{verb}")


def _result(row: dict[str, Any]) -> str:
    if row["error"] is None:
        return str(row["state"])
    return f"{row['state']}{', rolled back' if row['rolled_back'] else ''}: {as_commands(row['error']['message'])}"


_common(GROUP)
_common(DEPLOYMENT)
