"""``cairn completion``: what a shell needs to complete commands."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cli.main import complete


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
    raise typer.Exit(complete(f"source_{shell.value}"))
