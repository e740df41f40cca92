"""What an instance reaches stays what its list says, whoever dies and comes back meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from docker.models.containers import Container

from tests.stack import Stack, wait_for

pytestmark = pytest.mark.engine


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"served")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server on this machine's loopback, which the stack's agent may reach."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def said(container: Container, url: str) -> str:
    return str(container.exec_run(["timeout", "5", "wget", "-q", "-O", "-", url]).output.decode())


def test_allow_list_outlives_its_agent_and_its_container(stack: Stack, port: int) -> None:
    allow = {"mode": "allow-list", "allow": [f"localhost:{port}"]}
    made = stack.running(backend="docker", network=allow, ports=[], cmd=["sleep", "1000"])
    assert made["network"] == allow and made["private_ip"] is None
    (host,) = [host for host in stack.list("/hosts") if host["name"] == made["host"]]
    assert set(host["capabilities"]) >= {"network.none", "network.allow-list"}
    (container,) = stack.containers(made["id"])
    url = f"http://localhost:{port}/"
    assert said(container, url) == "served", "at once: it counts as running when its proxy listens"
    old = stack.kill("host_agent", wait=False)
    assert said(container, f"http://localhost:{port + 1}/") != "served"
    stack.wait_for_restart("host_agent", old)
    wait_for("the agent that came back serves it", lambda: said(container, url) == "served")
    container.restart(timeout=0)
    wait_for("it listens in the new network", lambda: said(container, url) == "served")
    stack.completed(stack.act("restart", made))
    (container,) = stack.containers(made["id"])
    assert said(container, url) == "served"
    assert said(container, f"http://127.0.0.1:{port}/") != "served"


def test_launch_with_no_network_is_as_any_other(stack: Stack) -> None:
    check = {"type": "exec", "command": ["true"], "interval_seconds": 1}
    made = stack.running(backend="docker", network={"mode": "none"}, ports=[], health_check=check)
    (container,) = stack.containers(made["id"])
    assert container.exec_run(["ls", "/sys/class/net"]).output.split() == [b"lo"]
    simulated = stack.running(network={"mode": "allow-list", "allow": ["a.example"]}, ports=[])
    assert simulated["network"]["mode"] == "allow-list"
