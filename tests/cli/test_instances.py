"""Instances on the command line: names, what is sent, what is printed."""

from __future__ import annotations

import json

import pytest

from cli.errors import Exit
from tests.cli.fake import HOST, INSTANCE, WORKFLOW, Answer, FakeApi, accepted, cairn, instance, step, workflow


def test_launch_sends_what_was_asked_for(api: FakeApi) -> None:
    api.on("POST /instances", accepted(instance(status="pending")))
    options = "--type basic-2 -p 8080:80 -p 53/udp -p 0:443 -e A=1=2 -l tier=web --host local --backend docker"
    options += " --registry-secret registry"
    result = cairn("instance", "launch", "web", *options.split(), "--no-wait", "--", "httpd", "-f")
    assert result.exit_code == 0
    assert api.requests[0].body == {
        "name": "web",
        "image": "cairn/base:latest",
        "registry_secret": "registry",
        "instance_type": "basic-2",
        "ports": [
            {"host_port": 8080, "container_port": 80, "protocol": "tcp"},
            {"container_port": 53, "protocol": "udp"},
            {"container_port": 443, "protocol": "tcp"},
        ],
        "env": {"A": "1=2"},
        "labels": {"tier": "web"},
        "backend": "docker",
        "host": "local",
        "cmd": ["httpd", "-f"],
    }


def test_launch_leaves_out_what_was_not_asked_for(api: FakeApi) -> None:
    api.on("POST /instances", accepted(instance()))
    cairn("instance", "launch", "web", "--cmd", "sleep '1 0'", "--no-wait", "--idempotency-key", "again")
    assert api.requests[0].body == {"name": "web", "image": "cairn/base:latest", "cmd": ["sleep", "1 0"]}
    assert api.requests[0].headers["idempotency-key"] == "again"


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ("--network none", {"mode": "none"}),
        ("--network open", {"mode": "open"}),
        ("--allow pypi.org --allow *.a.b:81", {"mode": "allow-list", "allow": ["pypi.org", "*.a.b:81"]}),
        ("--network allow-list --allow a.b", {"mode": "allow-list", "allow": ["a.b"]}),
    ],
)
def test_launch_says_what_it_reaches(api: FakeApi, options: str, sent: dict[str, object]) -> None:
    api.on("POST /instances", accepted(instance(network=sent)))
    result = cairn("instance", "launch", "web", *options.split(), "--no-wait")
    assert api.requests[0].body["network"] == sent
    assert "none" not in options or "none" in result.stdout


@pytest.mark.parametrize(
    "options",
    [
        ["--network", "none", "--allow", "a.b"],
        ["--network", "allow-list"],
        ["--network", "shut"],
        ["--port", "http"],
        ["--port", "80:x"],
        ["--port", "80/sctp"],
        ["--env", "A"],
        ["--label", "=x"],
        ["--cmd", "a", "--", "b"],
        ["--nonsense"],
        ["-o", "xml"],
    ],
)
def test_nonsense_is_refused_before_anything_is_sent(api: FakeApi, options: list[str]) -> None:
    assert cairn("instance", "launch", "web", *options).exit_code == Exit.USAGE
    assert api.requests == []


def test_launch_waits_shows_steps_and_prints_the_end(api: FakeApi) -> None:
    api.on("POST /instances", accepted(instance(status="pending")))
    done = step("instance.create", attempts=2, error="the agent went away")
    api.on(
        f"GET /workflows/{WORKFLOW}",
        Answer(200, workflow("running", step("instance.create", "running"))),
        Answer(200, workflow("completed", done, step("instance.start"))),
    )
    api.on(f"GET /instances/{INSTANCE}", Answer(200, instance()))
    result = cairn("instance", "launch", "web", "-o", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == instance()
    assert result.stderr.count("instance.create") == 2
    assert "attempt 2" in result.stderr
    assert "instance.start" in result.stderr


def test_failed_launch_names_step_cause_and_code(api: FakeApi) -> None:
    error = {"code": "port_taken", "message": "port 8080 is taken", "step": "instance.start"}
    api.on("POST /instances", accepted(instance(status="pending")))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow("failed", error=error)))
    api.on(f"GET /instances/{INSTANCE}", Answer(200, instance(status="error")))
    result = cairn("instance", "launch", "web")
    assert result.exit_code == Exit.FAILED
    assert "ProvisionInstance failed at instance.start: port 8080 is taken (port_taken)" in result.stderr
    assert "hint:" in result.stderr


def test_time_out_of_wait(api: FakeApi) -> None:
    api.on("POST /instances", accepted(instance(status="pending")))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow("running")))
    api.on(f"GET /instances/{INSTANCE}", Answer(200, instance(status="provisioning")))
    result = cairn("instance", "launch", "web", "--timeout", "0.2")
    assert result.exit_code == Exit.TIMED_OUT
    assert "within 0.2 s" in result.stderr
    assert "provisioning" in result.stdout, "how it is by now"
    assert f"cairn workflow wait {WORKFLOW}" in result.stderr


