"""The machine port: what an instance needs of an engine, container engines and hypervisors alike.

Rules that hold for every method of every driver:

* Calls block. One that can last over a few seconds takes ``cancelled`` and returns early, by raising
  ``Cancelled``, once it answers True.
* Every call is safe to repeat, at any time, also beside a forgotten earlier attempt of itself.
* A driver touches only objects that carry its own installation and host in their labels.
* After the engine call that changed something, a driver passes ``faults.reached("after_effect")``.
* Errors are those of ``model.errors``: ``EngineUnavailable`` for what may pass or is ambiguous,
  ``EngineRefused`` and the more particular ones for what will not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol
from uuid import UUID

from model.health import Checked, Look
from model.instances import MachineSpec, MachineState, OwnedMachine
from model.restores import FoundMachine
from model.samples import Reading


class Cancelled(Exception):
    """A driver call stopped early, because its caller asked it to."""


Check = Callable[[], bool]
#: Values by the variables that stand for them: see MachineSpec.secrets.
Secrets = Mapping[str, bytes]


class Fence(Protocol):
    """What stops the fenced machines of an agent's hosts where those may count as lost."""

    def is_closed(self) -> bool:
        """Whether the lease has lapsed: everything fenced is stopped, or about to be."""

    def check_open(self, cancelled: Check) -> None:
        """Before what is fenced is made or started: it watches, and the lease holds. Waits a little for the lease.

        Raises FenceFailed where the fence does not start, LeaseLapsed, Cancelled.
        """

    def has_stopped(self, machine: UUID) -> bool:
        """Whether it was the fence that stopped the machine, which has not been started since."""

    def forget(self, machine: UUID) -> None:
        """The machine was started again, or is gone."""


class Machines(Protocol):
    """Machines of one host: containers or VMs."""

    name: str

    def create(
        self,
        spec: MachineSpec,
        user_data: Callable[[], bytes] | None = None,
        secrets: Callable[[], Secrets] | None = None,
    ) -> str:
        """Find or create the machine of ``spec.id``; its engine's id comes back.

        ``user_data`` answers what ``spec.user_data`` stands for; asked only for what was never started. It and the
        authorized key are in the machine before its first start. ``secrets`` likewise answers the values of
        ``spec.secrets``, which are where the program finds them before that.

        Adopts a machine of the same generation; replaces its own of an older generation; raises
        ForeignObject where the name is taken by something without our labels. Does not start it.
        """

    def give(self, spec: MachineSpec, secrets: Secrets) -> None:
        """Make these the values of ``spec.secrets`` that it finds as files, whether it runs or is about to be started.
        What came with its environment stays as it was created. They are nowhere on a disk, and go with the machine.

        Raises EngineRefused where this host has no memory to keep them in.
        """

    def start(self, machine: UUID, cancelled: Check) -> MachineState:
        """Start it and wait until it is ready: running, its user data run once, and healthy where its image has a
        health check of its own.

        Success when it runs already. Raises PortTaken (with the port), InstanceExited, NotFound.
        """

    def ready(self, machine: UUID, cancelled: Check) -> MachineState:
        """The same of a machine that was started, without starting it. Raises InstanceExited, NotFound."""

    def adjust(self, spec: MachineSpec) -> None:
        """Give it the CPU and memory limits of ``spec``, running, paused or not; it stays as it is.

        Raises NotFound, EngineRefused; NeedsStop where it can be done only while it is stopped, NeedsRecreate where
        it cannot be done to this machine; InstanceExited where its program has not survived it, which a repeated
        call knows where ``spec.lives``.
        """

    def pause(self, machine: UUID) -> None:
        """Hold its processes; they keep their memory. Success when it is paused.

        Raises NotFound, InstanceExited where it does not run.
        """

    def resume(self, machine: UUID) -> None:
        """Let the processes of a paused one go on. Success when it runs. Raises NotFound, InstanceExited."""

    def stop(self, machine: UUID, grace_seconds: float, cancelled: Check) -> None:
        """Ask it to end, and end it after ``grace_seconds``. Success when it is stopped or absent.

        A paused one goes on for that: what does not run cannot hear that it is to end.
        """

    def delete(self, machine: UUID, generation: int | None = None) -> None:
        """Remove it, running or not, and observe that it is gone. Success when it is absent.

        With ``generation``, only a machine of that generation or an older one. What has our name
        without our labels is not ours: it stays, and counts as absent.
        """

    def inventory(self) -> list[OwnedMachine]:
        """All machines that carry this installation's and this host's labels, with what the engine tells of them.

        A change that somebody made behind our back shows within a minute, at most.
        """

    def survey(self, machine: UUID | None = None) -> list[FoundMachine]:
        """The same, or of one machine, with what the engine tells of what each was made from; looked at now."""

    def sample(self) -> list[Reading]:
        """What all running machines with this installation's and this host's labels have used, in one call.

        Takes a second or two, however many there are. One that cannot be read (it ends meanwhile) is left out.
        """

    def checked(self) -> list[Checked]:
        """All running machines of this owner that have a health check."""

    def look(self, machine: Checked) -> Look:
        """Ask a machine once whether it is well, and it alone, whoever gets its address when it ends; takes as long as
        its check allows, at most.

        Raises EngineUnavailable where the engine keeps it from knowing.
        """
