"""Errors name what was written on the command line; those of ``cairn api`` what stands in the request."""

from __future__ import annotations

from typing import Any

import pytest

from cli.errors import Exit, of_answer
from tests.cli.fake import WORKFLOW, Answer, FakeApi, cairn, instance


def refused(field: str, said: str) -> dict[str, Any]:
    fields = [{"field": field, "message": said}]
    return {"code": "validation_failed", "message": f"{field}: {said}", "details": {"fields": fields}}


@pytest.mark.parametrize(
    ("field", "said", "told"),
    [
        ("ports.0.container_port", "Input should be less than or equal to 65535", "--port: it must be less than or"),
        ("env.A B", "no name", "--env A B: no name"),
        ("tags.0", "too long", "--tag: too long"),
        ("source.upload.checksum", "no checksum", "--checksum: no checksum"),
        ("target.workflow.parameters.desired_count", "Input should be greater than 0", "--desired: it must be greater"),
        (
            "desired_count",
            "desired_count is not within min_instances and max_instances, 1 to 4: 9",
            "and --max, 1 to 4",
        ),
        ("other", "Field required", "other: Field required"),
    ],
)
def test_fields_are_named_as_options(field: str, said: str, told: str) -> None:
    failure = of_answer(422, refused(field, said))
    assert told in failure.message
    assert not failure.fields or f"{failure.fields[0]['field']}: {failure.fields[0]['message']}" in failure.message
    assert of_answer(422, refused(field, said), verbatim=True).message == f"{field}: {said}"


def test_what_is_asked_by_hand_keeps_the_names_of_the_api(api: FakeApi) -> None:
    api.on("POST /instances", Answer(422, error=refused("ports.0", "no port")))
    assert "ports.0: no port" in cairn("api", "POST", "/instances", "-d", '{"ports": "x"}').stderr
    assert "--port: no port" in cairn("instance", "launch", "web").stderr


def test_a_command_of_an_instance_stands_after_dashes(api: FakeApi) -> None:
    api.on("POST /instances", Answer(202, instance()))
    told = cairn("instance", "launch", "a", "b")
    assert told.exit_code == Exit.USAGE and "cairn instance launch a -- b" in told.stderr
    assert cairn("instance", "launch", "a", "--no-wait", "--", "b").exit_code == Exit.OK
    assert [one.body["cmd"] for one in api.seen("POST /instances")] == [["b"]]


def test_times_and_what_contradicts_itself_are_refused_before_anything_is_sent(api: FakeApi) -> None:
    for wrong in (["--ttl", "0s"], ["--ttl", "-5m"]):
        told = cairn("instance", "update", "web", *wrong)
        assert told.exit_code == Exit.USAGE and "more than 0" in told.stderr
    both = cairn("instance", "update", "web", "--ttl", "1m", "--no-ttl")
    assert both.exit_code == Exit.USAGE and "either --ttl or --no-ttl" in both.stderr
    above = cairn("group", "policy", "web", "p", "--metric", "cpu", "--target", "500")
    assert above.exit_code == Exit.USAGE and "at most 100" in above.stderr
    assert cairn("lb", "update", "front", "--tls", "").exit_code == Exit.USAGE
    assert not api.requests