def test_wait_survives_an_api_that_goes_away(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Answer(503, error={"code": "unavailable", "message": "database away"})
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow("running")), *[away] * 6, Answer(200, workflow()))
    assert cairn("workflow", "wait", WORKFLOW).exit_code == 0


def test_show_by_name_matches_exactly(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance("web-2"), instance("web")]))
    result = cairn("instance", "show", "web", "-o", "json")
    assert json.loads(result.stdout)["name"] == "web"
    assert api.requests[0].query == {"name": "web"}


def test_show_of_an_unknown_name(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance("web-2")]))
    result = cairn("instance", "show", "web")
    assert result.exit_code == Exit.NOT_FOUND
    assert result.stderr.startswith("error: there is no instance named 'web' (not_found)\nhint: ")


def test_show_by_id_asks_for_the_id(api: FakeApi) -> None:
    api.on(f"GET /instances/{INSTANCE}", Answer(200, instance(error={"code": "no_capacity", "message": "full"})))
    result = cairn("instance", "show", INSTANCE)
    assert result.exit_code == 0
    assert "full (no_capacity)" in result.stdout
    assert "8080:80" in result.stdout


def test_a_name_that_only_resembles_an_id_is_a_name(api: FakeApi) -> None:
    plain = INSTANCE.replace("-", "")
    api.on("GET /instances", Answer(200, [instance(plain)]))
    assert cairn("instance", "show", plain).exit_code == 0


def test_list_follows_the_cursor_as_far_as_asked(api: FakeApi) -> None:
    first = Answer(200, [instance("a"), instance("b")], meta={"next_cursor": "c1"})
    api.on("GET /instances", first, Answer(200, [instance("c")]))
    result = cairn("instance", "list", "--all", "-o", "json")
    assert [row["name"] for row in json.loads(result.stdout)] == ["a", "b", "c"]
    assert api.requests[1].query["cursor"] == "c1"


def test_list_says_when_there_is_more(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance("a"), instance("b")], meta={"next_cursor": "c1"}))
    result = cairn("instance", "list", "--limit", "2", "--status", "running", "--label", "a=b")
    assert len(api.requests) == 1
    assert api.requests[0].query == {"limit": "2", "status": "running", "label": "a=b"}
    assert len(result.stdout.splitlines()) == 3
    assert "--all" in result.stderr


def test_rm_of_several_sends_all_before_it_waits(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance("a"), instance("b", id=WORKFLOW)]))
    api.on(f"DELETE /instances/{INSTANCE}", accepted(instance("a", status="deleting")))
    api.on(f"DELETE /instances/{WORKFLOW}", accepted(instance("b", status="deleting", id=WORKFLOW)))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow()))
    api.on(f"GET /instances/{INSTANCE}", Answer(200, instance("a", status="deleted")))
    api.on(f"GET /instances/{WORKFLOW}", Answer(200, instance("b", status="deleted")))
    result = cairn("instance", "rm", "a", "b", "--force", "-o", "json")
    assert result.exit_code == 0
    assert [row["status"] for row in json.loads(result.stdout)] == ["deleted", "deleted"]
    asked = [f"{request.method} {request.path.split('/')[1]}" for request in api.requests]
    assert asked[:5] == ["GET instances", "DELETE instances"] * 2 + ["GET workflows"]
    assert api.requests[1].query == {"force": "true"}


def test_rm_of_a_deleted_one_has_nothing_to_wait_for(api: FakeApi) -> None:
    api.on(f"GET /instances/{INSTANCE}", Answer(200, instance(status="deleted")))
    api.on(f"DELETE /instances/{INSTANCE}", Answer(200, instance(status="deleted")))
    assert cairn("instance", "rm", INSTANCE).exit_code == 0


def test_an_unreachable_host_shows_in_the_status(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance(reachable=False)]))
    assert "running (host unreachable)" in cairn("instance", "list").stdout


def test_one_that_fails_does_not_keep_the_others_from_being_tried(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance("a"), instance("b", id=WORKFLOW)]))
    error = {"code": "invalid_state", "message": "a runs", "details": {"state": "running", "workflow_id": WORKFLOW}}
    api.on(f"POST /instances/{INSTANCE}/start", Answer(409, error=error))
    api.on(f"POST /instances/{WORKFLOW}/start", accepted(instance("b", status="starting", id=WORKFLOW)))
    result = cairn("instance", "start", "missing", "a", "b", "--no-wait", "-o", "json")
    assert [row["name"] for row in json.loads(result.stdout)] == ["b"]
    assert result.exit_code == Exit.NOT_FOUND, "the first failure decides"
    assert "a runs (invalid_state)" in result.stderr
    assert "workflow wait" not in result.stderr.split("error:", 1)[1], "nothing is under way"


def test_piped_tables_end_their_lines_where_the_text_ends(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance("a" * 40), instance("b", ports=[])]))
    assert not any(line.endswith(" ") for line in cairn("instance", "list").stdout.splitlines())


