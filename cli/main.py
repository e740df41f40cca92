"""The ``cairn`` program. A command's module is imported when the command is run, so that start-up is quick."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from cli.errors import CommandFailed, Exit


class Place(NamedTuple):
    """Where a command stands: a Typer application (a group of commands), or the function of a single one."""

    module: str
    name: str
    help: str
    example: str | None = None


COMMANDS = {
    "up": Place("cli.stack", "up", "Start the platform on this machine.", "cairn up --detach"),
    "down": Place("cli.stack", "down", "Stop the platform; instances keep running.", "cairn down"),
    "reset": Place("cli.stack", "reset", "Delete the platform's data and its containers.", "cairn reset --yes"),
    "doctor": Place("cli.doctor", "doctor", "Check what the platform needs.", "cairn doctor"),
    "demo": Place("cli.demo", "demo", "Tour: launch, kill -9 in the middle, cancel, delete.", "cairn demo"),
    "instance": Place("cli.instances", "app", "Launch instances, look at them and into them, change them."),
    "host": Place("cli.hosts", "app", "Hosts: let machines join, look at them, empty and remove them."),
    "project": Place("cli.projects", "app", "The project that the API key stands for, and its policies."),
    "workflow": Place("cli.workflows", "app", "Look at workflows, wait for them and cancel them."),
    "event": Place("cli.events", "app", "Watch what happens."),
    "events": Place("cli.events", "events", "Events there were; -f: as they come.", "cairn events -f --resource web"),
    "webhook": Place("cli.webhooks", "app", "Send events to other programs, and see what became of them."),
    "dashboard": Place("cli.dashboard", "dashboard", "The project and the hosts at a glance.", "cairn dashboard"),
    "faults": Place("cli.faults", "app", "Fault points of the platform; for testing only."),
}


def load(name: str) -> Any:
    """The command itself, with all that it imports."""
    place = COMMANDS[name]
    found = getattr(import_module(place.module), place.name)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False)
        alone.command(name, epilog=f"Example: {place.example}")(found)
        found = alone
    command: Any = typer.main.get_command(found)
    command.name = name
    return command


class Program(TyperGroup):
    """Finds commands by name, and turns every failure into its message and exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """For the list of commands its line of help is enough."""
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name].help) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known: dict[str, Any] = dict.fromkeys(COMMANDS)
        self.commands = known  # what a mistyped name is compared with
        name, _, rest = super().resolve_command(ctx, args)
        return name, load(name) if name else None, rest

    def invoke(self, ctx: Any) -> Any:
        from cli import render

        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        try:
            try:
                result = super().invoke(ctx)
            except KeyboardInterrupt:
                raise CommandFailed("interrupted", "interrupted", Exit.INTERRUPTED) from None
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            # The reader has gone. What is still buffered goes nowhere, so that the interpreter ends quietly.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(Exit.BROKEN_PIPE) from None
        except CommandFailed as failure:
            render.print_failure(failure)
            raise typer.Exit(failure.exit) from None
        return result


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cairn {version('cairn-platform')}")
        raise typer.Exit


app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 refused, 5 no API, 6 time-out, 130 interrupted.",
)


@app.callback()
def cairn(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Every change to infrastructure is a durable workflow.

    Reads CAIRN_API_URL and CAIRN_API_KEY, else the endpoint file of a platform
    on this machine (in CAIRN_DATA_DIR, default .cairn).

    Example: cairn instance launch web --port 80
    """
