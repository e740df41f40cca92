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
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import structlog
from pydantic import ValidationError

from drivers.machines import Cancelled, Check, Machines
from model import logs
from model.base import Frozen
from model.errors import CairnError, LeaseLapsed
from model.instances import OwnedMachine
from model.settings import Settings, of_process
from worker import data_folder
from worker.host_drivers import machine_driver
from worker.identity import file_of, of_agent

log = structlog.get_logger()
LOOK_SECONDS = 1.0
#: After so many looks in a row without a fenced machine it ends.
IDLE_LOOKS = 30
STOPS = 8
#: How long a step waits for a lease that has lapsed: two renewals.
WAIT_SECONDS = 10.0


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


class Engines(Frozen):
    """Where the agent finds its engines, this time."""

    docker_host: str
    simulator_url: str


def has_stopped(identity: Path, machine: UUID) -> bool:
    return _stopped(identity, machine).exists()


def forget(identity: Path, machine: UUID) -> None:
    _stopped(identity, machine).unlink(missing_ok=True)


def _stopped(identity: Path, machine: UUID) -> Path:
    """An empty file for each machine that was stopped here, and must be told from one that ended by itself."""
    return identity.with_suffix(".stopped") / str(machine)


def stop(identity: Path, machines: Machines, machine: OwnedMachine) -> None:
    """Stop a fenced machine for its host's sake. Also one that does not seem to run: a paused one would go on when
    it is woken. Raises CairnError."""
    note = _stopped(identity, machine.id)
    if machine.running:
        note.parent.mkdir(mode=0o700, exist_ok=True)
        note.touch(0o600)
    machines.stop(machine.id, 0, lambda: False)
    if machine.running:
        note.touch(0o600)  # a start that ended meanwhile has removed it


def ensure(settings: Settings) -> None:
    """Start the fence of this agent, where it does not run: to be called before a fenced machine is made or started,
    and whenever one is seen.

    Blocks until it watches. Raises FenceFailed where it does not come up.
    """
    if settings.agent_identity is None:
        raise RuntimeError("an agent without an identity has nothing to fence")
    engines = Engines(docker_host=settings.docker_host, simulator_url=settings.simulator_url)
    if read_engines(settings.agent_identity) != engines:
        data_folder.write(_engines(settings.agent_identity), engines.model_dump_json())
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


def _engines(identity: Path) -> Path:
    return identity.with_suffix(".engines")


def read_engines(identity: Path) -> Engines | None:
    try:
        return Engines.model_validate_json(_engines(identity).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


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
    settings = of_process()
    logs.configure(settings.log_level, settings.log_format, "fence", settings.log_limit)
    path = file_of(settings)
    lock = _lock(_mark(path))
    with os.fdopen(int(sys.argv[1]), "wb") as say:
        say.write(b"1")
    if lock is not None:
        keep_watch(path, Hosts(settings).now, lock)


class Hosts:
    """The hosts of the agent, and their engines, as they are now: the fence may be older than both."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: tuple[object, ...] = ()
        self._machines: Mapping[UUID, Machines] = {}

    def now(self) -> Mapping[UUID, Machines]:
        path = file_of(self._settings)
        _, membership = of_agent(self._settings)
        engines = read_engines(path)
        known = (membership.installation, membership.hosts, engines)
        if known != self._known:
            settings = self._settings.model_copy(update=engines.model_dump() if engines else {})
            self._machines = {
                host.id: machine_driver(host, membership.installation, settings) for host in membership.hosts
            }
            self._known = known
        return self._machines


def keep_watch(identity: Path, hosts: Callable[[], Mapping[UUID, Machines]], lock: int) -> None:
    """Watch until there is nothing to do, and nobody has asked meanwhile. ``lock`` is given back."""
    kept: int | None = lock
    while kept is not None:
        seen = watch(identity, hosts)
        os.close(kept)
        # Whoever asked before this found the lock held, and counts on us; whoever asks from now on starts another.
        kept = _lock(_mark(identity)) if _asked(identity) != seen else None


def _asked(identity: Path) -> int:
    """Changes whenever a fence is asked for. 0: the identity was deleted."""
    try:
        return _mark(identity).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def watch(identity: Path, hosts: Callable[[], Mapping[UUID, Machines]]) -> int:
    """Until there has been nothing to fence for a while; the last asking that was seen."""
    idle_looks, seen = 0, 0
    lapsed = False
    now: Mapping[UUID, Machines] = {}
    #: Those on which nothing was fenced at the last look, and nobody has asked since.
    empty: set[UUID] = set()
    with ThreadPoolExecutor(STOPS) as threads:
        # Looks are counted, and not seconds: a machine that slept wakes up to one look at least.
        while idle_looks < IDLE_LOOKS:
            idle_looks += 1
            asked = _asked(identity)
            if asked == 0:
                log.warning("fence.identity_deleted")
                return 0
            if asked != seen:
                idle_looks, seen = 0, asked
                empty.clear()
            try:
                now = hosts()
            except (Exception, SystemExit) as error:  # the hosts that it knew are watched all the same
                log.warning("fence.identity_unread", error=str(error))
            lease = read_lease(identity)
            was, lapsed = lapsed, lease is None or lease.lapsed()
            if lapsed and not was:
                log.warning("fence.closed", lease=lease.model_dump() if lease else None)
            for host, machines in now.items():
                try:
                    fenced = [machine for machine in machines.inventory() if machine.fenced]
                except Exception as error:  # whatever it is, the next look may do better, and nobody else looks
                    if host not in empty:
                        log.warning("fence.engine_away", error=str(error))
                        idle_looks = 0
                    continue
                if fenced:
                    idle_looks = 0
                    empty.discard(host)
                else:
                    empty.add(host)
                if lapsed:
                    list(threads.map(lambda machine, on=machines: _try_to_stop(identity, on, machine), fenced))
            time.sleep(LOOK_SECONDS)
    return seen


def _try_to_stop(identity: Path, machines: Machines, machine: OwnedMachine) -> None:
    try:
        stop(identity, machines, machine)
        if machine.running:
            log.warning("fence.stopped", instance=str(machine.id))
    except Exception as error:  # the next look tries again
        log.error("fence.not_stopped", instance=str(machine.id), error=str(error))


def close(identity: Path, hosts: Mapping[UUID, Machines]) -> None:
    """Before a lapsed lease is renewed: what is fenced is stopped, as it may run elsewhere. Raises CairnError."""
    lease = read_lease(identity)
    if lease is not None and not lease.lapsed():
        return
    for machines in hosts.values():
        for machine in machines.inventory():
            if machine.fenced:
                stop(identity, machines, machine)


class AgentFence:
    """The fence, as the steps of its agent see it: the port of ``drivers.machines``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def _identity(self) -> Path:
        if self._settings.agent_identity is None:
            raise RuntimeError("an agent without an identity has nothing to fence")
        return self._settings.agent_identity

    def is_closed(self) -> bool:
        lease = read_lease(self._identity)
        return lease is None or lease.lapsed()

    def check_open(self, cancelled: Check) -> None:
        ensure(self._settings)
        until = time.monotonic() + WAIT_SECONDS
        while self.is_closed():
            if cancelled():
                raise Cancelled
            if time.monotonic() > until:
                raise LeaseLapsed(
                    "the host's lease has lapsed: what is fenced is not started there until it is renewed"
                )
            time.sleep(LOOK_SECONDS / 4)

    def has_stopped(self, machine: UUID) -> bool:
        return has_stopped(self._identity, machine)

    def forget(self, machine: UUID) -> None:
        forget(self._identity, machine)


if __name__ == "__main__":
    main()
