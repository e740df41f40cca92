"""``cairn completion``, and what the shell is offered for names: asked of the API, quickly or not at all."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

#: Who presses Tab waits no longer.
ANSWER_SECONDS = 1.0
MOST = 200


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="Your shell.", show_default=False)]) -> None:
    """Print what makes the shell complete commands, options and names. Put it into its start-up file.

    bash: eval "$(cairn completion bash)" in ~/.bashrc

    zsh: eval "$(cairn completion zsh)" in ~/.zshrc, after compinit

    fish: cairn completion fish > ~/.config/fish/completions/cairn.fish
    """
    from cli.main import complete

    raise typer.Exit(complete(f"source_{shell.value}"))


def instances(incomplete: str) -> list[str]:
    return _names("/instances", "name", incomplete)


def hosts(incomplete: str) -> list[str]:
    return _names("/hosts", "name", incomplete)


def workflows(incomplete: str) -> list[str]:
    return _names("/workflows", "id", incomplete)


def contexts(incomplete: str) -> list[str]:
    from cli import config
    from cli.errors import CommandFailed

    try:
        return [name for name in config.read().contexts if name.startswith(incomplete)]
    except CommandFailed:
        return []


def _names(path: str, field: str, incomplete: str) -> list[str]:
    """Nothing where the API does not answer: the line that is being typed is no place for errors."""
    import httpx

    from cli.client import Client
    from cli.errors import CommandFailed

    try:
        with Client() as client:
            answer = client.request("GET", path, params={"limit": MOST}, patience=0, timeout=ANSWER_SECONDS)
    # No context, no address, no proxy that httpx could use, no answer: that is told once the command is run.
    except (CommandFailed, httpx.HTTPError, httpx.InvalidURL, ImportError, OSError, ValueError):
        return []
    rows: Any = answer["data"]
    if not isinstance(rows, list):  # something else answers there
        return []
    names = {str(row.get(field) or "") for row in rows if isinstance(row, dict)}
    return sorted(name for name in names if name and name.startswith(incomplete))
