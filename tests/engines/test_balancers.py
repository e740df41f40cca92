"""What the Docker driver makes of a balancer: real HAProxy, real targets, requests that never stop."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import random
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import httpx
import pytest

from drivers.docker import DockerMachines
from drivers.docker_balancers import DockerBalancers
from drivers.ownership import Owner, machine_name
from model import haproxy
from model.balancers import BalancerConfig, BalancerSpec, DrainRequest, Server, TargetCheck
from model.errors import EngineRefused, EngineUnavailable, InstanceExited
from model.instances import MachineSpec, Port
from tests.drivers.conftest import free_port, never, spec
from tests.engines.conftest import remove_all
from tests.services import until
from tests.traffic import Traffic
from worker import engine, haproxy_image

pytestmark = pytest.mark.engine
#: ``make chaos`` reconfigures a hundred times; a small part of that is tried each time.
CHANGES = 100 if os.environ.get("CAIRN_CHAOS") == "all" else 6
SEED = int(os.environ["CAIRN_CHAOS_SEED"])
CHECK = TargetCheck(interval_seconds=0.5)


class Farm:
    """Three targets that answer with their names, and a balancer."""

    def __init__(self, **more: Any) -> None:
        self.owner = Owner(installation=uuid4(), host_id=uuid4())
        about = {"installation": self.owner.installation, "host_id": self.owner.host_id}
        self.machines = DockerMachines(engine.SOCKET, **about, publish_address="127.0.0.1")
        self.balancers = DockerBalancers(engine.SOCKET, **about)
        self.targets = {name: self._target(name) for name in "abc"}
        self.port = free_port()
        self.proxy = self.launch(**more)
        self.revision = 0

    def _target(self, name: str) -> tuple[MachineSpec, str]:
        serve = f"echo {name} > /www/index.html; /bin/busybox httpd -f -p 80 -h /www; sleep 100000"
        made = spec(cmd=["/bin/sh", "-c", serve])
        self.machines.create(made)
        return self._started(made)

    def _started(self, target: MachineSpec) -> tuple[MachineSpec, str]:
        address = self.machines.start(target.id, never).private_ip
        assert address is not None
        return target, address

    def silence(self, name: str) -> None:
        """As a machine that has died: what is open ends, and nothing answers who knocks. Its address stays its own,
        which that of a container that ended would not."""
        container = machine_name(self.targets[name][0].id)
        sdk = docker.APIClient(engine.SOCKET)
        inside = ["nsenter", f"--net=/proc/{sdk.inspect_container(container)['State']['Pid']}/ns/net", "--"]
        drop = [
            "iptables",
            "--wait",
            "--append",
            "INPUT",
            "--protocol",
            "tcp",
            "--dport",
            "80",
            "--syn",
            "--jump",
            "DROP",
        ]
        subprocess.run([*inside, *drop], check=True, capture_output=True, timeout=20)
        (server,) = (row for row in sdk.top(container)["Processes"] if row[-1].startswith("/bin/busybox httpd"))
        os.kill(int(server[1]), signal.SIGKILL)
        sdk.close()

    def start_again(self, name: str) -> None:
        target = self.targets[name][0]
        self.machines.stop(target.id, 0, never)
        # Where its address was given to another container meanwhile, it has another.
        self.targets[name] = self._started(target)

    def launch(self, secrets: dict[str, bytes] | None = None) -> MachineSpec:
        values: dict[str, Any] = {"image": haproxy_image.IMAGE, "cmd": haproxy.PROGRAM, "memory_mb": 128}
        values |= {"ports": [Port(host_port=self.port, container_port=80)], "restart_policy": "always"}
        proxy = spec(**values, balancer=uuid4(), secrets=dict.fromkeys(secrets or {}, "file"))
        self.machines.create(proxy, secrets=lambda: secrets or {})
        self.machines.start(proxy.id, never)
        return proxy

    def name(self, target: str) -> str:
        return haproxy.server_name(str(self.targets[target][0].id), 1)

    def config(self, weights: dict[str, int], **more: Any) -> BalancerConfig:
        servers = []
        for target, weight in weights.items():
            machine, address = self.targets[target]
            about = {"instance_id": machine.id, "address": address, "port": 80, "weight": weight}
            servers.append(Server(name=self.name(target), **about))
        values = {"mode": "http", "port": 80, "algorithm": "round-robin", "check": CHECK} | more
        return BalancerConfig(**values, servers=servers)

    def spec(self, config: BalancerConfig, revision: int) -> BalancerSpec:
        return BalancerSpec(
            machine=self.proxy,
            revision=revision,
            text=haproxy.render(config, revision),
            structure=haproxy.structure(config),
            weights={server.name: server.weight for server in config.servers},
            settle_seconds=8,
        )

    def apply(self, weights: dict[str, int] | str, **more: Any) -> int:
        """The revision that the proxy has then."""
        known = dict.fromkeys(weights, 100) if isinstance(weights, str) else weights
        self.revision += 1
        wanted = self.spec(self.config(known, **more), self.revision)
        for _ in range(5):  # as its step does
            with contextlib.suppress(EngineUnavailable):
                return self.balancers.apply(wanted, never).revision
            time.sleep(1)
        return self.balancers.apply(wanted, never).revision

    def ask(self, count: int = 1, **more: Any) -> list[str]:
        url = f"http://127.0.0.1:{self.port}/"
        return [httpx.get(url, timeout=5, **more).text.strip() for _ in range(count)]

    def stat(self) -> list[dict[str, str]]:
        return haproxy.table(self.balancers._ask(self.proxy.id, "show stat"))

    def pid(self) -> int:
        return self.balancers.read()[0].pid


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    haproxy_image.image.ensure(engine.SOCKET, print)
    made = Farm()
    yield made
    remove_all(made.machines)


def test_weights_and_draining_are_told_to_the_process_that_runs(farm: Farm) -> None:
    farm.apply("ab")
    assert set(farm.ask(4)) == {"a", "b"}
    before = farm.pid()
    farm.apply({"a": 30, "b": 10})
    assert farm.pid() == before, "it was reloaded"
    answers = farm.ask(40)
    assert 27 <= answers.count("a") <= 33
    farm.apply({"a": 0, "b": 10})
    assert farm.ask(6) == ["b"] * 6
    states = {server.name: server.health for server in farm.balancers.read()[0].servers}
    assert states == {farm.name("a"): "draining", farm.name("b"): "up"}
    farm.apply({"a": 10, "b": 10})
    assert farm.pid() == before
    assert set(farm.ask(4)) == {"a", "b"}
    farm.apply({"a": 10, "b": 10}, algorithm="least-conn")
    assert farm.pid() != before


def test_what_adds_a_target_says_how_the_checks_found_it(farm: Farm) -> None:
    farm.apply("a")
    farm.revision += 1
    said = farm.balancers.apply(farm.spec(farm.config({"a": 100, "b": 100}), farm.revision), never)
    assert said.health == {farm.name("b"): "up"}


def test_older_configuration_does_not_take_the_place_of_a_newer(farm: Farm) -> None:
    revision = farm.apply("a")
    late = farm.spec(farm.config({"b": 100}), revision - 1)
    assert farm.balancers.apply(late, never).revision == revision
    assert farm.ask(3) == ["a"] * 3
    # The same again changes nothing.
    pid = farm.pid()
    assert farm.balancers.apply(farm.spec(farm.config({"a": 100}), revision), never).revision == revision
    assert farm.pid() == pid


def test_what_haproxy_refuses_changes_nothing(farm: Farm) -> None:
    farm.apply("ab")
    farm.revision += 1
    wrong = farm.spec(farm.config({"a": 1}), farm.revision)
    with pytest.raises(EngineRefused, match="unknown keyword 'nonsense'"):
        farm.balancers.apply(wrong.model_copy(update={"text": wrong.text + "    nonsense\n"}), never)
    assert set(farm.ask(4)) == {"a", "b"}
    farm.apply("ab")


@pytest.mark.parametrize("algorithm", ["round-robin", "least-conn", "source", "random"])
def test_algorithms(farm: Farm, algorithm: str) -> None:
    farm.apply("abc", algorithm=algorithm)
    answers = set(farm.ask(30))
    assert len(answers) == 1 if algorithm == "source" else len(answers) > 1


def test_cookie_binds_a_user_to_a_target_also_one_that_drains(farm: Farm) -> None:
    farm.apply("abc", cookie="SRV")
    with httpx.Client(base_url=f"http://127.0.0.1:{farm.port}", timeout=5) as user:
        first = user.get("/")
        assert "httponly" in first.headers["set-cookie"].lower()
        mine = first.text.strip()
        assert {user.get("/").text.strip() for _ in range(6)} == {mine}
        farm.apply({name: 0 if name == mine else 100 for name in "abc"}, cookie="SRV")
        assert user.get("/").text.strip() == mine
        assert mine not in farm.ask(6)
        farm.apply("abc".replace(mine, ""), cookie="SRV")
        user.get("/")  # over the connection to the process of before, which ends with it
        assert user.get("/").text.strip() != mine


def test_tcp_and_checks_over_http(farm: Farm) -> None:
    farm.apply("ab", mode="tcp", check=TargetCheck(type="http", path="/index.html", interval_seconds=0.5))
    assert set(farm.ask(4)) == {"a", "b"}
    farm.apply("ab", check=TargetCheck(type="http", path="/absent", interval_seconds=0.5))
    assert until(lambda: httpx.get(f"http://127.0.0.1:{farm.port}/").status_code == 503, 5)
    assert {server.health for server in farm.balancers.read()[0].servers} == {"down"}
    assert all("L7STS" in (server.check or "") for server in farm.balancers.read()[0].servers)
    farm.apply("ab")


def test_where_checks_that_only_connect_find_none_up_all_are_tried(farm: Farm) -> None:
    farm.apply({"a": 100, "b": 0}, check=TargetCheck(interval_seconds=300))
    for target in "ab":  # as on a machine that is too busy to check in time
        farm.balancers._ask(farm.proxy.id, f"set server {haproxy.BACK}/{farm.name(target)} health down")
    before = {server.name: server for server in farm.balancers.read()[0].servers}
    assert {server.health for server in before.values()} == {"down"}
    assert farm.ask(4) == ["a"] * 4
    after = {server.name: server for server in farm.balancers.read()[0].servers}
    assert after[farm.name("a")].requests == before[farm.name("a")].requests + 4
    pid = farm.pid()
    farm.apply({"a": 0, "b": 100}, check=TargetCheck(interval_seconds=300))
    assert farm.ask(4) == ["b"] * 4
    assert farm.pid() == pid


def test_open_connection_keeps_a_drain_waiting_also_over_a_reload(farm: Farm) -> None:
    farm.apply("a", mode="tcp")
    later = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1)
    request = DrainRequest(machine=farm.proxy, servers=[farm.name("a")], until=later)
    with socket.create_connection(("127.0.0.1", farm.port), 5) as held:
        assert until(lambda: not farm.balancers.drained(request), 5)
        farm.apply({"a": 0, "b": 100}, mode="tcp")  # a reload: the connection is in the process of before
        assert not farm.balancers.drained(request)
        held.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert held.recv(4096).endswith(b"a\n") or held.recv(4096)
    assert until(lambda: farm.balancers.drained(request), 5)
    farm.apply("ab")


def test_container_that_starts_again_has_its_configuration(farm: Farm) -> None:
    farm.apply("ab")
    farm.machines.stop(farm.proxy.id, 1, never)
    with pytest.raises(InstanceExited):
        farm.apply("a")
    farm.machines.start(farm.proxy.id, never)
    assert until(lambda: _answers(farm), 5)
    assert set(farm.ask(6)) == {"a", "b"}


def _answers(farm: Farm) -> bool:
    try:
        return farm.ask() != []
    except httpx.HTTPError:
        return False


def test_killed_target_is_out_within_two_intervals_and_fails_no_request(farm: Farm) -> None:
    interval = 2.0
    farm.apply("abc", check=TargetCheck(interval_seconds=interval))
    with Traffic(farm.port, rate=100) as traffic:
        time.sleep(1)
        farm.silence("c")
        killed = time.monotonic()
        assert until(lambda: farm.balancers.read()[0].servers[2].health == "down", 3 * interval)
        (row,) = (one for one in farm.stat() if (one["pxname"], one["svname"]) == (haproxy.BACK, farm.name("c")))
        # It says since how many whole seconds.
        assert time.monotonic() - killed - int(row["lastchg"]) < 2 * interval + 1
        time.sleep(1)
    assert not [answer for at, answer in traffic.times if answer == "c" and at > killed + 2 * interval]
    assert traffic.failures == []
    farm.start_again("c")


def test_reconfigured_again_and_again_under_load_no_request_fails(farm: Farm) -> None:
    chance = random.Random(SEED)  # noqa: S311 - a test's choice, to be repeated
    farm.apply("abc")
    with Traffic(farm.port, rate=200) as traffic:
        for _ in range(CHANGES):
            chosen = chance.sample("abc", chance.choice((2, 2, 3)))
            weights = {name: chance.choice((0, 10, 100)) for name in chosen} | {chosen[0]: 100}
            farm.apply(weights, algorithm=chance.choice(("round-robin", "least-conn", "random")))
    assert traffic.failures == []
    assert traffic.sent > 20 * CHANGES


@pytest.fixture
def certificate(tmp_path: Path) -> bytes:
    key, made = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(made), "-days", "2", "-subj", "/CN=front.test"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return made.read_bytes() + key.read_bytes()


def test_tls_of_a_secret_that_is_in_memory_alone(certificate: bytes) -> None:
    haproxy_image.image.ensure(engine.SOCKET, print)
    farm = Farm(secrets={"TLS": certificate})
    try:
        farm.apply("ab", tls_version=1)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", farm.port), 5) as plain,
            context.wrap_socket(plain, server_hostname="front.test") as secure,
        ):
            assert secure.version() == "TLSv1.3"
            shown = secure.getpeercert(binary_form=True)
            secure.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b"200 OK" in secure.recv(4096)
        assert shown == ssl.PEM_cert_to_DER_cert(certificate.decode().partition("-----BEGIN PRIVATE")[0])
        disk = docker.APIClient(engine.SOCKET).diff(machine_name(farm.proxy.id))
        assert not [change for change in disk if change["Path"].startswith("/run/secrets/")]
    finally:
        remove_all(farm.machines)
