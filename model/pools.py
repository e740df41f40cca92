"""Pools: sandboxes that run before anybody asks for them. Each is a group (model.groups) whose members are claimed by
work sessions: what launches, replaces and deletes members is that of groups."""

from __future__ import annotations

import datetime as dt
from typing import Final, Literal

from model.base import Frozen
from model.instances import MachineSpec
from model.sessions import SessionTree

#: Sessions that asked for a sandbox of a pool within so long: as many it keeps ready, within its bounds.
DEMAND: Final = dt.timedelta(minutes=10)
#: A sandbox that nobody has claimed for so long is replaced.
OLDEST: Final = dt.timedelta(days=1)
#: What the agent of a host says that can bring files into a sandbox that runs.
CAPABILITY: Final = "sessions.warm"
#: A pool's members are replaced so many at a time: what is not ready yet serves nobody.
SURGE, UNAVAILABLE = "25%", "25%"

Start = Literal["warm", "cold"]


class Join(Frozen):
    """What a host is told when a session has claimed a sandbox of a pool."""

    tree: SessionTree
    spec: MachineSpec


def wanted(size: int, max_size: int, asked: int) -> int:
    """How many are to be ready, where so many were asked for within ``DEMAND``."""
    return min(max_size, max(size, asked))
