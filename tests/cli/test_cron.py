"""Cron jobs on the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cli.errors import Exit
from tests.cli.fake import INSTANCE, JOB, WHEN, WORKFLOW, Answer, FakeApi, cairn, cron_job, instance

RUN = "0199b3f0-0000-7000-8000-00000000000f"


def run(**over: Any) -> dict[str, Any]:
    return {
        "id": RUN,
        "job_id": JOB,
        "scheduled_at": WHEN,
        "manual": False,
        "state": "failed",
        "attempts": 3,
        "status_code": 500,
        "error": {"code": "call_failed", "message": "it answered 500"},
        "workflow_id": None,
        "truncated": False,
        "output": "out of order\n",
        **over,
    }


def test_create_makes_the_secret_itself_and_shows_it(api: FakeApi) -> None:
    api.on("POST /cron/jobs", Answer(0), Answer(201, cron_job()))
    headers = ("-H", "A=b", "-H", "Authorization=secret:token")
    words = ("--url", "https://example.com/nightly", *headers, "--body", '{"a": 1}')
    result = cairn("cron", "create", "nightly", "30 2 * * *", *words, "--time-zone", "Europe/Berlin", "--catchup", "1h")
    assert result.exit_code == 0, result.output
    lost, sent = api.seen("POST /cron/jobs")
    assert lost.body == sent.body and lost.headers["idempotency-key"] == sent.headers["idempotency-key"]
    http = sent.body["target"]["http"]
    assert http["headers"] == {"A": "b", "Authorization": {"secret": "token"}} and http["body"] == {"a": 1}
    assert sent.body["catchup_window_seconds"] == 3600
    assert http["secret"].startswith("cairn_hook_") and http["secret"] in result.stdout
    assert "not shown again" in result.stderr


@pytest.mark.parametrize(
    ("words", "target"),
    [
        (["--exec", "web", "--", "df", "-h"], {"exec": {"name": "web", "cmd": ["df", "-h"]}}),
        (
            ["--exec", INSTANCE, "--timeout", "2m", "--", "df"],
            {"exec": {"instance_id": INSTANCE, "cmd": ["df"], "timeout": 120}},
        ),
        (
            ["--workflow", "StopInstance", "--resource", INSTANCE],
            {"workflow": {"kind": "StopInstance", "resource_id": INSTANCE, "parameters": {}}},
        ),
        (
            ["--workflow", "StopInstance", "--resource", "web"],
            {"workflow": {"kind": "StopInstance", "resource_id": INSTANCE, "parameters": {}}},
        ),
        (
            ["--workflow", "ProvisionInstance", "--parameters", '{"name": "a"}'],
            {"workflow": {"kind": "ProvisionInstance", "parameters": {"name": "a"}}},
        ),
    ],
)
def test_create_says_what_is_done(api: FakeApi, words: list[str], target: dict[str, Any]) -> None:
    api.on("POST /cron/jobs", Answer(201, cron_job(target=target)))
    api.on("GET /instances", Answer(200, [instance()]))
    result = cairn("cron", "create", "nightly", "@daily", *words)
    assert result.exit_code == 0, result.output
    assert api.seen("POST /cron/jobs")[0].body["target"] == target


@pytest.mark.parametrize("words", [[], ["--url", "https://a", "--exec", "web"], ["--exec", "web"]])
def test_create_without_one_target_sends_nothing(api: FakeApi, words: list[str]) -> None:
    assert cairn("cron", "create", "nightly", "@daily", *words).exit_code == Exit.USAGE
    assert api.seen("POST /cron/jobs") == []


def test_show_says_when_it_runs(api: FakeApi) -> None:
    api.on("GET /cron/jobs", Answer(200, [cron_job()]))
    result = cairn("cron", "show", "nightly")
    assert "2026-01-02T01:30:00Z" in result.stdout and "user:jo@example.org" in result.stdout


def test_update_keeps_what_is_not_named(api: FakeApi) -> None:
    api.on("GET /cron/jobs", Answer(200, [cron_job()]))
    api.on(f"PUT /cron/jobs/{JOB}", Answer(200, cron_job(version=4)))
    assert cairn("cron", "update", "nightly", "--schedule", "@hourly").exit_code == 0
    (sent,) = api.seen(f"PUT /cron/jobs/{JOB}")
    assert sent.headers["if-match"] == '"3"'
    same = ("name", "time_zone", "target", "overlap", "catchup_window_seconds", "labels", "paused")
    assert sent.body == {"schedule": "@hourly"} | {name: cron_job()[name] for name in same}
    assert cairn("cron", "update", "nightly").exit_code == Exit.USAGE


def test_verbs_find_the_job_by_its_name(api: FakeApi) -> None:
    api.on("GET /cron/jobs", *[Answer(200, [cron_job()])] * 5)
    for verb in ("pause", "resume"):
        api.on(f"POST /cron/jobs/{JOB}/{verb}", Answer(200, cron_job()))
        assert cairn("cron", verb, "nightly").exit_code == 0
    api.on(f"POST /cron/jobs/{JOB}/trigger", Answer(202, run(state="pending")))
    assert RUN in cairn("cron", "trigger", "nightly").stderr
    api.on(f"POST /cron/jobs/{JOB}/backfill", Answer(202, {"runs": 7}))
    result = cairn("cron", "backfill", "nightly", "--start", WHEN, "--end", "2026-01-02T00:00:00Z")
    assert "7 times" in result.stderr
    assert api.seen(f"POST /cron/jobs/{JOB}/backfill")[0].body["start"] == WHEN
    api.on(f"DELETE /cron/jobs/{JOB}", Answer(0), Answer(404, error={"code": "not_found", "message": "gone"}))
    assert cairn("cron", "rm", "nightly").exit_code == 0


def test_runs_are_listed_and_one_is_shown_with_its_output(api: FakeApi) -> None:
    api.on("GET /cron/jobs", *[Answer(200, [cron_job()])] * 3)
    api.on(f"GET /cron/jobs/{JOB}/runs", *[Answer(200, [run(), run(workflow_id=WORKFLOW, error=None)])] * 2)
    listed = cairn("cron", "runs", "nightly", "--state", "failed")
    assert "it answered 500" in listed.stdout
    assert api.seen(f"GET /cron/jobs/{JOB}/runs")[0].query["state"] == "failed"
    api.on(f"GET /cron/jobs/{JOB}/runs/{RUN}", Answer(200, run(truncated=True)))
    shown = cairn("cron", "runs", "nightly", RUN)
    assert "out of order" in shown.stdout and "not kept" in shown.stderr
    assert json.loads(cairn("cron", "runs", "nightly", "-o", "json").stdout)[0]["id"] == RUN
