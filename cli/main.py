"""The ``cairn`` program. A command's module is imported when the command is run, so that start-up is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from cli import given as flags
from cli.errors import MEANINGS, CommandFailed, Exit, usage
from cli.given import given

COMPLETE = "_CAIRN_COMPLETE"
#: Names of commands that show what there is: they can be watched.
VIEWS = frozenset({"list", "show"})


class Place(NamedTuple):
    """Where a command stands: a Typer application (a group of commands), or the function of a single one.

    ``local``: it asks no API, or not that of a context.
    """

    module: str
    name: str
    help: str
    example: str | None = None
    local: bool = False


COMMANDS = {
    "up": Place("cli.stack", "up", "Start the platform on this machine.", "cairn up --detach", local=True),
    "down": Place("cli.stack", "down", "Stop the platform; instances keep running.", "cairn down", local=True),
    "reset": Place("cli.stack", "reset", "Delete the platform's data and its containers.", "cairn reset --yes", True),
    "backup": Place("cli.backups", "backup", "Back the platform up.", "cairn backup cairn.backup", local=True),
    "restore": Place("cli.restores", "app", "Restore a backup, and decide about what differs since."),
    "doctor": Place("cli.doctor", "doctor", "Check what the platform needs.", "cairn doctor", local=True),
    "setup": Place("cli.setup", "setup", "Prepare PostgreSQL and Temporal servers.", "cairn setup --check", local=True),
    "demo": Place("cli.demo", "demo", "Tour: launch, kill -9 in the middle, cancel, delete.", "cairn demo", local=True),
    "login": Place("cli.login", "login", "Log in, or register and log in.", "cairn login --email jo@example.org"),
    "logout": Place("cli.login", "logout", "End the login of the context in use.", "cairn logout"),
    "passwd": Place("cli.login", "passwd", "Change your password.", "cairn passwd"),
    "whoami": Place("cli.login", "whoami", "Who you are, in which project, and what you may.", "cairn whoami"),
    "user": Place("cli.users", "app", "All users of the platform; for its administrators."),
    "key": Place("cli.keys", "app", "Your API keys."),
    "instance": Place("cli.instances", "app", "Launch instances, look at them and into them, change them."),
    "group": Place("cli.group_schedules", "groups", "Instances from one template, as many as desired."),
    "deployment": Place("cli.group_schedules", "deployments", "An image, so many times."),
    "lb": Place("cli.balancers", "app", "Load balancers: one address for many instances."),
    "session": Place("cli.sessions", "app", "Work sessions: sandboxes on workspaces' files."),
    "pool": Place("cli.pools", "app", "Sandboxes that run before a session asks for one."),
    "image": Place("cli.images", "app", "Images: from a registry, a file or a URL."),
    "workspace": Place("cli.workspaces", "app", "Repositories that are brought to hosts."),
    "credential": Place("cli.credentials", "app", "With what workspaces are fetched."),
    "cache": Place("cli.caches", "app", "What sessions share of package managers' caches."),
    "agent": Place("cli.agents", "app", "Agents that work in sessions."),
    "ssh-key": Place("cli.ssh_keys", "app", "Public keys that instances are launched with."),
    "preference": Place("cli.preferences", "app", "What the platform remembers for you."),
    "host": Place("cli.hosts", "app", "Hosts: let machines join, empty and remove them."),
    "secret": Place("cli.secrets", "app", "Values that instances are given, and nobody is shown."),
    "type": Place("cli.types", "app", "Instance types: the sizes that instances come in."),
    "project": Place("cli.projects", "app", "Projects: make them, choose one, see who is in it."),
    "role": Place("cli.roles", "app", "What may be done in a project, and who has which role."),
    "service-account": Place("cli.service_accounts", "app", "Members who are programs, and their keys."),
    "quota": Place("cli.quotas", "app", "What a project may use, and uses."),
    "workflow": Place("cli.workflows", "app", "Look at workflows, wait for them, cancel and retry them."),
    "event": Place("cli.events", "app", "Events: those there were, and those that come."),
    "events": Place("cli.events", "events", "As event list; -f: as they come.", "cairn events -f --resource web"),
    "webhook": Place("cli.webhooks", "app", "Send events to other programs, and see what became of them."),
    "cron": Place("cli.cron", "app", "Run things at certain times: requests, commands, workflows."),
    "audit": Place("cli.audit", "app", "Who did what, or was refused."),
    "dashboard": Place("cli.dashboard", "dashboard", "The project and the hosts at a glance.", "cairn dashboard"),
    "watch": Place("cli.watching", "command", "Show again what changes.", "cairn watch instance list"),
    "api": Place("cli.api", "api", "Ask the API for anything.", "cairn api GET '/instances?status=running'"),
    "context": Place("cli.contexts", "app", "The platforms that this program knows; which one it asks."),
    "completion": Place(
        "cli.completion", "completion", "Completion for your shell.", "cairn completion bash", local=True
    ),
    "faults": Place("cli.faults", "app", "Fault points of the platform; for testing only.", local=True),
}
#: Commands whose own options end where their arguments begin.
PASSING_ON: dict[str, dict[str, Any]] = {
    "watch": {"allow_interspersed_args": False, "ignore_unknown_options": True},
}


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
