"""``cairn image``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import httpx
import typer

from cli import render
from cli.client import Client, workflow_of
from cli.completion import images as image_names
from cli.ending import Ending, finish, kind_of
from cli.errors import CommandFailed, Exit, usage
from cli.listing import Listing, Table, print_list
from cli.progress import DEFAULT_TIMEOUT, Timeout, Wait, require_completed, watch
from cli.render import All, Format, Limit, Output
from cli.secrets import RegistrySecret
from cli.several import one_by_one

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Images: from a registry, a file or a URL; where they are; removal.",
)

Name = Annotated[str, typer.Argument(help="Name or id.", show_default=False, autocompletion=image_names)]
Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Names or ids.", show_default=False, autocompletion=image_names)
]
NewName = Annotated[str, typer.Argument(help="What the image is to be called.", show_default=False)]
Checksum = Annotated[str | None, typer.Option(help="SHA-256 that the file must have, in hexadecimal digits.")]
#: What is sent at once, how often it is told, and how long the API may take when it has all.
PIECE, TOLD_SECONDS, ANSWER_SECONDS = 1 << 20, 1.0, 600.0


@app.command("list", epilog="Example: cairn image list -o json")
def list_(
    limit: Limit = 50,
    everything: All = False,
    status: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """List images, newest first, with the hosts that have them."""
    table = Table(
        ["NAME", "STATUS", "SIZE", "HOSTS", "AGE", "SOURCE", "FILE", "ID"],
        lambda row: [
            row["name"],
            row["status"],
            render.size(row["size_bytes"]) if row["size_bytes"] is not None else "",
            ", ".join(row["hosts"]),
            render.age(row["created_at"]),
            _source(row),
            row["format"] or "",
            row["id"],
        ],
        wide=["SOURCE", "FILE", "ID"],
    )
    with Client() as client:
        print_list(client, "/images", {"status": status}, Listing(limit, everything, output), table)


@app.command(epilog="Example: cairn image show web")
def show(name: Name, output: Output = Format.TABLE) -> None:
    """Show one image."""
    with Client() as client:
        _print(client.find("image", name), output)


@app.command(epilog="Example: cairn image pull web nginx:1.29")
def pull(
    name: NewName,
    reference: Annotated[str, typer.Argument(help="Reference of a registry.", show_default=False)],
    registry_secret: RegistrySecret = None,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Have a host pull an image of a registry; instances get just what its tag means now."""
    source = {"type": "registry", "reference": reference}
    _import(name, source | ({"registry_secret": registry_secret} if registry_secret else {}), wait, timeout, output)


