"""The supervisor, with the real PostgreSQL and Temporal: kills, restarts, stops, and what stands in the way."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import threading
import time
from pathlib import Path

import psycopg
import pytest

from tests.services import until
from tests.worker.conftest import Supervised
from worker import postgres


def killed_and_back(supervised: Supervised, name: str) -> float:
    """Kill a child; the seconds until the endpoint file names its successor."""
    old = supervised.pids()[name]
    began = time.monotonic()
    os.kill(old, signal.SIGKILL)
    assert until(lambda: supervised.pids().get(name, old) != old, 10), f"{name} did not come back"
    return time.monotonic() - began


def test_every_killed_child_is_back_within_a_second_and_serves(supervised: Supervised) -> None:
    pids = supervised.up()
    assert set(pids) == {"supervisor", "postgres", "temporal", "api", "control_worker", "host_agent"}
    for name in set(pids) - {"supervisor"}:
        assert any(killed_and_back(supervised, name) < 1.0 for _ in range(3)), name
    url = postgres.find(supervised.data).url(postgres.SUPERUSER, "cairn")

    def connects() -> bool:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            return False
        return True

    assert until(connects, 10)
    for address in ("temporal_address", "api_url"):
        port = int(supervised.endpoint()[address].removesuffix("/v1").rpartition(":")[2])
        assert until(lambda port=port: socket.socket().connect_ex(("127.0.0.1", port)) == 0, 10), address
    assert supervised.end() == 0
    assert not supervised.left()


def test_process_ids_are_those_of_the_servers_themselves(supervised: Supervised) -> None:
    pids = supervised.up()
    assert Path(f"/proc/{pids['postgres']}/comm").read_text().strip() == "postgres"
    assert (supervised.data / "postgres" / "postmaster.pid").read_text().splitlines()[0] == str(pids["postgres"])
    assert Path(f"/proc/{pids['temporal']}/comm").read_text().strip() == "temporal"


def test_nothing_outlives_a_killed_supervisor_and_the_next_start_has_the_data(supervised: Supervised) -> None:
    supervised.up()
    before = supervised.endpoint()
    with psycopg.connect(postgres.find(supervised.data).url("cairn_owner")) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    assert supervised.end(signal.SIGKILL) == -signal.SIGKILL
    assert until(lambda: not supervised.left(), 5), supervised.left()

    supervised.up()
    after = supervised.endpoint()
    with psycopg.connect(postgres.find(supervised.data).url("cairn_owner")) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchall() == [(42,)]
    assert after["api_key"] == before["api_key"]
    assert after["installation"] == before["installation"]
    assert supervised.end() == 0


def test_supervisor_and_servers_killed_at_once_start_again(supervised: Supervised) -> None:
    for _ in range(3):
        pids = supervised.up()
        for name in ("postgres", "temporal", "supervisor"):  # the last one takes the others with it
            os.kill(pids[name], signal.SIGKILL)
        assert supervised.process
        supervised.process.communicate()
    supervised.up()
    assert supervised.end() == 0


def test_second_start_on_the_same_folder_names_the_first(supervised: Supervised) -> None:
    pids = supervised.up()
    second = supervised.start()
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"already (process {pids['supervisor']})" in output
    assert "CAIRN_DATA_DIR" in output
    assert supervised.pids() == pids


@pytest.mark.parametrize("setting", ["CAIRN_API_PORT", "CAIRN_TEMPORAL_PORT", "CAIRN_TEMPORAL_UI_PORT"])
def test_taken_port_is_an_error_before_anything_is_started(supervised: Supervised, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = supervised.start(**{setting: str(port)})
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"port {port}" in output
    assert setting in output
    assert not (supervised.data / "postgres").exists()


def test_child_that_gives_up_at_first_ends_the_start_and_says_why(supervised: Supervised) -> None:
    process = supervised.start(api="fails")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "api ended with exit code 1 instead of starting" in output
    assert "the fake gives up" in output
    lock = supervised.data / "postgres" / "postmaster.pid"
    assert not lock.exists(), "PostgreSQL was not stopped in order"


def test_endpoint_file_is_private_and_whole_at_every_moment(supervised: Supervised) -> None:
    supervised.up()
    path = supervised.data / "endpoint.json"
    done = threading.Event()
    broken: list[str] = []

    def watch() -> None:
        while not done.is_set():
            text = path.read_text()
            try:
                assert json.loads(text)["api_key"].startswith("cairn_")
            except ValueError:
                broken.append(text)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for name in ("host_agent", "control_worker", "host_agent", "api"):
        killed_and_back(supervised, name)
    assert supervised.end() == 0
    done.set()
    watcher.join()
    assert not broken
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((supervised.data / "api-key").stat().st_mode) == 0o600
    assert supervised.endpoint()["pids"] == {}
    assert supervised.endpoint()["api_url"].endswith("/v1")


def test_second_interrupt_kills_what_does_not_end(supervised: Supervised) -> None:
    supervised.up(agent="deaf")
    assert until((supervised.data / "logs" / "host_agent.log").read_text, 5)
    began = time.monotonic()
    assert supervised.process
    supervised.process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert supervised.process.poll() is None
    assert supervised.end(signal.SIGINT) == 0
    assert time.monotonic() - began < 8
    assert not supervised.left()
