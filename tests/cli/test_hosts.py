"""Hosts and projects on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cli.errors import Exit
from tests.cli.fake import HOST, WHEN, WORKFLOW, Answer, FakeApi, accepted, cairn, host, instance, step, workflow
from worker import engine

REGISTERED = {
    "id": HOST,
    "name": "rack-1",
    "installation": "0199b3f0-0000-7000-8000-000000000009",
    "temporal_address": "10.0.0.1:7233",
    "temporal_namespace": "default",
    "ticket_keys": ["PEM"],
}


def test_list_shows_what_is_held_and_who_is_away(api: FakeApi) -> None:
    api.on("GET /hosts", Answer(200, [host(), host("rack-2", state="cordoned", reachable=False, last_seen_at=None)]))
    first, second = cairn("host", "list").stdout.splitlines()[1:]
    assert "2.5 of 32" in first
    assert "1024 of 16384 MiB" in first
    assert "disk=ssd" in first
    assert "cordoned (unreachable)" in second
    assert "never" in second


def test_show_by_name_and_by_id(api: FakeApi) -> None:
    api.on("GET /hosts", Answer(200, [host("rack-10"), host()]))
    api.on(f"GET /hosts/{HOST}", Answer(200, host()))
    assert json.loads(cairn("host", "show", "rack-1", "-o", "json").stdout) == host()
    shown = cairn("host", "show", HOST).stdout
    for expected in (
        "2.5 held of 32 (it has 8, over-committed 4 times: CAIRN_OVERCOMMIT_CPU)",
        "1024 MiB held of 16384 MiB\n",
        "https://10.0.0.2:7000",
        "agent 0.2.0",
    ):
        assert expected in shown
    assert cairn("host", "show", "rack-2").exit_code == Exit.NOT_FOUND


def test_token_is_alone_on_stdout(api: FakeApi) -> None:
    made = {"token": "cairn_join_x", "name": "rack-1", "labels": {"a": "b"}, "expires_at": WHEN}
    api.on("POST /hosts/tokens", Answer(201, made))
    result = cairn("host", "token", "--name", "rack-1", "--label", "a=b", "--expires", "15m")
    assert result.stdout == "cairn_join_x\n"
    assert api.requests[0].body == {"name": "rack-1", "labels": {"a": "b"}, "expires_in_seconds": 900}
    assert f"cairn host join --url {api.url} --name rack-1" in result.stderr
    assert "cairn_join_x" not in result.stderr
    assert json.loads(cairn("host", "token", "-o", "json").stdout) == made
    assert api.requests[1].body == {"expires_in_seconds": 3600}


def test_token_whose_answer_was_lost_is_asked_for_again_with_the_same_key(api: FakeApi) -> None:
    made = {"token": "cairn_join_x", "name": None, "labels": {}, "expires_at": WHEN}
    api.on("POST /hosts/tokens", Answer(0), Answer(201, made))
    assert cairn("host", "token").stdout == "cairn_join_x\n"
    first, second = api.requests
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


@pytest.mark.parametrize("options", [["--expires", "1"], ["--expires", "-1h"], ["--expires", "1w"], ["--label", "a"]])
def test_token_refuses_nonsense_before_anything_is_sent(api: FakeApi, options: list[str]) -> None:
    assert cairn("host", "token", *options).exit_code == Exit.USAGE
    assert api.requests == []


@pytest.mark.parametrize(("verb", "state"), [("cordon", "cordoned"), ("uncordon", "ready")])
def test_cordon_and_uncordon(api: FakeApi, verb: str, state: str) -> None:
    api.on("GET /hosts", Answer(200, [host()]))
    api.on(f"POST /hosts/{HOST}/{verb}", Answer(200, host(state=state)))
    assert json.loads(cairn("host", verb, "rack-1", "-o", "json").stdout)["state"] == state


def test_drain_shows_its_steps_and_ends_as_its_workflow_does(api: FakeApi) -> None:
    api.on("GET /hosts", Answer(200, [host()]))
    api.on(f"GET /hosts/{HOST}", Answer(200, host(state="cordoned")))
    api.on(f"POST /hosts/{HOST}/drain", accepted(host(state="draining")))
    going = workflow("running", step("drain.next", "running"), kind="DrainHost")
    error = {"code": "not_drained", "message": "1 instances could not be moved", "step": None}
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, going), Answer(200, workflow("failed", error=error)))
    result = cairn("host", "drain", "rack-1")
    assert result.exit_code == Exit.FAILED
    assert "drain.next" in result.stderr
    assert "not_drained" in result.stderr
    assert "cordoned" in result.stdout


def test_drain_without_waiting(api: FakeApi) -> None:
    api.on("GET /hosts", Answer(200, [host()]))
    api.on(f"POST /hosts/{HOST}/drain", accepted(host(state="draining")))
    result = cairn("host", "drain", "rack-1", "--no-wait", "-o", "json")
    assert json.loads(result.stdout)["state"] == "draining"
    assert f"cairn workflow wait {WORKFLOW}" in result.stderr


def test_rm_is_refused_while_the_host_is_used(api: FakeApi) -> None:
    api.on("GET /hosts", Answer(200, [host()]))
    error = {"code": "in_use", "message": "instances are placed on host rack-1", "details": {"host": "rack-1"}}
    api.on(f"DELETE /hosts/{HOST}", Answer(409, error=error))
    result = cairn("host", "rm", "rack-1")
    assert result.exit_code == Exit.REFUSED
    assert "cairn host drain" in result.stderr


def test_rm_whose_answer_was_lost_is_done(api: FakeApi) -> None:
    api.on("GET /hosts", Answer(200, [host()]))
    gone = Answer(404, error={"code": "not_found", "message": f"there is no host {HOST}"})
    api.on(f"DELETE /hosts/{HOST}", Answer(0), gone)
    assert cairn("host", "rm", "rack-1").exit_code == 0


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without an engine, and without an address of the API in its environment."""
    for name in list(os.environ):
        if name.startswith("CAIRN_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CAIRN_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(engine, "problem", lambda url: f"no engine at {url}")
    return tmp_path


def join(*options: str) -> Any:
    return cairn("host", "join", "--name", "rack-1", *options)


def test_join_tells_what_the_machine_has_and_becomes_the_agent(
    api: FakeApi, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda program, _argv, environ: became.append((program.name, environ)))
    monkeypatch.setenv("CAIRN_JOIN_TOKEN", "cairn_join_x")
    monkeypatch.setenv("CAIRN_HOST_LABELS", "disk=ssd rack=1")
    monkeypatch.setenv("CAIRN_HOST_CPUS", "3")
    api.on("POST /hosts/register", Answer(201, REGISTERED))
    options = "--docker-host unix:///other.sock --address 10.0.0.2 --port 7000 --temporal 10.0.0.1:7233"
    result = join("--url", api.url.removesuffix("/v1"), *options.split())
    assert result.exit_code == 0, result.stderr
    assert "no engine at unix:///other.sock" in result.stderr
    body = api.requests[0].body
    assert (body["token"], body["name"], body["engines"]) == ("cairn_join_x", "rack-1", ["docker"])
    assert body["labels"] == {"disk": "ssd", "rack": "1"}
    assert body["capacity"]["cpus"] == 3
    assert "x-api-key" not in api.requests[0].headers
    ((program, environ),) = became
    assert program == "cairn-agent"
    assert "CAIRN_JOIN_TOKEN" not in environ
    assert environ["CAIRN_AGENT_IDENTITY"] == str(here / "agents" / "rack-1.json")
    assert environ["CAIRN_DOCKER_HOST"] == "unix:///other.sock"
    assert (environ["CAIRN_AGENT_ADDRESS"], environ["CAIRN_AGENT_PORT"]) == ("10.0.0.2", "7000")
    assert environ["CAIRN_TEMPORAL_ADDRESS"] == "10.0.0.1:7233"


def test_join_waits_for_an_api_that_is_not_there_yet(api: FakeApi, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.join.QUIET_SECONDS", 0.1)
    api.on("POST /hosts/register", *[Answer(0)] * 4, Answer(201, REGISTERED))
    result = join("--url", api.url, "--token", "t", "--register-only")
    assert result.exit_code == 0, result.stderr
    assert "trying again" in result.stderr
    assert len({request.body["public_key"] for request in api.requests}) == 1


def test_join_gives_up_on_an_api_that_does_not_come(here: Path) -> None:
    result = join("--url", "http://127.0.0.1:1", "--token", "t", "--register-only", "--patience", "0.2")
    assert result.exit_code == Exit.UNREACHABLE
    assert "--url" in result.stderr


def test_join_warns_where_the_way_is_not_encrypted(api: FakeApi, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api.on("POST /hosts/register", Answer(201, REGISTERED))
    assert "not encrypted" not in join("--url", api.url, "--token", "t", "--register-only").stderr
    monkeypatch.setattr("cli.join.is_loopback", lambda _url: False)
    assert "not encrypted" in join("--url", api.url, "--token", "t2", "--register-only").stderr


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [(401, "unauthenticated", "cairn host token"), (409, "name_taken", "cairn host token --name rack-1")],
)
def test_join_that_is_refused_says_what_to_do(api: FakeApi, here: Path, status: int, code: str, hint: str) -> None:
    api.on("POST /hosts/register", Answer(status, error={"code": code, "message": "no"}))
    result = join("--url", api.url, "--token", "t", "--register-only")
    assert result.exit_code == Exit.REFUSED
    assert hint in result.stderr


@pytest.mark.parametrize(("status", "code"), [(401, "unauthenticated"), (409, "name_taken")])
def test_a_host_that_has_joined_goes_on_with_a_token_that_is_void(
    api: FakeApi, here: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    became: list[str] = []
    monkeypatch.setattr(os, "execve", lambda program, _argv, _environ: became.append(program.name))
    refused = Answer(status, error={"code": code, "message": "no"})
    api.on("POST /hosts/register", Answer(201, REGISTERED), refused)
    assert join("--url", api.url, "--token", "one", "--register-only").exit_code == 0
    assert join("--url", api.url, "--token", "two", "--register-only").exit_code == Exit.REFUSED
    kept = (here / "agents" / "rack-1.json").read_bytes()
    assert join("--url", api.url, "--token", "two", "--rotate").exit_code == Exit.REFUSED
    assert (here / "agents" / "rack-1.json").read_bytes() == kept
    assert became == []
    result = join("--url", api.url, "--token", "two")
    assert result.exit_code == 0
    assert "going on" in result.stderr
    assert (here / "agents" / "rack-1.json").read_bytes() == kept
    assert became == ["cairn-agent"]


@pytest.mark.parametrize(
    "options",
    [
        ["--token", "t"],
        ["--url", "http://a"],
        ["--url", "nonsense", "--token", "t"],
        ["--url", "http://a", "--rotate"],
        ["--url", "http://a", "--token", "t", "--label", "x"],
        ["--url", "http://a", "--token", "t", "--port", "x"],
        ["--url", "http://a", "--token", "t", "--name", "../x"],
    ],
)
def test_join_without_what_it_needs_leaves_nothing(here: Path, options: list[str]) -> None:
    assert join(*options, "--patience", "0").exit_code in (Exit.USAGE, Exit.REFUSED)
    assert not list(here.rglob("*.json"))


def test_an_identity_that_cannot_be_read_is_not_replaced(api: FakeApi, here: Path) -> None:
    path = here / "agents" / "rack-1.json"
    path.parent.mkdir()
    path.write_text("{")
    result = join("--url", api.url, "--token", "t", "--register-only")
    assert result.exit_code == Exit.FAILED
    assert path.read_text() == "{"
    assert api.requests == []


def test_project_shows_and_sets_its_drift_policy(api: FakeApi) -> None:
    project = {"id": HOST, "name": "default", "drift_policy": "report", "created_at": WHEN}
    project |= {"unix_name": "default", "description": "", "active": True, "deleting": False}
    api.on("GET /projects", Answer(200, [project]))
    api.on(f"PATCH /projects/{HOST}", Answer(200, project | {"drift_policy": "heal"}))
    assert "report" in cairn("project", "show").stdout
    assert json.loads(cairn("project", "set", "--drift-policy", "heal", "-o", "json").stdout)["drift_policy"] == "heal"
    assert api.requests[-1].body == {"drift_policy": "heal"}
    assert cairn("project", "set", "--drift-policy", "mend").exit_code == Exit.USAGE


def test_launch_says_where_and_what_happens_when_the_host_is_lost(api: FakeApi) -> None:
    api.on("POST /instances", accepted(instance()))
    options = "--host-label disk=ssd --host-label rack=1 --on-host-lost fence --no-wait"
    assert cairn("instance", "launch", "web", *options.split()).exit_code == 0
    body = api.requests[0].body
    assert body["host_labels"] == {"disk": "ssd", "rack": "1"}
    assert body["on_host_lost"] == "fence"


def test_show_has_drift_and_what_happens_when_the_host_is_lost(api: FakeApi) -> None:
    changes = {"memory_mb": {"expected": 512, "actual": 256}}
    drift = {"kind": "changed", "changes": changes, "detected_at": WHEN, "heals": 2, "heal_after": None}
    shown = instance(drift=drift, on_host_lost="fence", reachable=False, host_labels={"disk": "ssd"})
    api.on("GET /instances", Answer(200, [shown]), Answer(200, [instance(drift=drift | {"changes": {}, "heals": 0})]))
    text = cairn("instance", "show", "web").stdout
    for expected in ("memory_mb 512 → 256", "tried to mend it 2 times", "fence", "lease", "disk=ssd"):
        assert expected in text
    assert "changed (for" in cairn("instance", "show", "web").stdout
