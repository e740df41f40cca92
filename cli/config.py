"""The program's own file: the platforms that it knows, by name. It holds keys, so it is its owner's alone.

Written whole, beside its old self, and put in its place: who reads it, or dies while writing it, never sees half.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.errors import CommandFailed, Exit, usage
from cli.options import reason

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Context:
    """One platform: where its API is, and as who to speak to it. ``project``: an id; None: the key's own."""

    name: str
    url: str
    key: str | None = field(default=None, repr=False)
    project: str | None = None
    ca_file: str | None = None
    #: Of who has logged in (cli/session.py); until when the first is good, in seconds since 1970, as text.
    access_token: str | None = field(default=None, repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    expires_at: str | None = None
    email: str | None = None


@dataclass(frozen=True)
class Config:
    contexts: Mapping[str, Context]
    #: The context that is used where none is named.
    current: str | None = None

    def find(self, name: str) -> Context:
        if name not in self.contexts:
            message = f"there is no context named '{name}'"
            raise CommandFailed(message, "no_context", Exit.NOT_FOUND, "see what there is: cairn context list")
        return self.contexts[name]


def path(environ: Mapping[str, str] = os.environ) -> Path | None:
    """``$XDG_CONFIG_HOME/cairn/config.toml``, else below ``~/.config``; None: there is no home."""
    wanted = environ.get("XDG_CONFIG_HOME", "")
    # The specification of these folders has a relative one ignored.
    folder = Path(wanted) if Path(wanted).is_absolute() else None
    if folder is None and environ.get("HOME"):
        folder = Path(environ["HOME"]) / ".config"
    return folder / "cairn" / "config.toml" if folder else None


def read(environ: Mapping[str, str] = os.environ) -> Config:
    """What the file says; nothing where there is none. Raises CommandFailed where it makes no sense."""
    file = path(environ)
    try:
        written = file.read_text() if file else ""
    except FileNotFoundError:
        written = ""
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(file, error) from None
    if not written:
        return Config({})
    import tomllib

    try:
        return _checked(tomllib.loads(written))
    except (ValueError, TypeError) as error:
        raise _unusable(file, error) from None


@contextmanager
def changing(environ: Mapping[str, str] = os.environ) -> Iterator[TOMLDocument]:
    """The file's content, to be changed; written when the block ends well. Who changes it too, waits.

    Comments, and what this version does not know, stay.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    file = path(environ)
    if file is None:
        raise usage("there is no place for contexts: set HOME or XDG_CONFIG_HOME")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = file.resolve()  # a link to it stays one
        with (file.parent / f".{file.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            document = tomlkit.parse(file.read_text()) if file.exists() else tomlkit.document()
            _checked(document.unwrap())
            yield document
            _write(file, tomlkit.dumps(document))
    except (OSError, UnicodeDecodeError, TOMLKitError, TypeError, ValueError) as error:
        raise _unusable(file, error) from None


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise usage(f"'{name}' is no name of a context: letters, digits, dots, dashes, at most 63")


def _checked(content: Mapping[str, Any]) -> Config:
    """Raises ValueError and TypeError."""
    contexts = {}
    for name, given in dict(content.get("contexts", {})).items():
        known = {part.name: given[part.name] for part in fields(Context) if part.name in given and part.name != "name"}
        if not all(isinstance(value, str) for value in known.values()) or not known.get("url"):
            raise ValueError(f"context '{name}' needs a url, and its values are text")
        contexts[name] = Context(name, known.pop("url").rstrip("/"), **known)
    current = content.get("current") or None
    if current is not None and not isinstance(current, str):
        raise ValueError("'current' is the name of a context")
    return Config(contexts, current)


def _write(file: Path, content: str) -> None:
    # mkstemp's files are for their owner alone.
    handle, made = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w") as output:
            output.write(content)
            output.flush()
            os.fsync(output.fileno())
        Path(made).replace(file)
    except BaseException:
        Path(made).unlink(missing_ok=True)
        raise


def _unusable(file: Path | None, error: Exception) -> CommandFailed:
    message = f"{file} cannot be used: {reason(error)}"
    return CommandFailed(message, "bad_config", Exit.UNREACHABLE, "mend it, or move it away: see docs/cli.md")
