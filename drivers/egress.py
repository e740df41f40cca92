"""The egress port: how instances of the network class `allow-list` reach what they may. A capability of an agent.

Their network has nothing but a loopback. On that listens a proxy which the agent serves from outside: it resolves
names by itself, and connects to nothing but what the instance's list names. Without the agent there is no way out.
"""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

from drivers.machines import Check


class Egress(Protocol):
    """The proxies of one host's instances."""

    def able(self) -> bool:
        """Whether this process may open sockets in the networks of the host's instances. Takes milliseconds."""

    def follow(self, machine: UUID, cancelled: Check) -> None:
        """The machine was started: look at it now, and wait a little until its proxy listens. Raises Cancelled."""

    async def run(self) -> None:
        """Serve all that run, now and later, until it is cancelled; then nothing of it is left.

        Of each that is started again, in whatever way, the proxy listens again within seconds.
        """