@pytest.mark.parametrize(
    ("verb", "during", "done"), [("restart", "restarting", "running"), ("pause", "pausing", "paused")]
)
def test_verbs_wait_and_print_the_end(api: FakeApi, verb: str, during: str, done: str) -> None:
    api.on("GET /instances", Answer(200, [instance()]))
    api.on(f"POST /instances/{INSTANCE}/{verb}", accepted(instance(status=during)))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow(state="completed")))
    api.on(f"GET /instances/{INSTANCE}", Answer(200, instance(status=done)))
    result = cairn("instance", verb, "web", "-o", "json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["status"] == done


def test_resume_of_several(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance("a"), instance("b", id=WORKFLOW)]))
    for id in (INSTANCE, WORKFLOW):
        api.on(f"POST /instances/{id}/resume", accepted(instance(id=id, status="resuming")))
    assert cairn("instance", "resume", "a", "b", "--no-wait").exit_code == 0
    assert [request.path for request in api.requests if request.method == "POST"] == [
        f"/instances/{INSTANCE}/resume",
        f"/instances/{WORKFLOW}/resume",
    ]


def test_resize_sends_the_type_and_what_may_be_lost_only_where_it_may(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance()]))
    api.on(f"POST /instances/{INSTANCE}/resize", accepted(instance(status="resizing")))
    assert cairn("instance", "resize", "web", "--type", "basic-2", "--no-wait").exit_code == 0
    assert cairn("instance", "resize", "web", "--type", "basic-2", "--recreate", "--no-wait").exit_code == 0
    sent = api.seen(f"POST /instances/{INSTANCE}/resize")
    assert [request.body for request in sent] == [
        {"instance_type": "basic-2"},
        {"instance_type": "basic-2", "recreate": True},
    ]
    assert cairn("instance", "resize", "web").exit_code == Exit.USAGE


def test_update_sends_what_changes_and_null_for_what_goes(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance()]))
    api.on(f"PATCH /instances/{INSTANCE}", Answer(200, instance("web-2", labels={"tier": "web"}, tags=["blue", "eu"])))
    options = "--name web-2 -l tier=web --remove-label old --metadata note=x --remove-metadata gone --tag blue --tag eu"
    result = cairn("instance", "update", "web", *options.split())
    assert result.exit_code == 0, result.stderr
    assert api.requests[-1].body == {
        "name": "web-2",
        "labels": {"old": None, "tier": "web"},
        "metadata": {"gone": None, "note": "x"},
        "tags": ["blue", "eu"],
    }
    assert "blue, eu" in result.stdout
    assert cairn("instance", "update", "web", "--no-tags").exit_code == 0
    assert api.requests[-1].body == {"tags": []}


@pytest.mark.parametrize("options", [[], ["--tag", "a", "--no-tags"], ["--label", "x"], ["--metadata", "=y"]])
def test_update_of_nothing_is_refused_before_anything_is_sent(api: FakeApi, options: list[str]) -> None:
    assert cairn("instance", "update", "web", *options).exit_code == Exit.USAGE
    assert api.requests == []


def test_tags_are_sent_at_launch_and_asked_for_in_lists(api: FakeApi) -> None:
    api.on("POST /instances", accepted(instance()))
    api.on("GET /instances", Answer(200, []))
    cairn("instance", "launch", "web", "--tag", "blue", "--tag", "eu", "--no-wait")
    assert api.requests[0].body["tags"] == ["blue", "eu"]
    cairn("instance", "list", "--tag", "blue")
    assert api.requests[-1].query["tag"] == "blue"


def test_show_names_its_command_group_and_key_and_what_brings_it_back(api: FakeApi) -> None:
    ids = {"group_id": WORKFLOW, "ssh_key_id": HOST}
    drift = {"kind": "stopped", "detected_at": "2026-01-01T12:00:00Z", "changes": {}}
    api.on("GET /instances", Answer(200, [instance(**ids, cmd=["sh", "-c", "a b"], drift=drift, on_host_lost="keep")]))
    api.on(f"GET /containers/deployments/{WORKFLOW}", Answer(200, {"name": "shop"}))
    shown = " ".join(cairn("instance", "show", "web").stdout.split())
    assert "command sh -c 'a b'" in shown and f"group shop ({WORKFLOW})" in shown and f"ssh key {HOST}" in shown
    assert "cairn instance restart web" in shown and "if its host is lost keep" in shown
    asked = len(api.requests)
    assert json.loads(cairn("instance", "show", "web", "-o", "json").stdout)["group_id"] == WORKFLOW
    assert len(api.requests) == asked + 1, "programs get what the API says, and nothing else is asked for"


def test_hint_of_one_whose_program_has_ended_is_a_restart(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance()]))
    for verb, state, words in (("exec", "exited", ["--", "ls"]), ("start", "running", [])):
        wrong = {"code": "invalid_state", "message": "not so", "details": {"state": state}}
        api.on(f"POST /instances/{INSTANCE}/{verb}", Answer(409, error=wrong))
        assert "cairn instance restart web" in cairn("instance", verb, "web", *words).stderr
