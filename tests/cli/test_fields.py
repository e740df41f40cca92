"""Errors name what was written on the command line; those of ``cairn api`` what stands in the request."""

from __future__ import annotations

from typing import Any

import pytest

from cli.errors import Exit, of_answer
from tests.cli.fake import Answer, FakeApi, cairn, instance


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
