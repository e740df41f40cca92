"""The ``cairn`` program. A command's module is imported when the command is run, so that start-up is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from cli import everywhere as flags
from cli.commands import COMMANDS, PASSING_ON, VIEWS
from cli.errors import MEANINGS, CommandFailed, Exit, usage
from cli.given import given

COMPLETE = "_CAIRN_COMPLETE"


def load(name: str) -> Any:
    """The command itself, with all that it imports, and with the options that every command has."""
    place = COMMANDS[name]
    found = getattr(import_module(place.module), place.name)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False)
        alone.command(name, epilog=f"Example: {place.example}", context_settings=PASSING_ON.get(name))(found)
        found = alone
    command: Any = typer.main.get_command(found)
    command.name = name
    everywhere = flags.params_of(*([] if place.local else [flags.of_the_api]), flags.everywhere)
    _extend(name, command, everywhere, [] if place.local else flags.params_of(flags.of_views))
    return command


def _extend(words: str, command: Any, everywhere: list[Any], of_views: list[Any]) -> None:
    for each, below in getattr(command, "commands", {}).items():
        _extend(f"{words} {each}", below, everywhere, of_views)
        command.epilog = command.epilog or below.epilog
    if hasattr(command, "commands"):
        command.params += flags.params_of(flags.everywhere)
        return
    if command.name in VIEWS and of_views:
        command.params += of_views
        shown = command.callback

        def perhaps_again(**params: Any) -> Any:
            if not given.watch:
                return shown(**params)
            from cli.watching import watch

            return watch(lambda: shown(**params))

        command.callback = perhaps_again
    command.params += everywhere
    does = command.callback

    def run(**params: Any) -> Any:
        given.command = words
        given.options = frozenset(option for param in command.params for option in param.opts)
        return does(**params)

    command.callback = run


#: What other programs call it: of all, and of one noun.
ELSEWHERE = {
    "ps": "cairn instance list",
    "run": "cairn instance launch NAME",
    "version": "cairn --version",
    "status": "cairn doctor, or cairn dashboard",
    "get": "cairn instance list, and so on: see cairn --help",
    "describe": "cairn instance show NAME, and so on: see cairn --help",
    "delete": "cairn instance rm NAME, and so on: see cairn --help",
}
ELSEWHERE_OF = {"delete": "rm", "remove": "rm", "get": "show", "describe": "show", "status": "show", "ls": "list"}
ELSEWHERE_OF |= {"ps": "list", "new": "create", "edit": "update"}


class Program(TyperGroup):
    """Finds commands by name, and turns every failure into its message and exit code."""

    def __init__(self, **about: Any) -> None:
        super().__init__(**about)
        self.contradicts = False
        options: list[Any] = self.params
        options += flags.params_of(flags.of_the_api, flags.everywhere)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """For the list of commands its line of help is enough."""
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name].help) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if ctx.resilient_parsing and args[0] == "watch" and args[1:]:
            args = args[1:]  # the line that is typed goes on as that of the command to be watched
        if self.contradicts and not ctx.resilient_parsing:
            raise usage("give either --wait or --no-wait")
        if not ctx.resilient_parsing and args[0] in ELSEWHERE:
            raise usage(f"there is no command '{args[0]}'", ELSEWHERE[args[0]])
        known: dict[str, Any] = dict.fromkeys(COMMANDS)
        self.commands = known  # what a mistyped name is compared with
        name, _, rest = super().resolve_command(ctx, args)
        found = load(name) if name else None
        if rest and not ctx.resilient_parsing:
            _suggest(name, getattr(found, "commands", {}), rest[0])
        return name, found, rest

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from cli import render

        given.forget()
        given.dashes = "--" in args
        if flags.NO_COLOR in (args[: args.index("--")] if given.dashes else args):
            flags.no_colors()  # before anything is printed: also before help that is asked for first
        for stream in (sys.stdout, sys.stderr):
            render.prepare(stream)  # help, too, is printed from here on
        self.contradicts = {"--wait", "--no-wait"} <= set(args[: args.index("--")] if given.dashes else args)
        with _noticed_alike():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        from cli import render

        try:
            try:
                with _noticed_alike():
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
            with suppress(BrokenPipeError):  # nobody reads it any more: the exit code says it
                render.print_failure(failure)
            raise typer.Exit(failure.exit) from None
        return result

    def _main_shell_completion(self, ctx_args: Any, prog_name: str, complete_var: str | None = None) -> None:
        if instruction := os.environ.get(COMPLETE):
            sys.exit(complete(instruction, self))


def _suggest(name: str | None, commands: dict[str, Any], word: str) -> None:
    """Raises a usage error where it is what other programs call a command of these."""
    meant = ELSEWHERE_OF.get(word)
    if name != "restore" and word not in commands and meant in commands:
        raise usage(f"there is no command 'cairn {name} {word}'", f"cairn {name} {meant}")


@contextmanager
def _noticed_alike() -> Iterator[None]:
    """Help is printed by rich, which ends the program with 1 where its reader has gone."""
    try:
        yield
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):
            raise typer.Exit(Exit.BROKEN_PIPE) from None
        raise


def complete(instruction: str, program: Any = None) -> int:
    """What a shell asks for: ``source_bash`` its script, ``complete_bash`` what the typed line may go on with."""
    completion: Any = import_module("typer.completion")
    completion.completion_init()
    return int(completion.shell_complete(program or typer.main.get_command(app), {}, "cairn", COMPLETE, instruction))


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"cairn {version('cairn-platform')}")
        raise typer.Exit


def _epilog() -> str:
    return "\n".join(["Exit codes:", *(f"{code:>3}  {meaning}" for code, meaning in MEANINGS.items())])


app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_epilog(),
)


@app.callback()
def cairn(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Every change to infrastructure is a durable workflow.

    Speaks to the API that --context or --api-url name, else CAIRN_API_URL with
    CAIRN_API_KEY, or CAIRN_CONTEXT, else to the context that was chosen, else to
    the platform of this folder (in CAIRN_DATA_DIR, default .cairn).

    Example: cairn instance launch web --port 80
    """