@app.command("import", epilog="Example: cairn image import base https://images.example.org/base.tar.gz")
def import_(
    name: NewName,
    url: Annotated[str, typer.Argument(help="Where the file is, http or https.", show_default=False)],
    checksum: Checksum = None,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Have the platform download an image's file."""
    if not url.lower().startswith(("http://", "https://")):
        file = "FILE" if "://" in url else url
        raise usage(
            f"'{url}' is no address of http or https", f"send a file of this machine: cairn image upload {name} {file}"
        )
    _import(name, {"type": "url", "url": url} | ({"checksum": checksum} if checksum else {}), wait, timeout, output)


@app.command(epilog="Example: cairn image upload app app.tar, or: docker save app:1 | cairn image upload app -")
def upload(
    name: NewName,
    file: Annotated[str, typer.Argument(help="The file; - for standard input.", show_default=False)],
    checksum: Checksum = None,
    wait: Wait = True,
    timeout: Timeout = DEFAULT_TIMEOUT,
    output: Output = Format.TABLE,
) -> None:
    """Upload an image's file: a docker or OCI archive, the tar of a root file system, or a qcow2 disk."""
    source = _open(file)
    with source, Client() as client:
        image = _waiting(client, name, checksum)
        envelope = _send(client, image, source)
        finish(client, [envelope], "import of", Ending(wait, timeout, output), _KIND)


@app.command(epilog="Example: cairn image rm web")
def rm(names: Names, wait: Wait = True, timeout: Timeout = DEFAULT_TIMEOUT) -> None:
    """Delete images that no instance is made of."""
    began = time.monotonic()
    with Client() as client:

        def delete(name: str) -> None:
            image = client.find("image", name)
            workflow_id = workflow_of(client.request("DELETE", f"/images/{image['id']}"))
            if wait and workflow_id:
                require_completed(watch(client, workflow_id, timeout, began))
            render.say(f"image {image['name']} is {'deleted' if wait else 'being deleted'}")

        one_by_one(names, delete)


def _import(name: str, source: dict[str, Any], wait: bool, timeout: float, output: Format) -> None:
    with Client() as client:
        envelope = client.request("POST", "/images", body={"name": name, "source": source})
        finish(client, [envelope], "import of", Ending(wait, timeout, output), _KIND)


def _open(file: str) -> BinaryIO:
    if file == "-":
        return sys.stdin.buffer
    try:
        return Path(file).open("rb")
    except OSError as error:
        raise usage(f"{file}: {error.strerror}") from None


def _waiting(client: Client, name: str, checksum: str | None) -> dict[str, Any]:
    """A new image that waits for its file, or the one of this name that still does."""
    source = {"type": "upload"} | ({"checksum": checksum} if checksum else {})
    try:
        made: dict[str, Any] = client.request("POST", "/images", body={"name": name, "source": source})["data"]
        return made
    except CommandFailed as failure:
        if failure.code != "name_taken":
            raise
        known = client.find("image", name)
        if known["source"]["type"] != "upload" or known["status"] not in ("pending", "error"):
            raise
        return known


def _send(client: Client, image: dict[str, Any], source: BinaryIO) -> dict[str, Any]:
    """Once: a file from standard input cannot be sent again."""
    size = _size(source)
    headers = {"Content-Type": "application/octet-stream"} | ({"Content-Length": str(size)} if size else {})
    path = f"/images/{image['id']}/upload"
    limits = httpx.Timeout(ANSWER_SECONDS, connect=5)
    try:
        answer = client.http.request("POST", path, content=_pieces(source, size), headers=headers, timeout=limits)
    except httpx.TransportError as error:
        raise CommandFailed(
            f"the upload broke off: {error}",
            "unreachable",
            Exit.UNREACHABLE,
            f"nothing of it was kept; try again: cairn image upload {image['name']} FILE",
        ) from None
    return client.opened(answer.status_code, answer.content, path)


def _size(source: BinaryIO) -> int | None:
    """None: of a pipe."""
    if not source.seekable():
        return None
    size = source.seek(0, 2)
    source.seek(0)
    return size


def _pieces(source: BinaryIO, size: int | None) -> Iterator[bytes]:
    """The file, telling how far it is: in place on a terminal, else at its end alone."""
    console = render.err()
    sent, told = 0, time.monotonic()
    while piece := source.read(PIECE):
        yield piece
        sent += len(piece)
        if console.is_terminal and time.monotonic() - told > TOLD_SECONDS:
            told = time.monotonic()
            console.print(f"sent {render.size(sent)}" + (f" of {render.size(size)}" if size else ""), end="\r")
    render.say(f"sent {render.size(sent)}")


def _print(image: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        render.print_json(image)
        return
    error = image.get("error") or {}
    render.print_facts(
        [
            ("name", image["name"]),
            ("id", image["id"]),
            ("status", image["status"]),
            ("error", error.get("message", "")),
            ("source", _source(image)),
            ("registry secret", image["source"].get("registry_secret") or ""),
            ("file", image["format"] or ""),
            ("digest", image["digest"] or ""),
            ("size", render.size(image["size_bytes"]) if image["size_bytes"] is not None else ""),
            ("hosts", ", ".join(image["hosts"])),
            ("created", f"{image['created_at']} ({render.age(image['created_at'])} ago)"),
        ]
    )


_KIND = kind_of("image", _print)


def _source(image: dict[str, Any]) -> str:
    source = image["source"]
    return str(source["reference"] or source["url"] or source["type"])
