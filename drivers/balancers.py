"""The balancer port: the proxies that run in the machines of load balancers.

The rules of the machine port hold here too (see ``drivers.machines``): calls block, are safe to repeat, and stop early
when they are asked to.
"""

from __future__ import annotations

from typing import Protocol

from drivers.machines import Check
from model.balancers import AppliedSpec, BalancerReading, BalancerSpec, DrainRequest


class Balancers(Protocol):
    """The proxies of one host."""

    name: str

    def apply(self, spec: BalancerSpec, cancelled: Check) -> AppliedSpec:
        """Have the proxy run with this configuration, without a request that fails for it; then wait, for as long as
        ``spec`` says, until it is known of each new server whether it is up.

        Where the proxy has a newer one already, that stays: the answer says which. What is not valid changes nothing.
        Raises EngineRefused for that, InstanceExited where its machine does not run, NotFound, Cancelled.
        """

    def drained(self, request: DrainRequest) -> bool:
        """Whether none of these servers has a session any more, in any process of the proxy. Raises as ``apply``."""

    def read(self) -> list[BalancerReading]:
        """What all running proxies with this installation's and this host's labels have done.

        One that cannot be read (it ends meanwhile, or was told nothing yet) is left out.
        """
