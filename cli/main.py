"""The ``cairn`` program. A command's module is imported when the command is named, so that start-up is quick."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli.errors import CommandFailed, Exit

#: Command → where it stands: a Typer application (a group of commands), or the function of one command.
COMMANDS = {
    "up": "cli.stack:up",
    "down": "cli.stack:down",
    "reset": "cli.stack:reset",
    "doctor": "cli.stack:doctor",
    "demo": "cli.demo:demo",
    "instance": "cli.instances:app",
    "workflow": "cli.workflows:app",
    "event": "cli.events:app",
    "faults": "cli.faults:app",
}


class Program(TyperGroup):
    """Finds commands by name, and turns every failure into its message and exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        found = getattr(import_module(module), name)
        if isinstance(found, typer.Typer):
            command: Any = typer.main.get_command(found)
        else:
            alone = typer.Typer(add_completion=False)
            alone.command(cmd_name)(found)
            command = typer.main.get_command(alone)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known: dict[str, Any] = dict.fromkeys(COMMANDS)
        self.commands = known  # what a mistyped name is compared with
        return super().resolve_command(ctx, args)

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
)


@app.callback(
    epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 refused, 5 no API, 6 time-out, 130 interrupted."
)
def cairn(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Self-hosted provisioning where every change to infrastructure is a durable workflow.

    Reads CAIRN_API_URL and CAIRN_API_KEY, else the endpoint file of a platform on this machine
    (CAIRN_DATA_DIR, default .cairn). Example: cairn instance launch web --image cairn/base:latest --port 80
    """
