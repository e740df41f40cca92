"""What a person is told to do about an error fits what was asked for; where nothing fits, nothing is told."""

from __future__ import annotations

from typing import Any

import pytest

from cli.errors import Exit, of_answer, of_outcome
from tests.cli.fake import WORKFLOW, Answer, FakeApi, accepted, cairn, instance, workflow


@pytest.mark.parametrize(
    ("code", "path", "details", "told"),
    [
        ("not_found", "/rbac/bindings", {}, "cairn project invite"),
        ("not_found", "/webhooks/x", {}, "cairn webhook list"),
        ("not_found", "/nothing/x", {}, None),
        ("in_use", "/hosts/x", {}, "cairn host drain"),
        ("in_use", "/images/x", {}, "cairn instance rm"),
        ("in_use", "/secrets/x", {"instances": ["web"]}, "remove what uses it"),
        ("in_use", "/secrets/x/versions/1", {"version": 1}, "cairn secret versions"),
        ("in_use", "/projects/x", {"instances": 1}, None),
        ("in_use", "/users/x?cascade=true", {}, None),
        ("invalid_state", "/instances/x/start", {"state": "paused"}, "cairn instance resume"),
        ("invalid_state", "/instances/x/pause", {"state": "stopped"}, "cairn instance start"),
        ("invalid_state", "/instances/x/start", {"state": "error"}, "cairn instance show"),
        ("invalid_state", "/instances/x/start", {"state": "stopping", "workflow_id": "w"}, "cairn workflow wait w"),
        ("invalid_state", "/users/x", {"state": "last_administrator"}, "cairn user set"),
        ("invalid_state", "/auth/logout", {}, None),
        ("name_taken", "/instances", {"state": "error"}, "cairn instance rm"),
        ("name_taken", "/instances", {}, "another name"),
        ("name_taken", "/users", {}, "cairn user show"),
        ("name_taken", "/lb", {}, "cairn lb show NAME"),
        ("not_found", "/lb/x/targets/y", {}, "cairn lb targets NAME"),
        ("not_found", "/autoscaling/groups/x/rollback", {}, "cairn group configurations NAME"),
        ("not_found", "/containers/deployments/x/rollback", {}, "cairn deployment configurations NAME"),
        ("invalid_state", "/lb/x", {"state": "error"}, "cairn lb rm NAME"),
        ("invalid_state", "/lb/x/targets", {"state": "error"}, "cairn lb rm NAME"),
        ("port_taken", "/lb", {}, "--host-port"),
        ("checksum_mismatch", "/images/x/upload", {}, "cairn image rm NAME"),
        ("port_taken", "/load_balancers", {}, "--host-port"),
        ("managed", "/instances/x/start", {"managed_by": {"type": "session", "name": "fix"}}, "cairn session … fix"),
        ("managed", "/instances/x", {"managed_by": {"type": "pool", "name": "quick"}}, "cairn pool … quick"),
        ("url_refused", "/workspaces", {}, "--path"),
        ("not_found", "/sessions/x/files/nope", {}, "cairn session files NAME"),
        ("not_found", "/sessions/x", {}, "cairn session list"),
        ("invalid_state", "/sessions/x/files/src", {"state": "folder"}, "-r"),
        ("validation_failed", "/workspaces/x/sessions", {}, "cairn session create --help"),
        ("invalid_state", "/workspaces/x/sessions", {}, "cairn workspace show NAME"),
        ("validation_failed", "/autoscaling/groups/x/scale", {}, "cairn group update NAME --min"),
        ("port_taken", "/instances", {}, "--port 80"),
        ("in_use", "/lb/x", {}, "cairn group update NAME --lb ''"),
        ("invalid_state", "/lb/x/targets", {"state": "in"}, "cairn lb weigh"),
        ("quota_exceeded", "/instances", {}, "cairn quota show"),
        ("quota_exceeded", "/cron/jobs", {}, None),
    ],
)
def test_hints_are_about_what_was_asked_for(code: str, path: str, details: dict[str, Any], told: str | None) -> None:
    hint = of_answer(409, {"code": code, "message": "m", "details": details}, path).hint
    assert (hint is None) if told is None else (told in (hint or "")), hint


def test_hints_of_workflows_name_the_workflow() -> None:
    for code in ("instance_exited", "no_such_code"):
        told = of_outcome(workflow("failed", error={"code": code, "message": "m"})).hint
        assert f"cairn workflow show {WORKFLOW}" in str(told)
    told = of_outcome(workflow("failed", error={"code": "no_capacity", "message": "no docker host has the label a=b"}))
    assert "less" not in str(told.hint)


