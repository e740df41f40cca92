"""HAProxy in containers on a Docker engine.

Files come by the engine's archive call and take their place by a rename; all else goes over the proxy's own command
line, which listens on the container's loopback interface, by ``nc`` inside. Other weights are told to the running
process. For everything else it is reloaded: its master starts a new process with the listening sockets of the one
before, which ends with the last of its connections. Measured with wrk, 100 reloads under load, of kept connections and
of new ones, fail no request (docs/load-balancers.md).
"""

from __future__ import annotations

import contextlib
import io
import tarfile
import time
from contextlib import closing
from typing import Any
from uuid import UUID

from drivers import docker_readiness, faults
from drivers.docker_engine import DockerEngine, calling, changing, pause
from drivers.docker_streams import DockerStreams
from drivers.locks import alone, of_engine
from drivers.machines import Check
from drivers.ownership import BALANCER, Owner
from model import haproxy
from model.balancers import AppliedSpec, BalancerReading, BalancerSpec, DrainRequest, TargetHealth
from model.errors import CairnError, EngineRefused, EngineUnavailable, InstanceExited, OutcomeUnknown
from model.metrics import LB_RELOADS

#: For a command inside, and for a new process that has begun to serve.
COMMAND_SECONDS, RELOAD_SECONDS = 8.0, 20.0
#: Files of locks there are: two balancers may wait for each other, and no file is left for each that ever was.
LOCKS = 64
#: Between two looks at what a reload, a check or a drain waits for.
LOOK_SECONDS = 0.25
MOST_OUTPUT = 1 << 20
LAST_WORDS = 1000
#: Its second argument is what is said, the first where.
_ASK = ["/bin/sh", "-c", 'printf "%s\\n" "$2" | nc 127.0.0.1 "$1"', "ask"]
_TAKE = [
    "/bin/sh",
    "-c",
    # Taken once already, by a try that ended before it was loaded: what it took the place of is kept.
    f"haproxy -c -f {haproxy.NEW_FILE} && {{ cmp -s {haproxy.NEW_FILE} {haproxy.FILE} || "
    f"cp {haproxy.FILE} {haproxy.OLD_FILE}; }} && "
    f"mv -f {haproxy.NEW_FILE} {haproxy.FILE}",
]
_PUT_BACK = ["mv", "-f", haproxy.OLD_FILE, haproxy.FILE]