@pytest.mark.parametrize(
    ("words", "route", "field", "said", "told"),
    [
        ("lb create f --port 80 --check foo", "POST /lb", "health_check.type", "one of tcp, http", "--check: one of"),
        ("lb create f --port 0", "POST /lb", "port", "must be at least 1", "error: --port: must be at least 1 ("),
        ("lb create f --port 1 --tls x", "POST /lb", "tls.secret", "there is none", "error: --tls: there"),
        ("lb create f --port 1 --interval 0s", "POST /lb", "health_check.interval_seconds", "must be at least 9", "9s"),
        ("pool create p --size 0", "POST /pools", "size", "must be at least 1", "error: --size: must"),
        ("instance launch w --backend x", "POST /instances", "backend", "none of ours", "error: --backend: none"),
        ("instance list --status x", "GET /instances", "status", "none of ours", "error: --status: none"),
        ("workflow list --kind x", "GET /workflows", "kind", "none of ours", "error: --kind: none"),
        ("workflow list --state x", "GET /workflows", "state", "none of ours", "error: --state: none"),
        ("audit list --type x", "GET /audit", "resource_type", "none of ours", "error: --type: none"),
        ("event list --type x", "GET /events", "type.0", "none of ours", "error: --type: none"),
        ("key create k --scope x", "POST /auth/keys", "scopes.0", "no permission", "error: --scope: no permission"),
        ("host token --expires 30d", "POST /hosts/tokens", "expires_in_seconds", "must be at most 604800", "most 7d"),
        ("audit verify --head 1:x", "POST /audit/verify", "remembered.hash", "no hash", "error: --head: no hash"),
        (
            "cron create n @daily --workflow X",
            "POST /cron/jobs",
            "target.workflow.kind",
            "no such kind",
            "error: --workflow: no such kind",
        ),
        (
            "cron create n @daily --workflow StopInstance",
            "POST /cron/jobs",
            "target.workflow",
            "StopInstance needs a resource_id",
            "error: --workflow: StopInstance needs a --resource",
        ),
        (
            "cron create n @daily --url x --body b",
            "POST /cron/jobs",
            "body",
            "expected start before end",
            "error: expected start before end",
        ),
        (
            "type create t --vcpus 1 --memory 1 --disk 1",
            "POST /instance-types",
            "memory_mb",
            "must be at least 4",
            "error: --memory: must be at least 4",
        ),
    ],
)
def test_fields_are_options_of_the_command_that_runs(
    api: FakeApi, words: str, route: str, field: str, said: str, told: str
) -> None:
    api.on(route, Answer(422, error=refused(field, said)))
    ended = cairn(*words.split())
    assert ended.exit_code == Exit.REFUSED and told in ended.stderr
    assert field not in ended.stderr.replace(f"--{field}", "") or field == "body", ended.stderr


def test_names_of_fields_within_a_sentence_are_options_too_and_what_is_quoted_is_nobodys(api: FakeApi) -> None:
    api.on("GET /autoscaling/groups", Answer(200, [{"id": WORKFLOW, "name": "web"}]))
    both = "scale_out_step and scale_in_step are given both, or none: not 'cooldown_sec'"
    api.on(f"POST /autoscaling/groups/{WORKFLOW}/policies", Answer(422, error=refused("body", both)))
    told = cairn("group", "policy", "web", "p", "--target", "5", "--out", "2").stderr
    assert told.startswith("error: --out and --in are given both, or none: not 'cooldown_sec' (")
    assert "both, or none" in " ".join(cairn("group", "policy", "--help").stdout.split())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("workflow list --since 1m --until 2h", "--since 1m is not before --until 2h"),
        ("audit list --since 2026-02-01T00:00:00Z --until 2026-01-01T00:00:00Z", "is not before"),
        ("instance stop web --wait --no-wait", "either --wait or --no-wait"),
        ("event list --all --limit 3", "either --all or --limit"),
        ("type create t --vcpus 1 --memory 128Mi --disk 1", "'128Mi': expected a whole number, which is in MiB"),
        ("ssh-key add k /nowhere/key.pub", "error: /nowhere/key.pub: No such file or directory ("),
        ("credential create c --host h --ssh --from-file /nowhere/key", "No such file or directory"),
    ],
)
def test_what_cannot_be_meant_is_refused_plainly(api: FakeApi, words: str, told: str) -> None:
    ended = cairn(*words.split())
    assert ended.exit_code == Exit.USAGE and not api.requests
    said = " ".join(ended.stderr.replace("│", " ").split())
    assert told in said and "Errno" not in said, said


def test_times_are_shown_with_their_unit_and_help_names_no_order_that_is_not_so() -> None:
    assert "[default: 10m]" in " ".join(cairn("instance", "stop", "--help").stdout.split())
    assert "newest first" not in cairn("type", "list", "--help").stdout
    assert "table" not in cairn("api", "--help").stdout
    assert "so long from now" in " ".join(cairn("instance", "update", "--help").stdout.split())
    assert cairn("event", "list", "--help").exit_code == Exit.OK
