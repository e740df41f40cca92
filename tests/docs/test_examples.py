"""Every ``cairn …`` that a page shows is a command that there is, with options that it has. None is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import typer

from cli.commands import COMMANDS
from cli.given import given
from cli.main import app, load
from tests.docs.test_links import PAGES, inline, tokens

PROGRAM = "cairn"
#: Between two commands of a line, or around them.
_ENDS = set("();<>|&")
_ASSIGNMENT = re.compile(r"\w+=")


def commands_of(line: str) -> Iterator[list[str]]:
    """The arguments of each ``cairn`` of a line of shell, as far as it is one."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.commenters = "#"
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        return  # text of several lines in quotes
    begins = True
    found: list[str] | None = None
    for word in words:
        if set(word) <= _ENDS:
            if found is not None:
                yield found
            begins, found = True, None
        elif found is not None:
            found.append(word)
        elif begins and word.rpartition("/")[2] == PROGRAM:
            found = []
        else:
            begins = begins and bool(_ASSIGNMENT.match(word))
    if found is not None:
        yield found


def lines(page: str) -> Iterator[str]:
    """Of blocks of shell; what is generated of the program itself says ``[OPTIONS]``."""
    for token in tokens(page):
        if token.type == "fence" and token.info.strip() in ("", "sh", "bash", "shell", "console"):
            for line in token.content.replace("\\\n", " ").splitlines():
                if "[OPTIONS]" not in line and "Example: " not in line:
                    yield line.strip().removeprefix("$ ")


def parse(words: list[str]) -> None:
    """As the program does, up to where the command would begin."""
    command: Any = typer.main.get_command(app)
    parent, name = None, PROGRAM
    try:
        while True:
            parent = command.make_context(name, list(words), parent=parent)
            words = [*getattr(parent, "_protected_args", []), *parent.args]
            if not hasattr(command, "resolve_command") or not words:
                return
            name, command, words = command.resolve_command(parent, words)
    finally:
        given.forget()


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_blocks_are_understood(page: str) -> None:
    for line in lines(page):
        for words in commands_of(line):
            try:
                with suppress(typer.Exit):  # --help, --version
                    parse(words)
            except Exception as error:
                pytest.fail(f"{page}: cairn {shlex.join(words)}: {getattr(error, 'message', error)}")


def leaf(words: list[str]) -> Any:
    """The command, or the group, that words begin with; None where there is none."""
    if not words or words[0] not in COMMANDS:
        return None
    command = load(words[0])
    for word in words[1:]:
        below = getattr(command, "commands", None)
        if not below or not re.fullmatch(r"[a-z-]+", word) or word.startswith("-"):
            break
        if word not in below:
            return command if words[0] == "restore" else None  # which takes a file as well
        command = below[word]
    return command


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_have_these_names_and_options(page: str) -> None:
    """In the text they may be parts of one: ``cairn instance show``, ``cairn restore adopt|forget``."""
    for child in inline(page):
        if child.type != "code_inline" or not re.match(r"cairn [a-z]", child.content):
            continue
        for written in child.content.replace("\\|", "|").split("; "):
            words = re.split(r"[\s,]+|\|", written.removeprefix("cairn ").strip())
            command = leaf(words)
            assert command is not None, f"{page}: {child.content}"
            own = words[: words.index("--")] if "--" in words else words
            asked = {word.partition("=")[0] for word in own if re.match(r"--[a-z]", word)}
            known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
            if words[0] != "watch" and not hasattr(command, "commands"):
                assert asked <= known | {"--help"}, f"{page}: {child.content}"
