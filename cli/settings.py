"""The settings, for commands that work on this machine."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError

from cli.errors import usage
from model.settings import Settings, problem_of


def read_settings(**given: Any) -> Settings:
    """The settings, ``given`` ones before the environment's; a bad one is a usage error that names its variable."""
    try:
        return Settings(**given)
    except (ValidationError, SettingsError) as error:
        raise usage(problem_of(error), "see docs/configuration.md") from None
