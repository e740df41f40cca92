"""The way from nothing to a production platform, as docs/production.md describes it, on one machine and its engine."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy import compose
from tests.deploy.production import HOST, Production
from tests.services import until

#: Tried here and not in test_files.py, as the wheel would be built for each of two processes of tests.
UNITS = compose.ROOT / "deploy" / "systemd"
APIS, CONTROLS = ("api-1", "api-2"), ("control-1", "control-2")
BOTH = tuple(zip(APIS, CONTROLS, strict=True))
DRAWN = random.Random(int(os.environ["CAIRN_CHAOS_SEED"])).choice(BOTH)  # noqa: S311 - a test's choice, to be repeated
#: Machines that run tests are busy.
PATIENCE = 90
METRICS_TOKEN = "of-who-scrapes"
#: A lease lapses after 15 s, what a control worker touches is old after 20.
STALE_SECONDS = 21


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


def scraped(where: str) -> str:
    """What a process shows to who has the token, and not to others."""
    url = f"http://{where}/metrics"
    assert httpx.get(url, trust_env=False).status_code == 401
    return httpx.get(url, headers={"Authorization": f"Bearer {METRICS_TOKEN}"}, trust_env=False).raise_for_status().text


def ready(http: httpx.Client) -> dict[str, Any]:
    answer = http.get("/health/ready").json()
    found: dict[str, Any] = answer["data"] or answer["error"]["details"]
    return found


def test_programs_of_the_file_are_those_of_the_wheel(programs: Path) -> None:
    for name, service in compose.ours(compose.read()).items():
        words = [service["command"], *([service["healthcheck"]["test"][1:]] if "healthcheck" in service else [])]
        for program, *_ in words:
            assert (programs / program).is_file(), f"{name}: {program}"


@pytest.mark.parametrize("unit", sorted(UNITS.glob("*.service")), ids=lambda unit: unit.name)
def test_unit_is_valid_and_its_program_is_in_the_wheel(unit: Path, programs: Path, tmp_path: Path) -> None:
    lines = unit.read_text().splitlines()
    (start,) = [line.partition("=")[2].split() for line in lines if line.startswith("ExecStart=")]
    assert start[0].startswith("/opt/cairn/bin/")
    assert (programs / Path(start[0]).name).is_file()
    for line in (
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ProtectHome=yes",
        "UMask=0077",
    ):
        assert line in lines
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing: only the program was looked for")
    moved = tmp_path / unit.name
    moved.write_text(unit.read_text().replace("/opt/cairn/bin", str(programs)))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(moved)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.engine
def test_from_nothing_to_production(production: Production) -> None:
    it, http = production, production.client()
    # What .env and the secrets have, of somebody who wants the token to be shown.
    it.document = compose.read(CAIRN_HOST_NAME=HOST, CAIRN_METRICS_TOKEN_FILE="/run/secrets/metrics-token")
    (it.secrets / "metrics-token").write_text(METRICS_TOKEN)
    waits_for_what_is_missing(it, http)
    is_set_up_once(it)
    # What waited goes on by itself; the others join in.
    for service in ("api-2", "control-2"):
        it.start(service)
    it.becomes_healthy(*APIS, *CONTROLS)
    assert until(lambda: http.get("/health/ready").status_code == 200, PATIENCE)
    assert ready(http) == {"status": "ok", "checks": {"database": "ok", "temporal": "ok"}}
    for path in ("/metrics", "/%6detrics", "//metrics"):
        assert http.get(f"https://{it.at('public')}{path}").status_code == 404
    assert "cairn_http_requests_total" in scraped(it.at("private"))
    for service in CONTROLS:
        assert "cairn_database_up 1.0" in scraped(f"127.0.0.1:{it.metrics_port(service)}"), "it has the password, too"
    it.follow("### Start")
    it.follow("### The program")
    # This machine becomes a host.
    it.follow("### This machine as a host")
    it.becomes_healthy("agent")
    assert until(lambda: _host(http)["reachable"], PATIENCE)
    assert _host(http)["version_skew"] == "ok"
    assert "cairn_lease_failures_total" in scraped(f"127.0.0.1:{it.metrics_port('agent')}")
    try:
        works_and_survives(it, http)
    finally:
        for row in http.get("/v1/instances").json()["data"]:
            ended(http, http.delete(f"/v1/instances/{row['id']}"))
    assert it.instance_ids() == []
    is_told_from_what_stands_still(it)


def test_a_machine_that_is_gone_comes_back_from_its_backup(production: Production) -> None:
    it = production
    it.initialise()
    it.temporal.start()
    assert it.run("setup").returncode == 0
    it.start("api-1")
    it.becomes_healthy("api-1")
    api = httpx.Client(
        base_url=f"http://{it.at('api-1')}/v1", headers={"X-API-Key": it.secret("api-key")}, timeout=30, trust_env=False
    )
    made = api.post("/secrets", json={"name": "kept", "value": "under the master keys"})
    assert made.status_code == 201, made.text
    it.follow("### Making one")
    it.lose_machine()
    it.follow("### The machine is gone")
    it.follow("### The machine is gone", 1)
    assert [row["name"] for row in api.get("/secrets").json()["data"]] == ["kept"]
    refused = api.post("/secrets", json={"name": "another", "value": "too early"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "restored")
    rights = "SELECT rolcreatedb FROM pg_roles WHERE rolname = 'cairn_owner'"
    assert it.postgres_rows(rights) == [(False,)]


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
    """By two at once; then there is nothing left to do. tests/deploy/test_setup.py does the rest."""
    assert it.run("setup", "cairn-setup", "--check").returncode == 1
    with ThreadPoolExecutor() as both:
        first, second = both.map(lambda _: it.run("setup"), range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    made = sorted(one.stdout.count("made ") for one in (first, second))
    assert made[0] == 0 and made[1] > 5, "one of them did it all"
    again = it.run("setup", "cairn", "setup", "--check")
    assert again.returncode == 0, again.stdout
    assert {line.split()[0] for line in again.stdout.splitlines()} == {"there"}


def is_told_from_what_stands_still(it: Production) -> None:
    """And from what goes on; the time that it stands still passes by the clocks of the files that it writes."""
    held = {
        "control-2": Path(it.environment("control-2")["CAIRN_HEALTH_FILE"]),
        "agent": Path(it.environment("agent")["CAIRN_DATA_DIR"]) / "agents" / f"{HOST}.lease",
    }
    for service in held:
        it.becomes_healthy(service)
        os.kill(it.processes[service].pid, signal.SIGSTOP)
    for service, file in held.items():
        written = file.stat().st_mtime - STALE_SECONDS
        os.utime(file, (written, written))
        asked = it.health(service)
        assert (asked.returncode, "it has not worked for" in asked.stderr) == (1, True), asked.stderr
    for service in held:
        os.kill(it.processes[service].pid, signal.SIGCONT)
    it.becomes_healthy(*held)


def works_and_survives(it: Production, http: httpx.Client) -> None:
    """Launches through the proxy, also while one of each dies; with CAIRN_CHAOS=all, the other of each too."""
    launched = launch(http, "first")
    assert ended(http, launched)["state"] == "completed"
    assert len(it.instance_ids()) == 1
    answer = http.post(
        f"/v1/instances/{launched.json()['data']['id']}/exec", json={"cmd": ["/bin/echo", "well"], "timeout": 10}
    )
    assert "well" in answer.text, "streams reach the agent"
    for dying in BOTH if os.environ.get("CAIRN_CHAOS") == "all" else (DRAWN,):
        meanwhile = launch(http, f"as-{dying[0]}-dies")
        for service in dying:
            it.kill(service)
        assert ended(http, meanwhile)["state"] == "completed"
        assert until(lambda: http.get("/v1/instances").status_code == 200, PATIENCE)
        assert ended(http, launch(http, f"without-{dying[0]}"))["state"] == "completed"
        assert it.health(dying[0]).returncode == 1
        for service in dying:
            it.start(service)
        it.becomes_healthy(*dying)


def _host(http: httpx.Client) -> dict[str, Any]:
    rows = [row for row in http.get("/v1/hosts").json()["data"] if row["name"] == HOST]
    return rows[0] if rows else {"reachable": False}


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/health/live").is_success
    except httpx.HTTPError:
        return False
