"""``cairn workspace``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client
from cli.completion import credentials as credential_names
from cli.completion import hosts as host_names
from cli.completion import workspaces as workspace_names
from cli.ending import Ending, each, finish, kind_of
from cli.errors import of_option, usage
from cli.listing import Listing, Table, print_list
from cli.progress import DEFAULT_TIMEOUT, Timeout, Wait
from cli.render import All, Format, Limit, Output

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Repositories that are brought to hosts.")

Name = Annotated[str, typer.Argument(help="Name or id.", show_default=False, autocompletion=workspace_names)]
Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME...", help="Names or ids.", show_default=False, autocompletion=workspace_names),
]
COMMIT = 12


@app.command(epilog="Example: cairn workspace create shop https://git.example.org/team/shop.git --ref main")
def create(
    name: Annotated[str, typer.Argument(help="What it is to be called.", show_default=False)],
    url: Annotated[str | None, typer.Argument(help="URL of the repository, https or ssh.", show_default=False)] = None,
    ref: Annotated[str | None, typer.Option(help="Branch, tag, or a commit's whole id.")] = None,
    depth: Annotated[int | None, typer.Option(help="So many commits alone (default: all).")] = None,
    submodules: Annotated[bool, typer.Option("--submodules", help="With its submodules, of the same server.")] = False,
    credential: Annotated[
        str | None, typer.Option(help="Name or id of a credential.", autocompletion=credential_names)
    ] = None,
    path: Annotated[str | None, typer.Option(help="A folder of the host instead, where that allows it.")] = None,
    host: Annotated[str | None, typer.Option(help="Host that it is to be on.", autocompletion=host_names)] = None,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Bring a repository to a host."""
    if (url is None) == (path is None):
        raise usage("expected the URL of a repository, or --path", "cairn workspace create NAME URL")
    source: dict[str, Any] = {"git_url": url, "ref": ref, "depth": depth, "path": path}
    source = {what: value for what, value in source.items() if value is not None}
    if submodules:
        source["submodules"] = True
    with Client() as client:
        if credential is not None:
            with of_option("--credential"):
                source["credential_id"] = client.find("credential", credential)["id"]
        body = {"name": name, "source": source} | ({} if host is None else {"host": host})
        envelope = client.request("POST", "/workspaces", body=body)
        finish(client, [envelope], "creation of", Ending(wait, timeout, output), _KIND)


@app.command("list", epilog="Example: cairn workspace list")
def list_(limit: Limit = 50, everything: All = False, output: Output = Format.TABLE) -> None:
    """List workspaces, newest first."""
    table = Table(
        ["NAME", "STATUS", "REF", "COMMIT", "SIZE", "HOST", "AGE", "ID"],
        lambda row: [
            row["name"],
            row["status"],
            row["ref"] or row["source"]["ref"] or "",
            (row["commit"] or "")[:COMMIT],
            "" if row["size_bytes"] is None else render.size(row["size_bytes"]),
            row["host"] or "",
            render.age(row["created_at"]),
            row["id"],
        ],
        wide=["ID"],
    )
    with Client() as client:
        print_list(client, "/workspaces", {}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn workspace show shop")
def show(name: Name, output: Output = Format.TABLE) -> None:
    """Show one workspace, and how far a fetch of it is."""
    with Client() as client:
        _print(client.get(client.path_of("workspace", name)), output)


@app.command(epilog="Example: cairn workspace rename shop shop-2")
def rename(
    name: Name,
    other: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.", show_default=False)],
    output: Output = Format.TABLE,
) -> None:
    """Give a workspace another name."""
    with Client() as client:
        path = client.path_of("workspace", name)
        _print(client.request("PATCH", path, body={"name": other})["data"], output)


@app.command(epilog="Example: cairn workspace sync shop")
def sync(
    name: Name,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Fetch its source anew; sessions that there are keep what they have."""
    with Client() as client:
        envelope = client.request("POST", f"{client.path_of('workspace', name)}/sync")
        finish(client, [envelope], "sync of", Ending(wait, timeout, output), _KIND)


@app.command(epilog="Example: cairn workspace rm shop")
def rm(
    names: Names,
    force: Annotated[bool, typer.Option("--force", help="Do not wait for a host that does not answer.")] = False,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Delete workspaces with their files."""
    params = "?force=true" if force else ""
    ending = Ending(wait, timeout, output)
    each(_KIND, names, "delete of", lambda client, path: client.request("DELETE", f"{path}{params}"), ending)


def _print(workspace: dict[str, Any], output: Format) -> None:
    if output is not Format.TABLE:
        render.print_json(workspace)
        return
    error, source = workspace.get("error") or {}, workspace["source"]
    size = workspace["size_bytes"]
    render.print_facts(
        [
            ("name", workspace["name"]),
            ("id", workspace["id"]),
            ("status", workspace["status"]),
            ("progress", workspace.get("progress") or ""),
            ("error", error.get("message", "")),
            ("source", source["git_url"] or source["path"]),
            ("ref", workspace["ref"] or source["ref"] or ""),
            ("commit", workspace["commit"] or ""),
            ("size", "" if size is None else render.size(size)),
            ("host", workspace["host"] or ""),
            ("created", f"{workspace['created_at']} ({render.age(workspace['created_at'])} ago)"),
        ]
    )


_KIND = kind_of("workspace", _print)