class DockerBalancers:
    """The balancer port on one Docker engine, for one owner."""

    name = "docker"

    def __init__(self, base_url: str, *, installation: UUID, host_id: UUID) -> None:
        self._engine = DockerEngine(base_url, Owner(installation=installation, host_id=host_id))
        self._inside = DockerStreams(base_url, installation=installation, host_id=host_id)
        self._base_url = base_url

    def apply(self, spec: BalancerSpec, cancelled: Check) -> AppliedSpec:
        machine = spec.machine.id
        with alone(of_engine(self._base_url, f"balancer {machine.int % LOCKS}"), cancelled):
            engine_id = self._running(machine)
            there = haproxy.revision_of(self._run(machine, ["cat", haproxy.FILE]))
            if there > spec.revision:
                return AppliedSpec(engine_id=engine_id, revision=there)
            known = haproxy.states(self._ask(machine, f"show servers state {haproxy.BACK}"))
            self._put(engine_id, spec, known)
            self._run(machine, _TAKE, refused="HAProxy refuses the configuration")
            faults.reached("after_effect")
            how = "running" if self._loaded(machine) == spec.structure else "reload"
            if how == "reload":
                with calling(), changing(cancelled):
                    self._engine.client.kill(engine_id, "SIGUSR2")
                self._await_reload(machine, engine_id, spec, cancelled)
            self._set_weights(machine, spec)
            LB_RELOADS.labels(how).inc()
        health = self._await_checks(machine, spec, set(spec.weights) - known.keys(), cancelled)
        return AppliedSpec(engine_id=engine_id, revision=spec.revision, health=health)

    def drained(self, request: DrainRequest) -> bool:
        machine = request.machine.id
        self._running(machine)
        said = [self._ask(machine, "show stat")]
        # The processes that reloads have left: each has the connections that it had begun.
        for line in self._ask(machine, "show proc", haproxy.MASTER).partition("# old workers")[2].splitlines():
            if (words := line.split()) and words[0].isdigit():
                said.append(self._ask(machine, f"@!{words[0]} show stat", haproxy.MASTER))
        return not any(
            server.sessions for stat in said for server in haproxy.readings(stat)[1] if server.name in request.servers
        )

    def read(self) -> list[BalancerReading]:
        with calling():
            filters = {"label": [*self._engine.owner.filters(), BALANCER], "status": "running"}
            containers = self._engine.client.containers(filters=filters)
        found = []
        for container in containers:
            owned = self._engine.owner.owned_of(container["Names"][0].removeprefix("/"), container["Labels"] or {})
            # One that does not answer keeps nothing from the others.
            with contextlib.suppress(CairnError):
                if owned is not None and (reading := self._read(*owned)) is not None:
                    found.append(reading)
        return found

    def _read(self, machine: UUID, generation: int, project_id: UUID) -> BalancerReading | None:
        said = self._ask(machine, "show info;show stat")
        info, _, stat = said.partition("# pxname")
        pid = haproxy.info(info).get("Pid", "")
        if not pid.isdigit() or not stat:
            return None
        whole, servers = haproxy.readings(f"# pxname{stat}")
        who = {"id": machine, "project_id": project_id, "generation": generation}
        return BalancerReading(**who, pid=int(pid), servers=servers, **whole)

    def _running(self, machine: UUID) -> str:
        with calling():
            found = self._engine.require(machine)
        if not found["State"]["Running"] or found["State"]["Paused"]:
            raise InstanceExited("the machine of the load balancer does not run")
        return str(found["Id"])

    def _put(self, engine_id: str, spec: BalancerSpec, known: dict[str, Any]) -> None:
        files = {haproxy.NEW_FILE: spec.text, haproxy.STATE_FILE: haproxy.state_file(known, spec.text)}
        with calling():
            self._engine.client.put_archive(engine_id, "/", _archive(files))

    def _loaded(self, machine: UUID) -> str | None:
        """What the process that serves now says of its configuration; None: none serves."""
        with contextlib.suppress(EngineUnavailable):
            return haproxy.info(self._ask(machine, "show info")).get("description")
        return None

    def _await_reload(self, machine: UUID, engine_id: str, spec: BalancerSpec, cancelled: Check) -> None:
        until = time.monotonic() + RELOAD_SECONDS
        while self._loaded(machine) != spec.structure:
            if time.monotonic() > until:
                # So that it starts again with what it can run with.
                self._run(machine, _PUT_BACK)
                with calling():
                    said = docker_readiness.last_words(self._engine.client, engine_id)
                raise EngineUnavailable(f"HAProxy goes on with its old configuration, and does not take the new{said}")
            _wait(cancelled)

    def _set_weights(self, machine: UUID, spec: BalancerSpec) -> None:
        said = self._ask(machine, "show servers state")
        # What gets more comes first, so that at no moment all have none.
        wanted = sorted(spec.weights.items(), key=lambda one: -one[1])
        changes = [
            f"set server {backend}/{name} weight {weight}"
            for backend in (haproxy.BACK, haproxy.LAST)
            for known in [haproxy.states(said, backend)]
            for name, weight in wanted
            if name in known and known[name]["srv_uweight"] != str(weight)
        ]
        # Of some at once: a line of the command line is not endless.
        for first in range(0, len(changes), 20):
            said = self._ask(machine, ";".join(changes[first : first + 20])).strip()
            if said:
                raise EngineRefused(f"HAProxy refuses a weight: {said[:LAST_WORDS]}")

    def _await_checks(
        self, machine: UUID, spec: BalancerSpec, new: set[str], cancelled: Check
    ) -> dict[str, TargetHealth]:
        """The health of the new servers, of which a check has told something in time."""
        until, left, said = time.monotonic() + spec.settle_seconds, new, ""
        while left and time.monotonic() < until:
            said = self._ask(machine, "show stat")
            rows = {row["svname"]: row for row in haproxy.table(said) if row["pxname"] == haproxy.BACK}
            left = {name for name in left if name in rows and not haproxy.is_known(rows[name])}
            if left:
                _wait(cancelled)
        return {server.name: server.health for server in haproxy.readings(said)[1] if server.name in new - left}

    def _ask(self, machine: UUID, command: str, port: int = haproxy.ADMIN) -> str:
        return self._run(machine, [*_ASK, str(port), command])

    def _run(self, machine: UUID, argv: list[str], *, refused: str | None = None) -> str:
        """What a command inside says. ``refused``: what it means where it fails."""
        said = bytearray()
        try:
            with closing(self._inside.run(machine, argv, timeout_seconds=COMMAND_SECONDS)) as command:
                for output in command:
                    said += output.data
                    if len(said) > MOST_OUTPUT:
                        raise EngineUnavailable(f"HAProxy said more than {MOST_OUTPUT >> 10} KiB")
                code = command.exit_code()
        except OutcomeUnknown as error:  # all of these may run twice
            raise EngineUnavailable(error.message) from error
        words = said.decode(errors="replace").replace("\x00", "")
        if code and refused is not None:
            raise EngineRefused(f"{refused}: {words.strip()[-LAST_WORDS:]}")
        if code:
            raise EngineUnavailable(f"the load balancer's machine did not do '{argv[-1][:80]}' (exit code {code})")
        return words


def _wait(cancelled: Check) -> None:
    until = time.monotonic() + LOOK_SECONDS
    while time.monotonic() < until:
        pause(cancelled)


def _archive(files: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(path.removeprefix("/"))
            entry.mode, entry.mtime, entry.size = 0o644, int(time.time()), len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()
