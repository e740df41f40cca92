"""The options that every command has."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from cli.completion import contexts
from cli.given import given

PANEL = "Global options"


def _context(value: str | None) -> None:
    given.context = value or given.context


def _api_url(value: str | None) -> None:
    given.api_url = value or given.api_url


def _debug(value: bool) -> None:
    given.debug = value or given.debug


def _watch(value: bool) -> None:
    given.watch = value or given.watch


NO_COLOR = "--no-color"


def no_colors(value: bool = True) -> None:
    if value:
        os.environ["NO_COLOR"] = "1"  # which everything that prints, children too, looks at


def everywhere(
    _: Annotated[
        bool,
        typer.Option(NO_COLOR, callback=no_colors, expose_value=False, help="No colours.", rich_help_panel=PANEL),
    ] = False,
) -> None:
    """Options of every command. They are given to their callbacks, not to the commands."""


def of_the_api(
    _context: Annotated[
        str | None,
        typer.Option(
            "--context",
            "-c",
            metavar="NAME",
            callback=_context,
            expose_value=False,
            autocompletion=contexts,
            help="Use this context: see cairn context.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    _api_url: Annotated[
        str | None,
        typer.Option(
            "--api-url",
            metavar="URL",
            callback=_api_url,
            expose_value=False,
            help="Ask this API, with CAIRN_API_KEY.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    _debug: Annotated[
        bool,
        typer.Option(
            "--debug",
            callback=_debug,
            expose_value=False,
            help="Show requests and answers, without secrets.",
            rich_help_panel=PANEL,
        ),
    ] = False,
) -> None:
    """Options of every command that asks the API."""


def of_views(
    _watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            "-w",
            callback=_watch,
            expose_value=False,
            help="Show it again whenever something happens, until Ctrl-C.",
            rich_help_panel=PANEL,
        ),
    ] = False,
) -> None:
    """Options of every command that lists things or shows one."""


def params_of(*groups: Any) -> list[Any]:
    """The options of such functions as these, to be added to commands."""
    found: list[Any] = []
    for group in groups:
        holder = typer.Typer(add_completion=False)
        holder.command()(group)
        command: Any = typer.main.get_command(holder)
        found += command.params
    return found
