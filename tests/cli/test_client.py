"""Where the API is found, what is tried again, and which exit code a failure has."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

import pytest

from cli import client
from cli.client import Client, Endpoint, find_endpoint
from cli.errors import CommandFailed, Exit, of_answer
from tests.cli.fake import INSTANCE, WORKFLOW, Answer, FakeApi, accepted, cairn, instance


def endpoint_file(folder: Path, **content: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "endpoint.json").write_text(json.dumps({"api_url": "http://127.0.0.1:9/v1", "api_key": "k"} | content))


def test_environment_wins_over_the_endpoint_file(tmp_path: Path) -> None:
    endpoint_file(tmp_path)
    found = find_endpoint({"CAIRN_DATA_DIR": str(tmp_path), "CAIRN_API_URL": "http://h/v1/", "CAIRN_API_KEY": "mine"})
    assert found == Endpoint("http://h/v1", "mine")


def test_the_files_key_is_not_sent_to_another_address(tmp_path: Path) -> None:
    endpoint_file(tmp_path)
    assert find_endpoint({"CAIRN_DATA_DIR": str(tmp_path), "CAIRN_API_URL": "http://h/v1"}).api_key is None


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://127.0.0.1:9/v1", "mine"),
        ("http://[::1]:9/v1", "mine"),
        ("http://localhost:9/v1", "mine"),
        ("http://10.0.0.1:9/v1", "k"),
        ("https://127.0.0.1.example.org/v1", "k"),
    ],
)
def test_a_key_of_the_environment_goes_where_a_folder_says_only_on_this_machine(
    tmp_path: Path, url: str, sent: str
) -> None:
    endpoint_file(tmp_path, api_url=url)
    found = find_endpoint({"CAIRN_DATA_DIR": str(tmp_path), "CAIRN_API_KEY": "mine"})
    assert (found.api_url, found.api_key) == (url, sent)


def test_endpoint_file_of_the_data_folder(tmp_path: Path) -> None:
    endpoint_file(tmp_path, pids={"api": 12})
    assert find_endpoint({"CAIRN_DATA_DIR": str(tmp_path)}) == Endpoint("http://127.0.0.1:9/v1", "k")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"api_key": "k"}'])
def test_unusable_endpoint_file_says_so(tmp_path: Path, content: str) -> None:
    (tmp_path / "endpoint.json").write_text(content)
    with pytest.raises(CommandFailed) as failed:
        find_endpoint({"CAIRN_DATA_DIR": str(tmp_path)})
    assert failed.value.exit is Exit.UNREACHABLE
    assert "endpoint.json" in failed.value.message


def test_no_platform_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAIRN_API_URL", raising=False)
    monkeypatch.setenv("CAIRN_DATA_DIR", str(tmp_path))
    result = cairn("instance", "list")
    assert result.exit_code == Exit.UNREACHABLE
    assert "cairn up" in result.stderr


def test_a_stopped_platform_is_reported_without_retrying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAIRN_API_URL", raising=False)
    endpoint_file(tmp_path, pids={})
    monkeypatch.setenv("CAIRN_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(client.time, "sleep", lambda seconds: pytest.fail("it was tried again"))
    result = cairn("instance", "list")
    assert result.exit_code == Exit.UNREACHABLE
    assert "stopped" in result.stderr


@pytest.mark.parametrize(
    ("status", "code", "exit"),
    [
        (400, "malformed", Exit.REFUSED),
        (401, "unauthenticated", Exit.UNREACHABLE),
        (403, "forbidden", Exit.REFUSED),
        (404, "not_found", Exit.NOT_FOUND),
        (409, "invalid_state", Exit.REFUSED),
        (412, "precondition_failed", Exit.REFUSED),
        (422, "validation_failed", Exit.REFUSED),
        (429, "quota_exceeded", Exit.REFUSED),
        (500, "internal", Exit.FAILED),
        (502, "workflow_failed", Exit.FAILED),
        (503, "unavailable", Exit.UNREACHABLE),
    ],
)
def test_exit_codes_of_answers(status: int, code: str, exit: Exit) -> None:
    assert of_answer(status, {"code": code, "message": "m"}).exit is exit


def test_a_lost_answer_is_asked_for_again_under_the_same_key(api: FakeApi) -> None:
    api.on("POST /instances", Answer(0), Answer(503, error={"code": "unavailable"}), accepted(instance()))
    result = cairn("instance", "launch", "web", "--no-wait", "-o", "json")
    assert result.exit_code == 0
    keys = {request.headers["idempotency-key"] for request in api.seen("POST /instances")}
    assert len(api.seen("POST /instances")) == 3
    assert len(keys) == 1
    UUID(keys.pop())


def test_retry_after_is_honoured_but_bounded(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(client.time, "sleep", slept.append)
    busy = {"code": "unavailable", "message": "database away"}
    api.on(
        "GET /instances",
        Answer(503, error=busy, headers={"Retry-After": "1"}),
        Answer(503, error=busy, headers={"Retry-After": "3600"}),
        Answer(200, []),
    )
    assert cairn("instance", "list").exit_code == 0
    assert slept == [1, client.LONGEST_PAUSE]


def test_giving_up_on_503(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RETRY_SECONDS", 0.1)
    api.on("GET /instances", Answer(503, error={"code": "unavailable", "message": "database away"}))
    with Client() as found, pytest.raises(CommandFailed) as failed:
        found.request("GET", "/instances", patience=0.1)
    assert (failed.value.exit, failed.value.code) == (Exit.UNREACHABLE, "unavailable")


def test_the_key_is_sent(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, []))
    cairn("instance", "list")
    assert api.requests[0].headers["x-api-key"] == "secret-key"


def test_a_stranger_at_the_address_is_not_taken_for_cairn(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, raw=b"<html>hello</html>"))
    result = cairn("instance", "list")
    assert result.exit_code == Exit.UNREACHABLE
    assert "/v1" in result.stderr


def test_bad_address_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAIRN_API_URL", "ftp://127.0.0.1/v1")
    assert cairn("instance", "list").exit_code == Exit.UNREACHABLE


def test_error_names_code_fields_and_what_to_do(api: FakeApi) -> None:
    fields = [{"field": "name", "message": "is too long"}]
    error = {"code": "validation_failed", "message": "the request is not valid", "details": {"fields": fields}}
    api.on("POST /instances", Answer(422, error=error))
    result = cairn("instance", "launch", "web")
    assert result.exit_code == Exit.REFUSED
    assert result.stdout == ""
    assert result.stderr.splitlines()[:2] == [
        "error: the request is not valid (validation_failed)",
        "  name: is too long",
    ]


def test_conflict_points_to_the_workflow_in_the_way(api: FakeApi) -> None:
    error = {"code": "invalid_state", "message": "it is starting", "details": {"workflow_id": WORKFLOW}}
    api.on("GET /instances", Answer(200, [instance()]))
    api.on(f"POST /instances/{INSTANCE}/stop", Answer(409, error=error))
    result = cairn("instance", "stop", "web")
    assert result.exit_code == Exit.REFUSED
    assert f"cairn workflow wait {WORKFLOW}" in result.stderr
