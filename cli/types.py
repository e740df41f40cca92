"""``cairn type``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client
from cli.completion import types as type_names
from cli.errors import usage
from cli.listing import Listing, Table, print_list
from cli.render import All, Format, Limit, Output
from cli.several import one_by_one, remove

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Instance types: the sizes that instances come in.")

Name = Annotated[str, typer.Argument(help="Name.", show_default=False, autocompletion=type_names)]
Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Names.", show_default=False, autocompletion=type_names)
]
Vcpus = Annotated[float, typer.Option(help="vCPUs, such as 0.5.", show_default=False)]


def _mib(written: str | int) -> int:
    """Raises BadParameter."""
    return _number(written, "MiB")


def _gib(written: str | int) -> int:
    """Raises BadParameter."""
    return _number(written, "GiB")


def _number(written: str | int, unit: str) -> int:
    if not str(written).isdecimal():
        raise typer.BadParameter(f"'{written}': expected a whole number, which is in {unit}, such as 128")
    return int(written)


Memory = Annotated[int, typer.Option("--memory", parser=_mib, metavar="MIB", help="Memory in MiB.", show_default=False)]
Disk = Annotated[int, typer.Option("--disk", parser=_gib, metavar="GIB", help="Disk in GiB.", show_default=False)]


@app.command("list", epilog="Example: cairn type list")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List instance types, smallest first."""
    table = Table(
        ["NAME", "VCPUS", "MEMORY", "DISK"],
        lambda row: [row["name"], f"{row['vcpus']:g}", f"{row['memory_mb']} MiB", f"{row['disk_gb']} GiB"],
    )
    with Client() as client:
        print_list(client, "/instance-types", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn type show basic-1")
def show(name: Name, output: Output = Format.TABLE) -> None:
    """Show one instance type."""
    with Client() as client:
        _print(client.get(f"/instance-types/{name}"), output)


@app.command(epilog="Example: cairn type create tiny-1 --vcpus 0.5 --memory 128 --disk 4")
def create(
    name: Annotated[str, typer.Argument(help="Its name.", show_default=False)],
    vcpus: Vcpus,
    memory: Memory,
    disk: Disk,
    output: Output = Format.TABLE,
) -> None:
    """Add an instance type. For platform administrators."""
    body = {"name": name, "vcpus": vcpus, "memory_mb": memory, "disk_gb": disk}
    with Client() as client:
        _print(client.request("POST", "/instance-types", body=body)["data"], output)


@app.command(epilog="Example: cairn type update tiny-1 --memory 256")
def update(
    name: Name,
    vcpus: Annotated[float | None, typer.Option(help="vCPUs, such as 0.5.")] = None,
    memory: Annotated[int | None, typer.Option("--memory", parser=_mib, metavar="MIB", help="Memory in MiB.")] = None,
    disk: Annotated[int | None, typer.Option("--disk", parser=_gib, metavar="GIB", help="Disk in GiB.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Change an instance type for launches from now on; instances keep their size."""
    asked = {"vcpus": vcpus, "memory_mb": memory, "disk_gb": disk}
    body = {field: value for field, value in asked.items() if value is not None}
    if not body:
        raise usage("nothing to change: give --vcpus, --memory or --disk")
    with Client() as client:
        _print(client.request("PATCH", f"/instance-types/{name}", body=body)["data"], output)


@app.command(epilog="Example: cairn type rm tiny-1")
def rm(names: Names) -> None:
    """Remove instance types that no instance has."""
    with Client() as client:

        def forget(name: str) -> None:
            client.get(f"/instance-types/{name}")
            remove(client, f"/instance-types/{name}")
            render.say(f"instance type {name} is deleted")

        one_by_one(names, forget)


def _print(row: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(row)
        return
    render.print_facts(
        [
            ("name", row["name"]),
            ("vcpus", f"{row['vcpus']:g}"),
            ("memory", f"{row['memory_mb']} MiB"),
            ("disk", f"{row['disk_gb']} GiB"),
        ]
    )
