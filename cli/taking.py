"""Options that several commands have, said once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, get_type_hints

#: The parameter of a command in whose place the options come.
GIVEN = "given"


def taking(shared: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The command has the options of ``shared`` beside its own; what that makes of them is its parameter ``given``."""
    its = _parameters(shared)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = _parameters(command)
        at = [one.name for one in own].index(GIVEN)
        both = [*own[:at], *its, *own[at + 1 :]]

        @wraps(command)
        def run(**options: Any) -> None:
            made = shared(**{one.name: options.pop(one.name) for one in its})
            command(**options, **{GIVEN: made})

        run.__signature__ = inspect.Signature(both)  # type: ignore[attr-defined]  # typer asks for it
        run.__annotations__ = {one.name: one.annotation for one in both}
        return run

    return decorate


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """With their types, whichever module's names these are. All are passed by name."""
    types = get_type_hints(function, include_extras=True)
    found = inspect.signature(function).parameters.values()
    return [one.replace(annotation=types[one.name], kind=inspect.Parameter.KEYWORD_ONLY) for one in found]
