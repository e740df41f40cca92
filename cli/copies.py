"""``cairn session cp``: files and folders, into sessions and out of them."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path
from typing import IO, Annotated
from urllib.parse import quote

import httpx
import typer

from cli.client import Client
from cli.errors import usage
from cli.options import reason


def cp(
    source: Annotated[str, typer.Argument(help="A file here, or SESSION:PATH.", show_default=False)],
    target: Annotated[str, typer.Argument(help="SESSION:PATH, or a file or folder here.", show_default=False)],
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="A folder, which comes to be in the folder TARGET.")
    ] = False,
) -> None:
    """Copy a file or folder into a session, or out of it, whether that runs or not."""
    out_of, into = _split(source), _split(target)
    if (out_of is None) == (into is None):
        raise usage("one of both is a file of a session", "write it as SESSION:PATH")
    with Client() as client:
        if recursive and into is not None:
            _pack(client, into, Path(source))
        elif recursive and out_of is not None:
            _unpack(client, out_of, Path(target))
        elif into is not None:
            session, path = into
            inside = path + Path(source).name if not path or path.endswith("/") else path
            _upload(client, _path(client, session, inside), Path(source))
        elif out_of is not None:
            session, path = out_of
            here = Path(target) / Path(path).name if Path(target).is_dir() else Path(target)
            with client.text(_path(client, session, path), {}) as answer, here.open("wb") as file:
                for chunk in answer.iter_bytes():
                    file.write(chunk)


def _upload(client: Client, path: str, source: Path) -> None:
    try:
        with source.open("rb") as file:
            _put(client, path, file, {})
    except OSError as error:
        raise usage(f"{source} cannot be read: {error.strerror}", "name a file that you may read") from None


def _pack(client: Client, into: tuple[str, str], source: Path) -> None:
    session, path = into
    with tempfile.TemporaryFile() as packed:
        try:
            with tarfile.open(fileobj=packed, mode="w") as archive:
                archive.add(source, source.resolve().name)
        except OSError as error:
            raise usage(f"{source} cannot be read: {error.strerror}", "name a folder that you may read") from None
        packed.seek(0)
        _put(client, f"{_path_of(client, session)}/archive", packed, {"path": path.rstrip("/")})


def _unpack(client: Client, out_of: tuple[str, str], target: Path) -> None:
    session, path = out_of
    with tempfile.TemporaryFile() as packed:
        with client.text(f"{_path_of(client, session)}/archive", {"path": path.rstrip("/")}) as answer:
            for chunk in answer.iter_bytes():
                packed.write(chunk)
        packed.seek(0)
        try:
            target.mkdir(exist_ok=True)
            with tarfile.open(fileobj=packed) as archive:
                # What others made in a session: nothing of it comes to be elsewhere than in the folder.
                archive.extractall(target, filter="data")
        except (OSError, tarfile.TarError) as error:
            message = f"it cannot be unpacked into {target}: {reason(error)}"
            raise usage(message, "name a folder that you may write") from None


def _put(client: Client, path: str, content: IO[bytes], params: dict[str, str]) -> None:
    try:
        answer = client.http.put(path, content=content, params=params, timeout=httpx.Timeout(None, connect=5))
    except httpx.TransportError as error:
        raise client.unreachable(error) from None
    client.opened(answer.status_code, answer.content, path)


def _split(given: str) -> tuple[str, str] | None:
    session, colon, path = given.partition(":")
    return (session, path) if colon and "/" not in session else None


def _path(client: Client, session: str, path: str) -> str:
    """Of the file's route. Raises CommandFailed where the path would lead to another."""
    if {".", ".."} & set(path.split("/")):
        raise usage(f"'{path}' has a part that is '.' or '..'", "write the path from the session's folder on: src/a.py")
    return f"{_path_of(client, session)}/files/{quote(path)}"


def _path_of(client: Client, name: str) -> str:
    return client.path_of("session", name)
