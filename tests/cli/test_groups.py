"""Groups and deployments on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cli.errors import Exit
from model.policies import MEASURED
from tests.cli.fake import WHEN, WORKFLOW, Answer, FakeApi, cairn, cron_job

ID = "0199b3f0-0000-7000-8000-0000000000ab"
NUMBERS: dict[str, dict[str, Any]] = {
    "group": {"min_instances": 0, "max_instances": 5, "desired_count": 3, "ready_count": 2, "updated_count": 1},
    "deployment": {"replicas": 3, "ready_replicas": 2, "updated_replicas": 1},
}
PATHS = {"group": "/autoscaling/groups", "deployment": "/containers/deployments"}


def row(noun: str, **more: Any) -> dict[str, Any]:
    common: dict[str, Any] = {"id": ID, "name": "web", "status": "active", "error": None, "backoff_until": None}
    common |= {"revision": 2, "max_surge": "25%", "max_unavailable": 0, "image": "cairn/base", "paused": False}
    common |= {"instance_type": "basic-1", "health_check": None, "labels": {}, "created_at": WHEN}
    return common | {"workflow_id": WORKFLOW} | NUMBERS[noun] | more


@pytest.mark.parametrize("noun", ["group", "deployment"])
@pytest.mark.parametrize("written", ["-1", "+1", "1.5", "--min"])
def test_what_is_no_number_of_members_is_refused(noun: str, written: str) -> None:
    refused = cairn(noun, "scale", "web", written)
    assert (refused.exit_code, "expected how many there should be" in refused.stderr) == (Exit.USAGE, True)


@pytest.mark.parametrize("noun", ["group", "deployment"])
def test_both_are_made_shown_scaled_changed_and_removed(api: FakeApi, noun: str) -> None:
    path = PATHS[noun]
    accepted = Answer(202, row(noun), meta={"workflow_id": WORKFLOW})
    api.on(f"POST {path}", accepted)
    most = ["--max", "5"] if noun == "group" else []
    made = cairn(noun, "create", "web", *most, "--port", "80", "--env", "A=1", "--max-surge", "2", "--no-wait")
    assert made.exit_code == 0, made.stderr
    body = api.requests[-1].body
    assert body["ports"] == [{"container_port": 80, "protocol": "tcp"}]
    assert (body["env"], body["max_surge"], body["image"]) == ({"A": "1"}, 2, "cairn/base:latest")
    assert body.get("max_instances" if noun == "group" else "replicas") == (5 if noun == "group" else 1)
    api.on(f"GET {path}", Answer(200, [row(noun)]))
    assert "2/3" in cairn(noun, "list").stdout
    member = {"name": "web-1", "status": "stopped", "image": "cairn/base", "host": "local", "created_at": WHEN}
    member |= {"id": ID, "instance_type": "basic-1"}
    api.on("GET /instances", Answer(200, [member]))
    shown = cairn(noun, "show", "web").stdout
    assert "2, which 1 have" in shown and re.search(r"web-1 +stopped", shown), shown
    assert api.requests[-1].query["group_id"] == ID
    for other in PATHS.values():
        api.on(f"GET {other}", Answer(200, [row(noun)] if other == path else []))
    assert "web-1" in cairn("instance", "list", "--group", "web").stdout
    assert api.requests[-1].query["group_id"] == ID
    api.on(f"PUT {path}/{ID}/scale", accepted)
    assert cairn(noun, "scale", "web", "4", "--no-wait").exit_code == 0
    assert api.requests[-1].body == {"desired_count" if noun == "group" else "replicas": 4}
    api.on(f"PATCH {path}/{ID}", accepted)
    assert cairn(noun, "update", "web", "--image", "cairn/base:2", "--no-wait").exit_code == 0
    assert api.requests[-1].body == {"image": "cairn/base:2"}
    api.on("GET /lb", Answer(200, [{"id": ID, "name": "front"}]))
    assert cairn(noun, "update", "web", "--lb", "front", "--no-wait").exit_code == 0
    assert api.requests[-1].body == {"load_balancer_id": ID}
    assert cairn(noun, "update", "web", "--lb", "", "--no-wait").exit_code == 0
    assert api.requests[-1].body == {"load_balancer_id": None}
    assert cairn(noun, "update", "web").exit_code == Exit.USAGE
    for verb in ("pause", "resume", "rollback"):
        api.on(f"POST {path}/{ID}/{verb}", Answer(200, row(noun, paused=True)))
        assert "paused" in cairn(noun, verb, "web").stdout
    api.on(f"DELETE {path}/{ID}", accepted)
    assert cairn(noun, "rm", "web", "--no-wait").exit_code == 0


def test_a_group_has_at_most_as_many_as_are_desired_where_nothing_else_is_said(api: FakeApi) -> None:
    api.on("POST /autoscaling/groups", Answer(202, {"name": "web"}, meta={"workflow_id": WORKFLOW}))
    asked = (([], 1), (["--desired", "2"], 2), (["--min", "3"], 3), (["--desired", "2", "--max", "4"], 4))
    for said, most in asked:
        cairn("group", "create", "web", *said, "--no-wait", "-o", "json")
        assert api.requests[-1].body["max_instances"] == most


def test_configurations_say_which_is_made_now(api: FakeApi) -> None:
    api.on("GET /containers/deployments", Answer(200, [row("deployment")]))
    known = {"revision": 2, "current": True, "image": "app:2", "instance_type": "basic-1", "cmd": None}
    known |= {"created_at": WHEN, "rolled_out_at": None}
    earlier = known | {"revision": 1, "current": False, "image": "app:1", "cmd": ["serve"], "rolled_out_at": WHEN}
    api.on(f"GET /containers/deployments/{ID}/configurations", Answer(200, [known, earlier]))
    _, first, second = cairn("deployment", "configurations", "web").stdout.splitlines()
    assert first.split()[:4] == ["2", "app:2", "basic-1", "*"]
    assert second.split()[:4] == ["1", "app:1", "basic-1", "serve"]


def test_activities_say_what_and_why(api: FakeApi) -> None:
    api.on("GET /autoscaling/groups", Answer(200, [row("group")]))
    activity = {"action": "update", "cause": "key:admin", "desired_before": 3, "desired_after": 3, "launched": 3}
    activity |= {"revision_before": 1, "revision_after": 1, "removed": 3, "state": "failed", "rolled_back": True}
    activity |= {"error": {"message": "no such image", "code": "image_not_found"}, "created_at": WHEN}
    api.on(f"GET /autoscaling/groups/{ID}/activities", Answer(200, [activity]))
    assert "failed, rolled back: no such image" in " ".join(cairn("group", "activities", "web").stdout.split())
    assert json.loads(cairn("group", "activities", "web", "-o", "json").stdout) == [activity]


def test_policies_are_made_and_deleted_by_their_names(api: FakeApi) -> None:
    path = f"/autoscaling/groups/{ID}/policies"
    policy = {"id": WORKFLOW, "name": "cpu", "metric_type": "cpu", "target_value": 60.0, "acted_at": None}
    policy |= {"scale_out_step": 2, "scale_in_step": 1, "cooldown_sec": 60}
    api.on("GET /autoscaling/groups", Answer(200, [row("group")]))
    api.on(f"POST {path}", Answer(201, policy))
    made = cairn("group", "policy", "web", "cpu", "--target", "60", "--out", "2", "--in", "1")
    assert made.exit_code == 0, made.stderr
    wanted = {"name": "cpu", "metric_type": "cpu", "target_value": 60, "cooldown_sec": 60}
    assert api.requests[-1].body == wanted | {"scale_out_step": 2, "scale_in_step": 1}
    assert "+2 -1" in made.stdout and "60s" in made.stdout
    api.on(f"GET {path}", Answer(200, [policy]))
    assert "+2 -1" in cairn("group", "policies", "web").stdout
    assert cairn("group", "remove-policy", "web", "memory").exit_code == Exit.NOT_FOUND
    for measured in MEASURED:
        assert cairn("group", "metric", "web", measured, "5").exit_code == Exit.USAGE
    assert not api.seen(f"POST /autoscaling/groups/{ID}/metrics")
    api.on(f"POST /autoscaling/groups/{ID}/metrics", Answer(200, {"policies": 1}), Answer(200, {"policies": 0}))
    assert "policies that go by it: 1" in cairn("group", "metric", "web", "queue_length", "17").stderr
    assert api.requests[-1].body == {"metric_type": "queue_length", "value": 17}
    assert "no policy of web goes by" in cairn("group", "metric", "web", "queue_length", "17").stderr
    api.on(f"DELETE /autoscaling/policies/{WORKFLOW}", Answer(204, None))
    assert cairn("group", "remove-policy", "web", "cpu").exit_code == 0


@pytest.mark.parametrize(
    ("noun", "words", "name", "numbers"),
    [
        ("group", ["--desired", "6"], "web-to-6", {"desired_count": 6}),
        ("group", ["--min", "2", "--max", "9"], "web-bounds", {"min_instances": 2, "max_instances": 9}),
        ("group", ["--desired", "6", "--name", "morning"], "morning", {"desired_count": 6}),
        ("deployment", ["--replicas", "1"], "web-to-1", {"replicas": 1}),
    ],
)
def test_schedule_is_a_cron_job_that_scales(
    api: FakeApi, noun: str, words: list[str], name: str, numbers: dict[str, int]
) -> None:
    target = {"workflow": {"kind": "ScaleGroup", "resource_id": ID, "parameters": numbers}}
    api.on(f"GET {PATHS[noun]}", *[Answer(200, [row(noun)])] * 2)
    api.on("POST /cron/jobs", Answer(201, cron_job(name, target=target)))
    when = ["--cron", "0 8 * * 1-5", "--time-zone", "Europe/Berlin"]
    made = cairn(noun, "schedule", "web", *when, *words)
    assert made.exit_code == 0, made.stderr
    wanted = {"name": name, "schedule": "0 8 * * 1-5", "time_zone": "Europe/Berlin", "target": target}
    assert api.requests[-1].body == wanted
    said = " ".join(f"{field}={number}" for field, number in numbers.items())
    assert f"ScaleGroup {ID} {said}" in made.stdout
    api.on("GET /cron/jobs", Answer(200, [cron_job(name, target=target)]))
    assert said in cairn(noun, "schedules", "web").stdout
    assert api.requests[-1].query["resource_id"] == ID


def test_members_are_made_as_instances_are(api: FakeApi, tmp_path: Path) -> None:
    key, script = str(uuid4()), tmp_path / "init.sh"
    script.write_text("echo hello\n")
    api.on("GET /ssh-keys", Answer(200, [{"id": key, "name": "laptop"}]))
    api.on(f"POST {PATHS['group']}", Answer(202, row("group"), meta={"workflow_id": WORKFLOW}))
    words = ["--ttl", "8h", "--restart", "always", "--tag", "blue", "--host-label", "zone=a", "--ssh-key", "laptop"]
    made = cairn("group", "create", "web", *words, "--user-data", str(script), "--no-wait")
    assert made.exit_code == 0, made.stderr
    body = api.requests[-1].body
    assert {name: body[name] for name in ("ttl_seconds", "restart_policy", "tags", "host_labels", "ssh_key_id")} == {
        "ttl_seconds": 8 * 3600,
        "restart_policy": "always",
        "tags": ["blue"],
        "host_labels": {"zone": "a"},
        "ssh_key_id": key,
    }
    assert body["user_data"] == "echo hello\n"


def test_schedule_of_no_number_sends_nothing(api: FakeApi) -> None:
    assert cairn("group", "schedule", "web", "--cron", "@daily").exit_code == Exit.USAGE
    assert api.requests == []


def test_scale_beyond_the_bounds_says_the_numbers_and_no_options(api: FakeApi) -> None:
    said = "desired_count is not within min_instances and max_instances, 1 to 4: 99"
    wrong = {"code": "validation_failed", "message": f"desired_count: {said}"}
    wrong |= {"details": {"fields": [{"field": "desired_count", "message": said}]}}  # type: ignore[dict-item]
    api.on("GET /autoscaling/groups", Answer(200, [row("group")]))
    api.on(f"PUT /autoscaling/groups/{ID}/scale", Answer(422, error=wrong))
    told = cairn("group", "scale", "web", "99")
    assert told.exit_code == Exit.REFUSED and "may have 1 to 4 members, and 99 is not within" in told.stderr
    assert "--desired" not in told.stderr and "bounds" not in cairn("deployment", "scale", "web", "-1").stderr


def test_cron_jobs_that_a_group_leaves_are_named(api: FakeApi) -> None:
    api.on("GET /autoscaling/groups", Answer(200, [row("group")]))
    api.on(f"DELETE /autoscaling/groups/{ID}", Answer(202, row("group"), meta={"workflow_id": WORKFLOW}))
    api.on("GET /cron/jobs", Answer(200, [cron_job("nights")]), Answer(403, error={"code": "forbidden", "message": ""}))
    left = cairn("group", "rm", "web", "--no-wait")
    assert left.exit_code == Exit.OK and "cairn cron rm nights" in left.stderr
    assert api.seen("GET /cron/jobs")[0].query["resource_id"] == ID
    unseen = cairn("group", "rm", "web", "--no-wait")
    assert unseen.exit_code == Exit.OK and "cron" not in unseen.stderr


def test_group_names_its_load_balancer_and_goes_back_to_a_revision(api: FakeApi) -> None:
    api.on("GET /autoscaling/groups", Answer(200, [row("group", load_balancer_id=WORKFLOW)]))
    api.on("GET /instances", Answer(200, []))
    assert re.search(f"load balancer +{WORKFLOW}\n", cairn("group", "show", "web").stdout), "it may not be seen"
    api.on(f"GET /lb/{WORKFLOW}", Answer(200, {"name": "front"}))
    assert f"front ({WORKFLOW})" in cairn("group", "show", "web").stdout
    api.on(f"POST /autoscaling/groups/{ID}/rollback", Answer(200, row("group")))
    assert cairn("group", "rollback", "web", "--to", "1").exit_code == Exit.OK
    assert api.requests[-1].body == {"revision": 1}
