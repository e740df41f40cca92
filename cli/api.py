"""``cairn api``: any request, with this program's address, key, retries and exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
import typer

from cli import render
from cli.client import RETRY_SECONDS, Client
from cli.errors import CommandFailed, exit_of, of_answer, usage
from cli.render import Format
from cli.streams import until_interrupted

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
#: What stands beside /v1, not below it.
OUTSIDE = ("/health/", "/metrics", "/openapi.json", "/docs")
#: A request that may start something is not sent again, and may wait as long as Prefer may ask for.
WAITED_SECONDS = 75.0


def api(
    request: Annotated[
        list[str], typer.Argument(metavar="[METHOD] PATH", help="GET where none is given.", show_default=False)
    ],
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Body: JSON, @FILE, or - for stdin; then POST is the default.")
    ] = None,
    header: Annotated[list[str] | None, typer.Option("--header", "-H", help="'Name: value'; may be repeated.")] = None,
    paginate: Annotated[bool, typer.Option("--paginate", help="All pages of a list, as one.")] = False,
    output: Annotated[
        Format,
        typer.Option("--output", "-o", callback=render.notation, help="How it is written.", metavar="[json|yaml]"),
    ] = Format.JSON,
) -> None:
    """Send a request to the API and print the body of the answer. PATH is as in docs/api.md, with /v1 or without."""
    if output is Format.TABLE:
        raise usage("cairn api prints what the API answers: -o json or -o yaml")
    method, path = _parsed(request, data)
    headers = dict(_header(one) for one in header or [])
    content = _content(data)
    if content is not None and not any(name.lower() == "content-type" for name in headers):
        headers["Content-Type"] = "application/json"
    if paginate and method != "GET":
        raise usage("--paginate is for GET")
    with Client() as client:
        url = _url(client.endpoint.api_url, path)
        if paginate:
            render.print_json(_all_pages(client, url, headers))
            return
        sent = client.build(method, url, headers=headers, content=content, timeout=WAITED_SECONDS)
        answer = client.send(sent, RETRY_SECONDS if method in ("GET", "HEAD") else 0, stream=True)
        try:
            if answer.headers.get("content-type", "").startswith("application/json"):
                _print(answer.read())
            else:
                _copy(answer)
        except httpx.TransportError as error:
            raise client.unreachable(error) from None
    if exit_of(answer.status_code):
        raise _failure(answer)


def _parsed(words: list[str], data: str | None) -> tuple[str, str]:
    *method, path = words
    if len(method) > 1 or (method and method[0].upper() not in METHODS):
        raise usage(f"{' '.join(words)}: expected [METHOD] PATH", "for example: cairn api GET /instances")
    if urlsplit(path).scheme or path.startswith("//"):
        hint = "the address is chosen by --context or --api-url"
        raise usage(f"{path}: expected a path of the API, not an address", hint)
    default = "GET" if data is None else "POST"
    return (method[0].upper() if method else default), "/" + path.removeprefix("/")


def _url(api_url: str, path: str) -> str:
    root = api_url.removesuffix("/v1")
    within = path.startswith(("/v1/", *OUTSIDE))
    return f"{root if within else api_url}{path}"


def _header(written: str) -> tuple[str, str]:
    name, colon, value = written.partition(":")
    if not colon or not name.strip():
        raise usage(f"--header {written}: expected 'Name: value'")
    return name.strip(), value.strip()


def _content(data: str | None) -> bytes | None:
    if data is None:
        return None
    if data == "-":
        return sys.stdin.buffer.read()
    if not data.startswith("@"):
        return data.encode(errors="surrogateescape")
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise usage(f"--data {data}: {error.strerror}") from None


def _all_pages(client: Client, url: str, headers: Mapping[str, str]) -> dict[str, Any]:
    """The envelope of the last page, with the rows of all."""
    rows: list[Any] = []
    cursor: str | None = None
    while True:
        asked = httpx.URL(url).copy_merge_params({"cursor": cursor} if cursor else {})
        answer = client.send(client.build("GET", str(asked), headers=headers))
        envelope = client.opened(answer.status_code, answer.content, url, verbatim=True)
        if not isinstance(envelope["data"], list):
            raise usage(f"{url} is no list: leave --paginate out")
        rows += envelope["data"]
        cursor = envelope["meta"].pop("next_cursor", None)
        if not cursor:
            return envelope | {"data": rows}


def _print(body: bytes) -> None:
    """Laid out; one that is no JSON, whatever it says, as it is."""
    try:
        data = json.loads(body)
    except ValueError:
        sys.stdout.buffer.write(body)
        sys.stdout.buffer.flush()
    else:
        render.print_json(data)


def _copy(answer: httpx.Response) -> None:
    """As it comes, for as long as it comes."""
    answer.request.extensions["timeout"]["read"] = None
    with until_interrupted():
        for chunk in answer.iter_bytes():
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()


def _failure(answer: httpx.Response) -> CommandFailed:
    try:
        error = answer.json().get("error")
    except (ValueError, AttributeError, httpx.ResponseNotRead):
        error = None
    path = answer.request.url.path.partition("/v1/")[2]
    return of_answer(answer.status_code, error if isinstance(error, dict) else {}, path, verbatim=True)
