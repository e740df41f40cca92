"""Which versions of the host agent a platform works with: those of its own release, and of the one before.

Releases are told apart by their first two numbers; what follows them changes nothing between the two. The platform is
upgraded first, then the agents.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Literal

from model.errors import VersionRefused

#: The release before this one. Changed with the version in pyproject.toml.
BEFORE = (0, 2)
_RELEASE = re.compile(r"(\d{1,6})\.(\d{1,6})(?!\d)")

#: ``ok``; ``older``: one release, which works; ``too_old``, ``newer``: no such agent may join; ``unknown``: it did
#: not say, or nothing that can be read.
Skew = Literal["ok", "older", "too_old", "newer", "unknown"]


def platform() -> str:
    """The version of this program."""
    return version("cairn-platform")


def release(number: str | None) -> tuple[int, int] | None:
    found = _RELEASE.match(number or "")
    return (int(found[1]), int(found[2])) if found else None


def skew(agent: str | None) -> Skew:
    """How the version of an agent stands to this platform."""
    ours, theirs = release(platform()), release(agent)
    if theirs is None or ours is None:
        return "unknown"
    if theirs == ours:
        return "ok"
    if theirs > ours:
        return "newer"
    return "older" if theirs >= BEFORE else "too_old"


def check(agent: str | None) -> None:
    """Raises VersionRefused where an agent of this version must not join."""
    if agent is None:
        return  # told by every agent; programs that stand in for one need not
    stands = skew(agent)
    if stands in ("ok", "older"):
        return
    oldest = ".".join(map(str, BEFORE))
    said = {
        "newer": f"the agent is of version {agent}, newer than the platform, which is {platform()}: upgrade the "
        "platform first, or install the agent's program in the platform's version",
        "too_old": f"the agent is of version {agent}, and the platform of {platform()} works with {oldest} and later: "
        "install the agent's program in the platform's version",
        "unknown": f"'{agent}' is no version: expected one like {platform()}",
    }
    raise VersionRefused(said[stands], agent=agent, platform=platform())
