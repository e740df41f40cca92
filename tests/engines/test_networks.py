"""What containers of each network class reach, by real packets: servers of the test on the engine's bridge address."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import docker
import httpx
import pytest

from drivers import namespaces
from drivers.docker import DockerMachines
from drivers.docker_creation import FILES
from drivers.docker_egress import DockerEgress
from drivers.egress_proxy import MOST_CONNECTIONS
from drivers.ownership import Owner, machine_name
from model.instances import MachineSpec, Port
from model.networks import PROXY_ADDRESS, PROXY_PORT, Network
from tests.drivers.conftest import free_port, never, spec
from tests.engines.conftest import remove_all
from tests.services import until
from worker import engine, identity
from worker.egress import EgressThread

pytestmark = pytest.mark.engine
#: As the test's resolver has it: the servers' name, and one of what nobody may be led to.
SERVER, INSIDE = "server.example", "inside.example"
PROXY = (PROXY_ADDRESS, PROXY_PORT)
#: Within which a proxy listens again, and a neighbour answers.
AGAIN_SECONDS, ANSWER_SECONDS = 5.0, 1.0
R = TypeVar("R")


class Servers(NamedTuple):
    """On the bridge's address. ``udp``: what came by UDP, and is sent back."""

    address: str
    http: int
    https: int
    other: int
    udp_port: int
    udp: list[bytes]
    certificate: str
    hits: list[str]


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hits: list[str]

    def do_GET(self) -> None:
        self.hits.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"served")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    client = docker.APIClient(engine.SOCKET)
    address = client.inspect_network("bridge")["IPAM"]["Config"][0].get("Gateway") or "172.17.0.1"
    client.close()
    keys = identity.new_keys("server")
    files = tmp_path_factory.mktemp("tls")
    certificate, key = files / "certificate.pem", files / "key.pem"
    certificate.write_text(keys.certificate)
    key.write_text(keys.certificate_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    hits: list[str] = []
    handler = type("Handler", (Answers,), {"hits": hits})
    made = [ThreadingHTTPServer((address, 0), handler) for _ in range(3)]
    made[1].socket = context.wrap_socket(made[1].socket, server_side=True)
    heard: list[bytes] = []
    with contextlib.ExitStack() as stack:
        for server in made:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind((address, 0))
        threading.Thread(target=_echo, args=(udp, heard), daemon=True).start()
        ports = [server.server_address[1] for server in made]
        yield Servers(address, ports[0], ports[1], ports[2], udp.getsockname()[1], heard, keys.certificate, hits)


def _echo(udp: socket.socket, heard: list[bytes]) -> None:
    with contextlib.suppress(OSError):
        while True:
            data, who = udp.recvfrom(2048)
            heard.append(data)
            udp.sendto(data, who)


class Site(NamedTuple):
    machines: DockerMachines
    sdk: docker.APIClient
    servers: Servers

    def launch(self, network: Network, *command: str, **more: object) -> MachineSpec:
        made = spec(network=network, cmd=list(command) or ["sleep", "1000"], **more)
        self.machines.create(made)
        self.machines.start(made.id, never)
        return made

    def allowed(self, *more: str, **columns: object) -> MachineSpec:
        allow = [f"{SERVER}:{self.servers.http}", f"{SERVER}:{self.servers.https}", *more]
        return self.launch(Network(mode="allow-list", allow=allow), **columns)

    def run(self, of: MachineSpec, *command: str) -> tuple[int, str]:
        made = self.sdk.exec_create(machine_name(of.id), list(command))
        said: bytes = self.sdk.exec_start(made["Id"])
        return int(self.sdk.exec_inspect(made["Id"])["ExitCode"]), said.decode(errors="replace")

    def state(self, of: MachineSpec) -> dict[str, Any]:
        found: dict[str, Any] = self.sdk.inspect_container(machine_name(of.id))["State"]
        return found

    def inside(self, of: MachineSpec, do: Callable[[], R]) -> R:
        """As a program in its network would do it."""
        namespace = os.open(f"/proc/{self.state(of)['Pid']}/ns/net", os.O_RDONLY)
        try:
            return namespaces._inside(namespace, do)
        finally:
            os.close(namespace)

    def reached(self, of: MachineSpec) -> set[str]:
        """Of the servers, by what they can be reached past any proxy."""
        address = self.servers.address
        before = len(self.servers.hits), len(self.servers.udp)

        def tcp() -> bool:
            with socket.create_connection((address, self.servers.http), 1) as made:
                made.sendall(b"GET /raw HTTP/1.0\r\n\r\n")
                return bool(made.recv(100))

        def udp() -> bool:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                made.settimeout(1)
                made.sendto(b"hello", (address, self.servers.udp_port))
                return made.recv(100) == b"hello"

        found = set()
        for way in (tcp, udp):
            with contextlib.suppress(OSError):
                if self.inside(of, way):
                    found.add(way.__name__)
        after = len(self.servers.hits), len(self.servers.udp)
        assert [new > old for new, old in zip(after, before, strict=True)] == ["tcp" in found, "udp" in found]
        if self.run(of, "timeout", "2", "ping", "-c", "1", "-W", "1", address)[0] == 0:
            found.add("icmp")
        return found

    def listens(self, of: MachineSpec) -> bool:
        def connect() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(PROXY, 1):
                return True
            return False

        with contextlib.suppress(OSError):
            return self.inside(of, connect)
        return False

    def get(self, of: MachineSpec, url: str) -> httpx.Response:
        """By its proxy."""
        verify = ssl.create_default_context(cadata=self.servers.certificate)
        verify.check_hostname = False

        def ask() -> httpx.Response:
            proxy = f"http://{PROXY_ADDRESS}:{PROXY_PORT}"
            with httpx.Client(proxy=proxy, verify=verify, trust_env=False, timeout=5) as client:
                return client.get(url)

        return self.inside(of, ask)


def held() -> int:
    """Sockets of this process that listen for a proxy's clients, or are connected to one."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as one:
            found += one.getsockname() == PROXY
    return found


class Serving:
    """An agent's thread of proxies, in a loop of the test's own."""

    def __init__(self, egress: DockerEgress) -> None:
        self._egress = egress
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self._task = self._loop.create_task(EgressThread([self._egress]).run())
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
        self._loop.close()

    def __enter__(self) -> Serving:
        self._thread.start()
        assert until(lambda: self._egress._done)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._task is not None
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def owner() -> Owner:
    return Owner(installation=uuid4(), host_id=uuid4())


@pytest.fixture
def egress(owner: Owner, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> DockerEgress:
    known = {SERVER: servers.address, INSIDE: "127.0.0.1"}
    real = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **more: Any) -> Any:
        return real(known.get(host, host), *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    allow = [ip_network(f"{servers.address}/32")]
    return DockerEgress(engine.SOCKET, installation=owner.installation, host_id=owner.host_id, allow=allow)


@pytest.fixture
def site(owner: Owner, egress: DockerEgress, servers: Servers, sdk: docker.APIClient) -> Iterator[Site]:
    machines = DockerMachines(
        engine.SOCKET,
        installation=owner.installation,
        host_id=owner.host_id,
        publish_address="127.0.0.1",
        egress=egress,
    )
    yield Site(machines, sdk, servers)
    remove_all(machines)


def test_open_reaches_all_and_none_reaches_nothing(site: Site) -> None:
    everything = site.launch(Network())
    assert site.reached(everything) == {"tcp", "udp", "icmp"}
    nothing = site.launch(Network(mode="none"))
    assert site.reached(nothing) == set()
    code, _ = site.run(nothing, "timeout", "3", "nslookup", SERVER, site.servers.address)
    assert code != 0
    interfaces = site.run(nothing, "ls", "/sys/class/net")[1].split()
    assert interfaces == ["lo"]
    assert not site.listens(nothing) and "PROXY" not in site.run(nothing, "env")[1].upper()


def test_allow_list_reaches_what_it_names_and_nothing_else(site: Site, egress: DockerEgress) -> None:
    with Serving(egress):
        limited = site.allowed(f"{INSIDE}:{site.servers.http}", INSIDE)
        assert site.listens(limited), "a start is over when its proxy listens"
        assert site.get(limited, f"https://{SERVER}:{site.servers.https}/tunnel").text == "served"
        assert site.get(limited, f"http://{SERVER}:{site.servers.http}/plain").text == "served"
        assert site.servers.hits[-2:] == ["/tunnel", "/plain"]
        # A program that goes by the environment, as most do.
        code, said = site.run(limited, "wget", "-q", "-O", "-", f"http://{SERVER}:{site.servers.http}/own")
        assert (code, said) == (0, "served")
        # Not past the proxy …
        assert site.reached(limited) == set()
        assert site.run(limited, "timeout", "3", "nslookup", SERVER, site.servers.address)[0] != 0
        assert site.run(limited, "ls", "/sys/class/net")[1].split() == ["lo"]
        # … and not by it: by address, at another port, by another name, by a name of what is inside.
        before = list(site.servers.hits)
        for url, said in (
            (f"http://{site.servers.address}:{site.servers.http}/", site.servers.address),
            (f"http://{SERVER}:{site.servers.other}/", SERVER),
            (f"http://other.example:{site.servers.http}/", "other.example"),
            (f"http://{INSIDE}:{site.servers.http}/", f"{INSIDE} is no public address"),
        ):
            refused = site.get(limited, url)
            assert refused.status_code == 403 and said in refused.text, url
        for host in (site.servers.address, "other.example", INSIDE):
            with pytest.raises(httpx.ProxyError, match="403"):
                site.get(limited, f"https://{host}:{site.servers.https if host == 'other.example' else 443}/")
        assert site.servers.hits == before


def test_proxy_is_there_again_after_every_restart_and_gone_with_its_container(site: Site, egress: DockerEgress) -> None:
    url = f"http://{SERVER}:{site.servers.http}/again"
    limited = site.allowed()
    assert not site.listens(limited), "without an agent there is no way out"
    with Serving(egress):
        assert until(lambda: site.listens(limited), AGAIN_SECONDS)
        assert site.get(limited, url).text == "served"
        # By somebody else than us, who waits for nothing.
        site.sdk.restart(machine_name(limited.id), timeout=0)
        assert until(lambda: site.listens(limited), AGAIN_SECONDS)
        assert site.get(limited, url).text == "served"
        assert held() >= 1
        site.machines.delete(limited.id)
        assert until(lambda: not egress._served)
        assert until(lambda: not held())
        assert not [task for task in threading.enumerate() if task.name == "namespace"]
        another = site.allowed()
        assert site.listens(another)
    assert not site.listens(another) and site.state(another)["Running"], "an agent that ends takes nothing else along"


def test_what_is_in_the_network_of_the_host_gets_no_proxy(site: Site, egress: DockerEgress, owner: Owner) -> None:
    """Whoever made it so: the proxy's port would be open on the host."""
    wanted = spec(network=Network(mode="allow-list", allow=["a.example"]))
    config = site.sdk.create_host_config(network_mode="host")
    made = site.sdk.create_container(
        engine.IMAGE,
        name=machine_name(wanted.id),
        command=["sleep", "100"],
        labels=owner.labels(wanted),
        host_config=config,
    )
    site.sdk.start(made["Id"])
    with Serving(egress):
        assert until(lambda: "network of the host" in egress._complained.get(wanted.id, ""))
        assert not egress._served


def test_survey_tells_the_class_and_not_what_follows_from_it(site: Site) -> None:
    limited = site.allowed(env={"COLOUR": "red", "HTTP_PROXY": "http://mine.example"})
    (found,) = site.machines.survey(limited.id)
    assert found.network == limited.network
    assert found.env.items() >= {"COLOUR": "red", "HTTP_PROXY": "http://mine.example"}.items()
    assert "https_proxy" not in found.env and "NO_PROXY" not in found.env


def test_agent_knows_whether_it_can(egress: DockerEgress, owner: Owner, tmp_path: Path) -> None:
    assert egress.able()
    about = {"installation": owner.installation, "host_id": owner.host_id, "allow": ()}
    assert not DockerEgress("tcp://127.0.0.1:2375", **about).able(), "an engine on another machine"  # type: ignore[arg-type]
    assert not DockerEgress(f"unix://{tmp_path}/none.sock", **about).able()  # type: ignore[arg-type]


#: Each runs for as long as its sandbox lives, and takes what there is.
HOGS = {
    "forks": "f() { f | f & }; f; sleep 100",
    "memory": "while :; do tail /dev/zero; done",
    "files": 'h() { i=3; while [ $i -lt 16000 ]; do eval "exec $i</dev/null"; i=$((i+1)); done; sleep 100; }; '
    "for n in 1 2 3; do h & done; wait",
}


@pytest.mark.parametrize("what", HOGS)
def test_hog_in_one_sandbox_does_not_hurt_its_neighbour(site: Site, what: str) -> None:
    port = free_port()
    neighbour = spec(ports=[Port(host_port=port, container_port=80)], cmd=["httpd", "-f", "-p", "80", "-h", "/www"])
    site.machines.create(neighbour)
    site.machines.start(neighbour.id, never)
    hog = site.launch(Network(mode="none"), vcpus=0.5, pids=100)
    engine_id = machine_name(hog.id)
    site.sdk.exec_start(site.sdk.exec_create(engine_id, ["sh", "-c", HOGS[what]])["Id"], detach=True)
    took: list[float] = []
    most, end = 0, time.monotonic() + 2
    with httpx.Client(trust_env=False, timeout=5) as client:
        while time.monotonic() < end:
            began = time.monotonic()
            assert client.get(f"http://127.0.0.1:{port}/").status_code == 200
            took.append(time.monotonic() - began)
            most = max(most, len(site.sdk.top(engine_id).get("Processes") or []))
            time.sleep(0.2)
    assert statistics.median(took) < ANSWER_SECONDS
    assert most <= hog.pids + 1
    assert site.sdk.inspect_container(engine_id)["HostConfig"]["Ulimits"] == [
        {"Name": "nofile", "Hard": FILES, "Soft": FILES}
    ]
    began = time.monotonic()
    site.machines.delete(hog.id)
    assert time.monotonic() - began < 10


def test_hog_of_connections_does_not_keep_the_proxy_of_its_neighbour(site: Site, egress: DockerEgress) -> None:
    url = f"http://{SERVER}:{site.servers.http}/beside"
    with Serving(egress):
        hog, neighbour = site.allowed(), site.allowed()
        held: list[socket.socket] = []

        def hold() -> None:
            for _ in range(2 * MOST_CONNECTIONS - 50):
                held.append(made := socket.socket())
                made.setblocking(False)
                made.connect_ex(PROXY)

        site.inside(hog, hold)
        try:
            began = time.monotonic()
            assert site.get(neighbour, url).text == "served"
            assert time.monotonic() - began < 3 * ANSWER_SECONDS
        finally:
            for one in held:
                one.close()
        assert until(lambda: site.get(hog, url).text == "served", 5)
