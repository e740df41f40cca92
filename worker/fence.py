"""The fence of a host: stops what must not run while its host may count as lost. Program ``cairn-fence``.

The control plane starts an instance of ``on_host_lost: fence`` elsewhere only ``fence_after`` and a margin after it
last renewed the host's lease. By then this has stopped it here. It counts from before the renewal was asked for, on a
clock that goes on while the machine sleeps, so it is always first.

A process of its own, which outlives the agent: an agent that died renews nothing, and its instances run on. It
ends by itself when there is nothing to fence. It cannot help where the engine does not answer, or where it is killed
together with the agent (a container that holds both).
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import structlog
from pydantic import ValidationError

from drivers.machines import Machines
from model import logs
from model.base import Frozen
from model.errors import CairnError
from model.settings import Settings, of_process
from worker import data_folder

log = structlog.get_logger()
LOOK_SECONDS = 1.0
#: After so many looks in a row without a fenced machine it ends.
IDLE_LOOKS = 30
STOPS = 8


class Lease(Frozen):
    """The last renewal that was granted, for who must know it when the agent is gone."""

    #: Which life of the machine, as other boots have other clocks.
    boot: str
    #: Seconds of CLOCK_BOOTTIME at which it was asked for.
    asked_at: float
    fence_after: float

    def lapsed(self) -> bool:
        return self.boot != boot_id() or clock() - self.asked_at > self.fence_after


def clock() -> float:
    """Seconds since the machine's boot, its sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def lease_file(identity: Path) -> Path:
    return identity.with_suffix(".lease")


def write_lease(identity: Path, asked_at: float, fence_after: float) -> None:
    lease = Lease(boot=boot_id(), asked_at=asked_at, fence_after=fence_after)
    data_folder.write(lease_file(identity), lease.model_dump_json())


def read_lease(identity: Path) -> Lease | None:
    try:
        return Lease.model_validate_json(lease_file(identity).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def ensure(settings: Settings) -> None:
    """Start the fence of this agent, where it does not run: to be called before a fenced machine is made or started,
    and whenever one is seen.

    Blocks until it watches. Raises FenceFailed where it does not come up.
    """
    if settings.agent_identity is None:
        raise RuntimeError("an agent without an identity has nothing to fence")
    mark = _mark(settings.agent_identity)
    mark.touch(0o600)  # one that is about to end for want of work sees it, and stays
    lock = _lock(mark)
    if lock is None:
        return
    os.close(lock)
    read, write = os.pipe()
    with subprocess.Popen(
        [str(Path(sys.executable).with_name("cairn-fence")), str(write)],
        env=dict(os.environ) | {"CAIRN_AGENT_IDENTITY": str(settings.agent_identity)},
        stdin=subprocess.DEVNULL,
        pass_fds=(write,),
    ):
        # It leaves at once, and what watches is nobody's child: it outlives the agent, and is no zombie of it.
        os.close(write)
    with os.fdopen(read, "rb") as told:
        if told.read(1) != b"1":
            raise FenceFailed("the fence of this host does not start: see the agent's log")


def _mark(identity: Path) -> Path:
    return identity.with_suffix(".fence")


def _lock(mark: Path) -> int | None:
    """The descriptor that makes its holder the one fence of the agent; None: there is one."""
    lock = os.open(mark, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


class FenceFailed(CairnError):
    code, status, retryable = "fence_failed", 503, True


def main() -> None:
    """``cairn-fence FD``: goes into the background; says on the descriptor that it, or another, watches."""
    if os.fork():
        os._exit(0)
    os.setsid()
    from worker.agent import driver, identity_file, read_identity

    settings = of_process()
    logs.configure(settings.log_level, settings.log_format, "fence")
    _, membership = read_identity(settings)
    lock = _lock(_mark(identity_file(settings)))
    with os.fdopen(int(sys.argv[1]), "wb") as say:
        say.write(b"1")
    if lock is not None:
        machines = {host.id: driver(host, membership.installation, settings) for host in membership.hosts}
        watch(identity_file(settings), machines)


def watch(identity: Path, hosts: Mapping[UUID, Machines]) -> None:
    """Until there has been nothing to fence for a while."""
    idle_looks, marked = 0, 0.0
    lapsed = False
    with ThreadPoolExecutor(STOPS) as threads:
        # Looks are counted, and not seconds: a machine that slept wakes up to one look at least.
        while idle_looks < IDLE_LOOKS:
            idle_looks += 1
            asked = _mark(identity).stat().st_mtime
            if asked != marked:
                idle_looks, marked = 0, asked
            lease = read_lease(identity)
            was, lapsed = lapsed, lease is None or lease.lapsed()
            if lapsed and not was:
                log.warning("fence.closed", lease=lease.model_dump() if lease else None)
            for machines in hosts.values():
                try:
                    fenced = [machine for machine in machines.inventory() if machine.fenced]
                except Exception as error:  # whatever it is, the next look may do better, and nobody else looks
                    log.warning("fence.engine_away", error=str(error))
                    idle_looks = 0
                    continue
                if fenced:
                    idle_looks = 0
                if lapsed:
                    # Also those that do not seem to run: a paused one would go on when it is woken.
                    list(threads.map(lambda machine, on=machines: _stop(on, machine.id, machine.running), fenced))
            time.sleep(LOOK_SECONDS)


def _stop(machines: Machines, machine: UUID, running: bool) -> None:
    try:
        machines.stop(machine, 0, lambda: False)
        if running:
            log.warning("fence.stopped", instance=str(machine))
    except Exception as error:  # the next look tries again
        log.error("fence.not_stopped", instance=str(machine), error=str(error))


def close(identity: Path, hosts: Mapping[UUID, Machines]) -> None:
    """Before a lapsed lease is renewed: what is fenced is stopped, as it may run elsewhere. Raises CairnError."""
    lease = read_lease(identity)
    if lease is not None and not lease.lapsed():
        return
    for machines in hosts.values():
        for machine in machines.inventory():
            if machine.fenced:
                machines.stop(machine.id, 0, lambda: False)


def check_open(settings: Settings) -> None:
    """Before what is fenced is made or started: the fence watches, and the lease holds. Raises FenceFailed."""
    ensure(settings)
    lease = read_lease(settings.agent_identity) if settings.agent_identity else None
    if lease is None or lease.lapsed():
        raise FenceFailed("the host's lease has lapsed: what is fenced is not started there until it is renewed")


if __name__ == "__main__":
    main()
