"""The way from nothing to a production platform, as docs/production.md describes it, on one machine and its engine."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.production import HOST, Production
from tests.services import until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
APIS, CONTROLS = ("api-1", "api-2"), ("control-1", "control-2")
#: Machines that run tests are busy.
PATIENCE = 90
#: A lease lapses after 15 s, what a control worker touches is old after 20.
STALE_SECONDS = 60


@pytest.fixture
def production(programs: Path, installed: None) -> Iterator[Production]:
    made = Production(programs)
    yield made
    made.remove()


def ended(http: httpx.Client, answer: httpx.Response) -> dict[str, Any]:
    """The workflow of an accepted request, at its end."""
    assert answer.status_code == 202, answer.text
    path = f"/v1/workflows/{answer.json()['meta']['workflow_id']}"
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        row: dict[str, Any] = http.get(f"{path}/wait", params={"timeout": 20}).json()["data"]
        if row["state"] in ("completed", "failed", "cancelled"):
            return row
    raise AssertionError(f"not within {PATIENCE} s: {row}")


def launch(http: httpx.Client, name: str) -> httpx.Response:
    return http.post("/v1/instances", json={"name": name, "image": "cairn/base:latest", "host": HOST})


def ready(http: httpx.Client) -> dict[str, Any]:
    answer = http.get("/health/ready").json()
    found: dict[str, Any] = answer["data"] or answer["error"]["details"]
    return found


def test_from_nothing_to_production(production: Production) -> None:
    it, http = production, production.client()
    waits_for_what_is_missing(it, http)
    is_set_up_once(it)
    # What waited goes on by itself; the others join in.
    for service in ("api-2", "control-2"):
        it.start(service)
    for service in (*APIS, *CONTROLS):
        it.becomes_healthy(service)
    assert until(lambda: http.get("/health/ready").status_code == 200, PATIENCE)
    assert ready(http) == {"status": "ok", "checks": {"database": "ok", "temporal": "ok"}}
    it.follow("### Start")
    it.follow("### The program")
    # This machine becomes a host.
    it.follow("### This machine as a host")
    it.start("agent")
    it.becomes_healthy("agent")
    assert until(lambda: _host(http)["reachable"], PATIENCE)
    assert _host(http)["version_skew"] == "ok"
    try:
        works_and_survives(it, http)
    finally:
        for row in http.get("/v1/instances").json()["data"]:
            ended(http, http.delete(f"/v1/instances/{row['id']}"))
    assert it.instance_ids() == []
    is_told_from_what_stands_still(it)


def waits_for_what_is_missing(it: Production, http: httpx.Client) -> None:
    """In the wrong order: what is started before all that it needs says for what it waits."""
    api = httpx.Client(base_url=f"http://{it.at('api-1')}", timeout=10, trust_env=False)
    it.postgres.stop()
    for service in ("api-1", "control-1"):
        it.start(service)
    it.start_proxy()
    assert until(lambda: "waiting" in it.log("control-1"), PATIENCE), it.log("control-1")
    assert until(lambda: _answers(api), PATIENCE), it.log("api-1")
    assert ready(api)["checks"] == {"database": "away", "temporal": "away"}
    assert {it.health(service).returncode for service in ("api-1", "control-1")} == {1}
    assert http.get("/health/ready").status_code == 503

    it.postgres.start()
    it.temporal.start()
    it.initialise()
    it.postgres.admin("CREATE DATABASE cairn")
    it.postgres.admin("DO $$ BEGIN CREATE ROLE cairn_api LOGIN; END $$")
    it.postgres.admin(f"ALTER ROLE cairn_api PASSWORD '{it.secret('api-password')}'")
    lacks = {"database": "schema_missing", "temporal": "namespace_missing"}
    assert until(lambda: ready(api)["checks"] == lacks, PATIENCE), it.log("api-1")
    early = api.get("/v1/instances", headers={"X-API-Key": it.secret("api-key")})
    assert (early.status_code, early.json()["error"]["code"]) == (503, "unavailable")
    it.postgres.admin("DROP DATABASE cairn WITH (FORCE)")
    it.postgres.admin("DROP ROLE cairn_api")


def is_set_up_once(it: Production) -> None:
    """By two at once; then again, with nothing left to do."""
    assert it.run("setup", "cairn-setup", "--check").returncode == 1
    with ThreadPoolExecutor() as both:
        first, second = both.map(lambda _: it.run("setup"), range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    made = sorted(one.stdout.count("made ") for one in (first, second))
    assert made[0] == 0 and made[1] > 5, "one of them did it all"
    again = it.run("setup")
    assert again.returncode == 0
    assert {line.split()[0] for line in again.stdout.splitlines()} == {"there"}
    assert it.run("setup", "cairn", "setup", "--check").returncode == 0


def is_told_from_what_stands_still(it: Production) -> None:
    held = [it.processes[service] for service in ("agent", "control-2")]
    for process in held:
        os.kill(process.pid, signal.SIGSTOP)
    for service in ("agent", "control-2"):
        assert until(lambda service=service: it.health(service).returncode == 1, STALE_SECONDS), service
    for process in held:
        os.kill(process.pid, signal.SIGCONT)
    for service in ("agent", "control-2"):
        it.becomes_healthy(service)


def works_and_survives(it: Production, http: httpx.Client) -> None:
    """Launches through the proxy, also while one of each dies."""
    launched = launch(http, "first")
    assert ended(http, launched)["state"] == "completed"
    assert len(it.instance_ids()) == 1
    answer = http.post(
        f"/v1/instances/{launched.json()['data']['id']}/exec", json={"cmd": ["/bin/echo", "well"], "timeout": 10}
    )
    assert "well" in answer.text, "streams reach the agent"
    second = launch(http, "second")
    for service in ("api-1", "control-1"):
        it.kill(service)
    assert ended(http, second)["state"] == "completed"
    assert until(lambda: http.get("/v1/instances").status_code == 200, PATIENCE)
    assert ended(http, launch(http, "third"))["state"] == "completed"
    assert it.health("api-1").returncode == 1
    for service in ("api-1", "control-1"):
        it.start(service)
        it.becomes_healthy(service)
    # And the other way round.
    for service in ("api-2", "control-2"):
        it.kill(service)
    assert until(lambda: http.get("/v1/instances").status_code == 200, PATIENCE)
    assert ended(http, launch(http, "fourth"))["state"] == "completed"
    for service in ("api-2", "control-2"):
        it.start(service)
        it.becomes_healthy(service)


def _host(http: httpx.Client) -> dict[str, Any]:
    rows = [row for row in http.get("/v1/hosts").json()["data"] if row["name"] == HOST]
    return rows[0] if rows else {"reachable": False}


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/health/live").is_success
    except httpx.HTTPError:
        return False