def test_a_command_tells_the_hint_of_its_request(api: FakeApi) -> None:
    paused = {"code": "invalid_state", "message": "instance web is paused, not stopped", "details": {"state": "paused"}}
    api.on("GET /instances", Answer(200, [instance(status="paused")]))
    api.on(f"POST /instances/{instance()['id']}/start", Answer(409, error=paused))
    assert "hint: let it go on: cairn instance resume web" in cairn("instance", "start", "web").stderr
    unknown = {"code": "not_found", "message": "there is no user nobody@example.org"}
    api.on("POST /rbac/bindings", Answer(404, error=unknown))
    told = cairn("role", "bind", "viewer", "nobody@example.org").stderr
    assert "cairn project invite" in told and "workflow" not in told


def test_what_an_option_names_refuses_the_command_and_is_not_what_it_is_about(api: FakeApi) -> None:
    api.on("GET /autoscaling/groups", Answer(200, []))
    api.on("GET /containers/deployments", Answer(200, []))
    of_option = cairn("instance", "list", "--group", "nope")
    assert of_option.exit_code == Exit.REFUSED
    assert "--group: there is no group or deployment named 'nope'" in of_option.stderr
    assert cairn("group", "show", "nope").exit_code == Exit.NOT_FOUND
    missing = {"code": "validation_failed", "message": "env.DB: there is no secret 'nope'"}
    missing["details"] = {"fields": [{"field": "env.DB", "message": "there is no secret 'nope'"}]}  # type: ignore[assignment]
    api.on("POST /instances", Answer(422, error=missing))
    launched = cairn("instance", "launch", "web", "--secret", "DB=nope")
    assert "--secret DB: there is no secret" in launched.stderr and "--env" not in launched.stderr, launched.stderr


def test_an_address_without_its_end_is_told_of(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAIRN_API_URL", api.url.removesuffix("/v1"))
    assert "ends in /v1" in cairn("instance", "list").stderr


def test_hint_of_a_failed_launch_names_the_instance_and_what_can_be_longer(api: FakeApi) -> None:
    failed = workflow("failed", error={"code": "unhealthy", "message": "port 80 refuses"})
    api.on("POST /instances", accepted(instance()))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, failed))
    api.on(f"GET /instances/{instance()['id']}", Answer(200, instance(status="error")))
    told = cairn("instance", "launch", "web").stderr
    assert "cairn instance show web" in told and "CAIRN_DEADLINE_LAUNCH" in told and "NAME" not in told


def test_options_and_what_was_given_are_named_as_they_were_written(api: FakeApi) -> None:
    api.on("GET /projects", Answer(200, [{"id": WORKFLOW, "name": "a", "unix_name": "a"}]))
    inside = {"code": "in_use", "message": "project a holds 1 instance: delete these first, or all with ?cascade=true"}
    api.on(f"DELETE /projects/{WORKFLOW}", Answer(409, error=inside))
    told = cairn("project", "rm", "a").stderr
    assert "all with --cascade (in_use)" in told and "hint" not in told
    fields = [{"field": "Last-Event-ID", "message": "expected an event's id"}]
    wrong = {"code": "validation_failed", "message": "Last-Event-ID: not one of ours", "details": {"fields": fields}}
    api.on("GET /events", Answer(422, error=wrong))
    told = cairn("events", "--after", "foo").stderr
    assert "--after foo: expected the id of an event" in told and "Last-Event-ID" not in told
    before = len(api.requests)
    refused = cairn("image", "import", "n", "./file.tar")
    assert refused.exit_code == 2 and len(api.requests) == before
    assert "'./file.tar'" in refused.stderr and "cairn image upload n ./file.tar" in refused.stderr
    assert "cairn image upload n FILE" in cairn("image", "import", "n", "ftp://x/y").stderr


def test_an_instance_shows_the_names_of_what_it_is_given(api: FakeApi) -> None:
    env = {
        "MODE": "test",
        "PASSWORD": {"secret": "db", "version": 2, "as": "env"},
        "TOKEN": {"secret": "t", "as": "file"},
    }
    check = {"type": "tcp", "port": 80, "interval_seconds": 5}
    more = {
        "vcpus": 0.5,
        "memory_mb": 256,
        "group_id": WORKFLOW,
        "managed_by": {"type": "load_balancer", "name": "lb1"},
    }
    api.on("GET /instances", Answer(200, [instance(env=env, health_check=check, status="deleted", **more)]))
    shown = cairn("instance", "show", "web").stdout
    assert "MODE=test" in shown and "PASSWORD=db@2:env, TOKEN=t" in shown
    assert "not known" not in shown
    assert "(0.5 vCPU, 256 MiB)" in shown and WORKFLOW in shown and "load balancer lb1" in shown
