"""Hosts behind networks of their own: launches spread over them, and a cable that is cut makes nothing run twice."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import docker
import pytest

from tests import invariants
from tests.machine import Machine, token
from tests.network import Engine, Namespace, Relay
from tests.stack import Json, Stack, wait_for
from worker import engine

#: Its first test sets all of it up.
FENCE_AFTER = 8
ALL = os.environ.get("CAIRN_CHAOS") == "all"
#: So many at once, on Docker engines and on simulated ones: more than there is room for.
BURST = {"docker": 40, "simulated": 160} if ALL else {"docker": 24, "simulated": 40}
#: What all hosts have for instances of one vCPU: those on Docker engines, and simulated ones.
DOCKER_CPUS, SIMULATED_CPUS, SIMULATED_HOSTS = 4, 20 if ALL else 6, 4
HOSTS = ("local", "own-engine", "cut-from-temporal", "cut-from-api")
#: Lease and margin, a tick, and the start of a run that nobody asked for.
LOST_SECONDS = 60


Removable = TypeVar("Removable", Namespace, Engine, Stack, Relay)


class Fleet:
    """A platform, and three machines beside it: one with an engine of its own, two in networks of their own."""

    def __init__(self, folder: Path) -> None:
        self._made = contextlib.ExitStack()
        try:
            engine_space, *spaces = [self._until_removed(Namespace(number)) for number in range(3)]
            self.spaces = dict(zip(HOSTS[2:], spaces, strict=True))
            self.engine = self._until_removed(Engine(engine_space))
            self.stack = self._until_removed(
                Stack(
                    simulated_hosts=SIMULATED_HOSTS,
                    CAIRN_API_HOST=engine_space.outside,
                    CAIRN_FENCE_AFTER=str(FENCE_AFTER),
                    CAIRN_HOST_CPUS=str(DOCKER_CPUS),
                    CAIRN_OVERCOMMIT_CPU="1",
                )
            )
            self.stack.engines = [engine.SOCKET, self.engine.url]
            self.stack.start().ready()
            # Temporal listens on loopback, as it should: the hosts have a tunnel.
            self.temporal_port = int(self.stack.endpoint()["temporal_address"].rpartition(":")[2])
            self._until_removed(Relay(engine_space.outside, self.temporal_port))
            self.machine = Machine(self.stack, folder)
            self._made.callback(self._end_agents)
            cpus = {"CAIRN_HOST_CPUS": str(DOCKER_CPUS)}
            self.machine.start("own-engine", token(self.stack), CAIRN_DOCKER_HOST=self.engine.url, **cpus)
            for name, space in self.spaces.items():
                self.machine.start(name, token(self.stack), space.enter, **cpus)
            for name in HOSTS[1:]:
                self.machine.host(name)
        except BaseException:
            self.remove()
            raise

    def _until_removed(self, made: Removable) -> Removable:
        self._made.callback(made.remove)
        return made

    def _end_agents(self) -> None:
        self.machine.end_all()
        shutil.rmtree(self.machine.folder)  # what fences still watch goes by it

    def remove(self) -> None:
        self._made.close()

    @property
    def api_port(self) -> int:
        return int(self.stack.endpoint()["api_url"].removesuffix("/v1").rpartition(":")[2])

    def host(self, name: str) -> Json:
        return next(host for host in self.stack.list("/hosts") if host["name"] == name)

    @contextlib.contextmanager
    def cordoned(self, name: str) -> Iterator[None]:
        path = f"/hosts/{self.host(name)['id']}"
        self.stack.request("POST", f"{path}/cordon").raise_for_status()
        try:
            yield
        finally:
            self.stack.request("POST", f"{path}/uncordon").raise_for_status()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("machines"))
    yield made
    made.remove()


@pytest.fixture(autouse=True)
def at_rest(fleet: Fleet) -> Iterator[None]:
    yield
    invariants.settle(fleet.stack)
    fleet.stack.delete_all()
    invariants.settle(fleet.stack)


def test_launches_spread_over_hosts_with_engines_and_networks_of_their_own(fleet: Fleet) -> None:
    stack = fleet.stack
    launched = [stack.launch(backend="docker") for _ in range(2 * len(HOSTS))]
    for one in launched:
        stack.completed(one)
    instances = [stack.instance(one) for one in launched]
    spread = Counter(instance["host"] for instance in instances)
    # Two each; a host whose lease is late for a moment, on a busy machine, is passed over once.
    assert set(spread) == set(HOSTS), spread
    assert max(spread.values()) <= 3, spread
    client = docker.DockerClient(base_url=fleet.engine.url)
    try:
        there = {container.labels["io.cairn.id"] for container in client.containers.list()}
    finally:
        client.close()
    assert there == {instance["id"] for instance in instances if instance["host"] == "own-engine"}


def test_many_launches_at_once_fill_the_fleet_exactly_and_no_further(fleet: Fleet) -> None:
    stack = fleet.stack
    stack.sql("UPDATE hosts SET cpus = %s WHERE backend = 'simulated'", SIMULATED_CPUS)
    room = {"docker": DOCKER_CPUS * len(HOSTS), "simulated": SIMULATED_CPUS * SIMULATED_HOSTS}
    wanted = [backend for backend, count in BURST.items() for _ in range(count)]

    def launch(number: int) -> tuple[str, Json | None, str]:
        backend = wanted[number]
        body = {"name": f"burst-{number}", "image": "cairn/base:latest", "backend": backend}
        answer = stack.request("POST", "/instances", json=body)
        if answer.status_code == 409:
            return backend, None, answer.json()["error"]["code"]
        assert answer.status_code == 202, answer.text
        return backend, answer.json(), ""

    with ThreadPoolExecutor(len(wanted)) as threads:
        answers = list(threads.map(launch, range(len(wanted))))
    runs, refused = Counter[str](), [code for _, accepted, code in answers if accepted is None]
    for backend, accepted, _ in answers:
        if accepted is not None:
            row = stack.ended(accepted, 90)
            if row["state"] == "completed":
                runs[backend] += 1
            else:
                refused.append(row["error"]["code"])
    assert runs == room
    assert refused == ["no_capacity"] * (len(wanted) - sum(room.values()))
    for host in stack.list("/hosts"):
        assert host["allocated"]["vcpus"] == host["capacity"]["vcpus"], host
    late = stack.request("POST", "/instances", json={"name": "late", "image": "cairn/base:latest", "backend": "docker"})
    assert (late.status_code, late.json()["error"]["code"]) == (409, "no_capacity")


class Watch:
    """How many machines of each instance run, all engines together, seen five times a second."""

    def __init__(self, fleet: Fleet) -> None:
        self._clients = [docker.APIClient(base_url=url) for url in fleet.stack.engines]
        self._ended = threading.Event()
        self.most: Counter[str] = Counter()
        self.last: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._ended.wait(0.2):
            seen = Counter(
                str(container["Labels"].get("io.cairn.id"))
                for client in self._clients
                for container in client.containers(filters={"label": "io.cairn.id"})
            )
            self.most |= seen
            self.last = seen

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for client in self._clients:
            client.close()


def runs_on(stack: Stack, instance: Json, host: str) -> bool:
    now = stack.instance(instance)
    return (now["host"], now["status"]) == (host, "running")


def test_a_host_cut_from_temporal_or_from_the_api_is_lost_and_nothing_fenced_runs_twice(fleet: Fleet) -> None:
    stack = fleet.stack
    there = {
        (host, policy): stack.running(backend="docker", host=host, on_host_lost=policy)
        for host in fleet.spaces
        for policy in ("keep", "replace", "fence")
    }
    fenced = [instance for (_, policy), instance in there.items() if policy == "fence"]
    kept = [(host, instance) for (host, policy), instance in there.items() if policy == "keep"]
    leaving = [instance for (_, policy), instance in there.items() if policy != "keep"]
    # What moves goes to the other engine: on one engine a name is there once, whatever we do.
    with fleet.cordoned("local"), Watch(fleet) as watch:
        wait_for(
            "all of it is seen to run", lambda: all(watch.last[instance["id"]] == 1 for instance in there.values())
        )
        fleet.spaces["cut-from-temporal"].cut(fleet.temporal_port)
        fleet.spaces["cut-from-api"].cut(fleet.api_port)
        try:
            wait_for(
                "the fence closes on both",
                lambda: not any(watch.last[instance["id"]] for instance in fenced),
                FENCE_AFTER + 12,
            )
            wait_for("both are unreachable", lambda: not any(fleet.host(name)["reachable"] for name in fleet.spaces))
            try:
                for instance in leaving:
                    wait_for("it runs elsewhere", lambda i=instance: runs_on(stack, i, "own-engine"), LOST_SECONDS)
            except AssertionError as late:
                runs = [(row["kind"], row["state"], row["error"]) for row in stack.list("/workflows")[:8]]
                hosts = [(host["name"], host["state"], host["last_seen_at"]) for host in stack.list("/hosts")]
                raise AssertionError(f"{late}: {runs} {hosts} {stack.sql('SELECT now(), * FROM pulses')}") from None
            for host, instance in kept:
                assert runs_on(stack, instance, host)
                assert watch.last[instance["id"]] == 1
        finally:
            for space in fleet.spaces.values():
                space.mend()
        for name in fleet.spaces:
            wait_for(f"{name} is back", lambda host=name: fleet.host(host)["reachable"], 30)
        wait_for(
            "one of each is left",
            lambda: all(watch.last[instance["id"]] == 1 for instance in there.values()),
            20,
        )
    assert {watch.most[instance["id"]] for instance in fenced} == {1}, "twice at once"
    for instance in leaving:
        assert runs_on(stack, instance, "own-engine")
        (moved,) = stack.get("/workflows", kind="MoveInstance", resource_id=instance["id"])
        assert moved["state"] == "completed"


def test_a_removed_host_that_comes_back_is_refused_and_what_is_fenced_there_ends(
    fleet: Fleet, docker_engine: docker.DockerClient
) -> None:
    stack, machine = fleet.stack, fleet.machine
    secret = token(stack)
    machine.start("removed", secret)
    host = machine.host("removed")
    fenced, other = (
        stack.running(backend="docker", host="removed", on_host_lost=policy) for policy in ("fence", "keep")
    )
    machine.end("removed", signal.SIGKILL)
    for instance in (fenced, other):
        stack.accept("DELETE", f"/instances/{instance['id']}?force=true")
    mine = {"all": True, "filters": {"label": f"io.cairn.host={host['id']}"}}
    try:
        wait_for("it is empty", lambda: stack.request("DELETE", f"/hosts/{host['id']}").status_code == 204, 60)
        machine.start("removed", secret)
        try:
            wait_for("it is refused", lambda: "lease.refused" in machine.log("removed"), 60)
        except AssertionError as late:
            raise AssertionError(f"{late}:\n{machine.log('removed')}") from None
        machine.agents["removed"].wait(20)
        assert machine.log("removed").count("agent.ready") == 1, "it took steps"
        names = {f"cairn-instance-{fenced['id']}": "exited", f"cairn-instance-{other['id']}": "running"}

        def states() -> dict[str, str]:
            return {str(container.name): container.status for container in docker_engine.containers.list(**mine)}

        wait_for("what is fenced ends, and nothing else", lambda: states() == names, FENCE_AFTER + 12)
    finally:
        machine.agents.pop("removed", None)
        for container in docker_engine.containers.list(**mine):
            container.remove(force=True)
