"""``cairn instance logs``, ``stats``, ``exec`` and ``terminal``: into a running instance, through its host's agent."""

from __future__ import annotations

import array
import contextlib
import datetime as dt
import fcntl
import json
import os
import shlex
import stat
import sys
import termios
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client
from cli.completion import instances as instance_names
from cli.errors import UNKNOWN_EXIT, Exit
from cli.options import Seconds, duration, seconds
from cli.render import Format, Output

Name = Annotated[str, typer.Argument(help="Name or id.", show_default=False, autocompletion=instance_names)]
Command = Annotated[list[str], typer.Argument(metavar="-- CMD...", help="What to run, after --.", show_default=False)]
Longest = Annotated[
    float,
    typer.Option(parser=duration, metavar="TIME", help="What it may take, to 10m."),
]
EXEC_SECONDS = Seconds(30)
#: What the API takes for itself, beyond the time of a command.
EXTRA_SECONDS = 15.0
#: Exit codes of what could not be run, and how the engine's own words about it begin.
COULD_NOT_RUN, ENGINE_SAYS = (126, 127), ("OCI runtime exec failed", "exec failed")
COLUMNS = ("AT", "OVER", "CPU", "MEMORY", "PIDS", "RECEIVED", "SENT", "READ", "WRITTEN")
WIDTH = 16


def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written, until Ctrl-C.")] = False,
    tail: Annotated[int | None, typer.Option(min=0, help="Only the last so many lines.", show_default=False)] = None,
) -> None:
    """Print what an instance wrote."""
    with Client() as client:
        params = {"tail": tail, "follow": "true" if follow else None}
        path = f"{client.path_of('instance', name)}/logs"
        given = {key: value for key, value in params.items() if value is not None}
        with until_interrupted(), client.text(path, given, endless=follow) as answer:
            for chunk in answer.iter_bytes():
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()


def stats(
    name: Name,
    since: Annotated[
        str | None,
        typer.Option(help="Of so long: 10m, 24h, 30d (default: 1h); coarser the longer.", show_default=False),
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="As it is measured, until Ctrl-C.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show what an instance uses: CPU (100 is one whole CPU), memory, processes, bytes since its start."""
    with Client() as client:
        id = client.find("instance", name)["id"]
        if live:
            _watch(client, id, output)
            return
        then = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds("--since", since)) if since else None
        rows, _ = client.pages(f"/instances/{id}/stats", {"since": then and then.isoformat()}, None)
    if output is Format.JSON:
        render.print_json(rows)
    else:
        render.print_table(COLUMNS, [_cells(row) for row in rows])


def exec_(
    name: Name,
    command: Command,
    timeout: Longest = EXEC_SECONDS,
    output: Output = Format.TABLE,
) -> None:
    """Run a command in an instance; ends with the command's own exit code.

    126 or 127: it could not be run; 124: it was ended at --timeout; 125: it ended with 0, but its
    output was cut at 1 MiB. It gets no input: what needs some is run with cairn instance terminal.
    """
    if _is_piped():
        render.say(
            "warning: a command gets no input, and what is piped is lost: bring it along as an argument, such as cairn"
            f' instance exec {name} -- sh -c \'printf %s "$1" | cat\' sh "$(cat FILE)"'
        )
    with Client() as client:
        path = f"{client.path_of('instance', name)}/exec"
        # Not sent again whatever happens: nobody knows whether the command may run twice.
        done = client.request(
            "POST", path, body={"cmd": command, "timeout": timeout}, patience=0, timeout=timeout + EXTRA_SECONDS
        )["data"]
    if output is Format.JSON:
        render.print_json(done)
    else:
        unknown = _not_run(done, command[0])
        if unknown is None:
            sys.stdout.write(done["stdout"])
            sys.stdout.flush()
            sys.stderr.write(done["stderr"])
        else:
            render.say(f"error: {unknown}")
    code = UNKNOWN_EXIT if done["exit_code"] is None else int(done["exit_code"])
    if done.get("truncated"):
        render.say("warning: its output was longer than 1 MiB, and is cut: write it to a file there, and take parts")
        code = code or Exit.OUTPUT_CUT
    raise typer.Exit(code)


def _not_run(done: dict[str, Any], program: str) -> str | None:
    """In plain words, where the engine had nothing to run."""
    said = done["stdout"] + done["stderr"]
    if done["exit_code"] not in COULD_NOT_RUN or not said.startswith(ENGINE_SAYS):
        return None
    if "not found" in said or "no such file" in said:
        return f"there is no program '{program}' in the instance"
    return f"'{program}' cannot be run in the instance: is it a program, and may it be executed?"


Keep = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="It goes on when you leave it, for ten minutes: the same NAME shows it again.",
        show_default=False,
    ),
]


def terminal(
    name: Name,
    keep: Keep = None,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- CMD...", help="What to run there (default: a shell), after --.", show_default=False),
    ] = None,
) -> None:
    """Open a terminal in an instance; ends with the command's exit code.

    Typed at the start of a line, ~. leaves it.
    """
    from cli.terminal import attach, size

    with Client() as client:
        instance = client.find("instance", name)
        columns, rows = size()
        params: dict[str, Any] = {"columns": columns, "rows": rows}
        if command:
            params["command"] = shlex.join(command)
        if keep:
            params["name"] = keep
        with client.socket(f"/ws/terminal/{instance['id']}", params) as connection:
            code = attach(connection, sys.stdin.fileno())
    raise typer.Exit(code)


def _is_piped() -> bool:
    """Whether something waits in a pipe to be read."""
    waiting = array.array("i", [0])
    try:
        stdin = sys.stdin.fileno()
        if stat.S_ISFIFO(os.fstat(stdin).st_mode):
            fcntl.ioctl(stdin, termios.FIONREAD, waiting)
    except (OSError, ValueError):  # closed, or no file
        return False
    return waiting[0] > 0


@contextlib.contextmanager
def until_interrupted() -> Iterator[None]:
    """For what goes on until Ctrl-C: that is how it is meant to end, and there is nothing to be told."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None


def _watch(client: Client, id: str, output: Format) -> None:
    from rich.live import Live
    from websockets.exceptions import ConnectionClosed

    from cli.terminal import lost

    console = render.out()
    in_place = Live(console=console, auto_refresh=False) if output is Format.TABLE and console.is_terminal else None
    head = output is Format.TABLE and in_place is None
    with until_interrupted(), client.socket(f"/ws/stats/{id}", {}) as connection, in_place or contextlib.nullcontext():
        try:
            for frame in connection:
                sample = json.loads(frame)
                if head:
                    typer.echo(_line(COLUMNS))
                    head = False
                if in_place:
                    in_place.update(render.grid([COLUMNS, _cells(sample)]), refresh=True)
                elif output is Format.TABLE:
                    typer.echo(_line(_cells(sample)))
                else:
                    render.print_line(sample)
        except ConnectionClosed as closed:
            raise lost(closed) from None


def _line(cells: Sequence[str]) -> str:
    return "".join(cell.ljust(WIDTH) for cell in cells).rstrip()


def _cells(sample: dict[str, Any]) -> list[str]:
    at = render.time_of(sample.get("at"))
    return [
        f"{at.astimezone():%m-%d %H:%M:%S}" if at else "",
        render.span(sample["seconds"]) if "seconds" in sample else "",
        f"{sample['cpu_percent']:.1f} %",
        render.size(sample["memory_bytes"]),
        str(sample["pids"]),
        *(render.size(sample[f"{what}_bytes"]) for what in ("rx", "tx", "read", "written")),
    ]
