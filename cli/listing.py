"""How a command ends that lists things: a table of them, or the bare data; and whether there are more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cli import render
from cli.client import Client
from cli.render import Format


class Listing(NamedTuple):
    """How much of a list is wanted, and how it is printed."""

    limit: int
    everything: bool
    output: Format


class Table(NamedTuple):
    """What a list shows: the cells of a row in the order of ``headers``; ``wide`` as for ``render.print_table``."""

    headers: Sequence[str]
    cells: Callable[[dict[str, Any]], Sequence[str]]
    wide: Sequence[str] = ()

    def print(self, rows: Sequence[dict[str, Any]]) -> None:
        render.print_table(self.headers, [self.cells(row) for row in rows], self.wide)


def print_list(client: Client, path: str, params: Mapping[str, Any], listing: Listing, table: Table) -> None:
    """Ask for the list at ``path``, page by page, and print it. Parameters that are None are left out."""
    rows, more = client.pages(path, params, None if listing.everything else listing.limit)
    if listing.output is Format.JSON:
        render.print_json(rows)
    else:
        table.print(rows)
    if more:
        render.say(f"there are more than {listing.limit}; show them with --all or a higher --limit")
