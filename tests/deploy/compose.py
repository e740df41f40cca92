"""``docker-compose.yml`` and the ``Dockerfile``, read as what a test can run: commands, environments, health checks."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def read(**variables: str) -> dict[str, Any]:
    """The file as compose reads it: ``${NAME:-default}`` replaced, and what is only named taken from ``variables``."""

    def value(found: re.Match[str]) -> str:
        return variables.get(found[1]) or found[2] or ""

    document: dict[str, Any] = yaml.safe_load(_VARIABLE.sub(value, FILE.read_text()))
    for service in document["services"].values():
        environment = service.get("environment", {})
        named = {name: variables.get(name) for name, value in environment.items() if value is None}
        environment = {name: value for name, value in environment.items() if value is not None}
        if environment or named:
            service["environment"] = environment | {name: value for name, value in named.items() if value is not None}
    return document


def passed_on() -> dict[str, set[str]]:
    """Of each service of ours, the variables that it is given where ``.env`` or the shell has them."""
    return {
        name: {variable for variable, value in service["environment"].items() if value is None}
        for name, service in ours(yaml.safe_load(FILE.read_text())).items()
    }


def ours(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The services that run Cairn's own image."""
    return {name: one for name, one in document["services"].items() if one["image"].startswith("cairn:")}


def build_commands() -> list[list[str]]:
    """What the image's first stage runs once it has uv, in order."""
    lines = DOCKERFILE.read_text().split("\nFROM ")[1].splitlines()
    commands = [shlex.split(line.removeprefix("RUN ")) for line in lines if line.startswith("RUN ")]
    return [words for words in commands if words[0] != "pip"]


def image_environment() -> dict[str, str]:
    """What the image sets."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.startswith("ENV ")]
    pairs = [pair.partition("=") for line in lines for pair in shlex.split(line.removeprefix("ENV "))]
    return {name: value for name, _, value in pairs if name != "PATH"}


def commands_of(page: Path, heading: str, number: int = 0) -> list[list[str]]:
    """The commands of a block under a heading of a page, the first one unless it is said, without their comments."""
    section = re.split(r"\n#{2,4} ", page.read_text().partition(f"\n{heading}\n")[2])[0]
    block = section.split("```\n")[1 + 2 * number]
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
