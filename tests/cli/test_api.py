"""``cairn api``, ``--debug`` and completion: what is sent, what is shown, and what is never shown."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from cli import debug
from cli.errors import Exit
from tests.cli.fake import HOST, INSTANCE, WORKFLOW, Answer, FakeApi, accepted, cairn, host, instance, workflow
from tests.cli.test_program import PROGRAM


@pytest.mark.parametrize(
    ("words", "method", "path", "query"),
    [
        (["/instances"], "GET", "/instances", {}),
        (["GET", "/v1/instances?status=running&x=a%20b"], "GET", "/instances", {"status": "running", "x": "a b"}),
        (["get", "instances"], "GET", "/instances", {}),
        (["DELETE", f"/instances/{INSTANCE}"], "DELETE", f"/instances/{INSTANCE}", {}),
        (["/health/ready"], "GET", "/health/ready", {}),
        (["/instances", "-d", "{}"], "POST", "/instances", {}),
    ],
)
def test_what_is_asked(api: FakeApi, words: list[str], method: str, path: str, query: dict[str, str]) -> None:
    api.on(f"{method} {path}", Answer(200, [1]))
    result = cairn("api", *words)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"data": [1], "error": None, "meta": {}}
    (sent,) = api.requests
    assert (sent.method, sent.path, sent.query) == (method, path, query)
    assert sent.headers["x-api-key"] == "secret-key"


@pytest.mark.parametrize(
    "words",
    [
        ["FETCH", "/instances"],
        ["GET", "/a", "/b"],
        ["http://elsewhere/v1/instances"],
        ["//elsewhere/v1/instances"],
        ["/instances", "-H", "nothing"],
        ["/instances", "-d", "@/nowhere"],
        ["POST", "/instances", "--paginate"],
        ["/instances", "-o", "table"],
    ],
)
def test_nonsense_is_refused_before_anything_is_sent(api: FakeApi, words: list[str]) -> None:
    assert cairn("api", *words).exit_code == Exit.USAGE
    assert api.requests == []


def test_bodies_and_headers(api: FakeApi, tmp_path: Path) -> None:
    api.on("POST /instances", accepted(instance()))
    (tmp_path / "body.json").write_text('{"name": "ä"}')
    assert cairn("api", "POST", "/instances", "-d", '{"name": "ä"}', "-H", "Prefer: wait=5").exit_code == 0
    assert cairn("api", "POST", "/instances", "-d", f"@{tmp_path / 'body.json'}").exit_code == 0
    piped = [*PROGRAM, "api", "POST", "/instances", "-d", "-"]
    subprocess.run(piped, input='{"name": "ä"}'.encode(), capture_output=True, timeout=20, check=True)
    assert [request.body for request in api.requests] == [{"name": "ä"}] * 3
    assert api.requests[0].headers["prefer"] == "wait=5"
    assert {request.headers["content-type"] for request in api.requests} == {"application/json"}
    assert len({request.headers["idempotency-key"] for request in api.requests}) == 3


def test_all_pages_are_one(api: FakeApi) -> None:
    first = Answer(200, [1, 2], meta={"next_cursor": "c1", "request_id": "r"})
    api.on("GET /instances", first, Answer(200, [3], meta={"request_id": "s"}))
    result = cairn("api", "/instances?limit=2", "--paginate", "-o", "yaml")
    assert yaml.safe_load(result.stdout) == {"data": [1, 2, 3], "error": None, "meta": {"request_id": "s"}}
    assert [request.query for request in api.requests] == [{"limit": "2"}, {"limit": "2", "cursor": "c1"}]


@pytest.mark.parametrize(
    ("status", "exit"),
    [(302, Exit.REFUSED), (401, Exit.UNREACHABLE), (404, Exit.NOT_FOUND), (409, Exit.REFUSED), (500, Exit.FAILED)],
)
def test_a_refusal_is_printed_and_decides_the_exit_code(api: FakeApi, status: int, exit: Exit) -> None:
    api.on("POST /instances", Answer(status, error={"code": "some_code", "message": "no"}))
    result = cairn("api", "POST", "/instances")
    assert result.exit_code == exit
    assert json.loads(result.stdout)["error"]["code"] == "some_code"
    assert "no (some_code)" in result.stderr


def test_what_is_no_json_comes_as_it_is(api: FakeApi) -> None:
    api.on("GET /metrics", Answer(200, raw=b"up 1\n\xff"))
    done = subprocess.run([*PROGRAM, "api", "/metrics"], capture_output=True, timeout=20, check=True)
    assert done.stdout == b"up 1\n\xff"


def test_no_body_is_no_failure(api: FakeApi) -> None:
    api.on("HEAD /instances", Answer(200, raw=b"x", headers={"Content-Type": "application/json"}))
    api.on("DELETE /ssh-keys/x", Answer(204, raw=b"", headers={"Content-Type": "application/json"}))
    for words in (["HEAD", "/instances"], ["DELETE", "/ssh-keys/x"]):
        assert subprocess.run([*PROGRAM, "api", *words], capture_output=True, timeout=20, check=False).returncode == 0


def test_a_request_that_may_change_something_is_sent_once(api: FakeApi) -> None:
    api.on("POST /instances", Answer(503, error={"code": "unavailable", "message": "away"}))
    assert cairn("api", "POST", "/instances").exit_code == Exit.UNREACHABLE
    assert len(api.requests) == 1


def test_debug_shows_requests_without_secrets(api: FakeApi) -> None:
    row = instance(env={"PASSWORD": "hunter2"}, user_data="hunter2", labels={"a": "b"})
    api.on("POST /instances", Answer(202, row, meta={"workflow_id": WORKFLOW}, headers={"X-Request-ID": "req-1"}))
    api.on("POST /hosts/tokens", Answer(201, {"token": "hunter2", "expires_at": "2026-01-01T12:00:00Z"}))
    shown = cairn("instance", "launch", "web", "-e", "PASSWORD=hunter2", "--no-wait", "--debug").stderr
    shown += cairn("--debug", "host", "token").stderr
    assert "hunter2" not in shown
    assert "secret-key" not in shown
    for expected in ("> POST http", "< 202", "req-1", "PASSWORD", '"a": "b"', "idempotency-key: "):
        assert expected in shown


def test_debug_cuts_long_bodies_after_hiding(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance(labels={"x": "y" * 5000}, token="hunter2")]))
    shown = cairn("instance", "list", "--debug").stderr
    assert "more characters" in shown
    assert max(map(len, shown.splitlines())) < debug.LONGEST + 100
    assert "hunter2" not in shown


def test_what_is_hidden_wherever_it_stands() -> None:
    secret = {
        "a": [{"api_key": "x", "Password": "x", "private_key": "x", "webhook_secret": "x", "key": "x"}],
        "env": ["A=x", "B=x"],
        "url": "https://me:x@h/p",
        "token": {"deep": "x"},
    }
    assert "x" not in json.dumps(debug.hidden(secret)).replace("expires", "")
    plain = {"name": "web", "expires_in_seconds": 5, "token": None, "public_key": "ssh-ed25519 AAAA"}
    assert debug.hidden(plain) == plain


def offered(line: str) -> list[str]:
    """What bash is offered for the last word of a line, which may be empty."""
    typed = line.split()
    environ = {
        **os.environ,
        "_CAIRN_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join([*typed, *([""] if line.endswith(" ") else [])]),
        "COMP_CWORD": str(len(typed) - (not line.endswith(" "))),
    }
    done = subprocess.run(PROGRAM, env=environ, capture_output=True, text=True, timeout=20, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_completion_of_commands_options_and_names(api: FakeApi) -> None:
    api.on("GET /instances", Answer(200, [instance("web"), instance("worker"), instance("db")]))
    api.on("GET /hosts", Answer(200, [host("rack-1")]))
    api.on("GET /workflows", Answer(200, [workflow()]))
    assert offered("cairn ins") == ["instance"]
    assert "launch" in offered("cairn instance ")
    assert offered("cairn instance list --sta") == ["--status"]
    assert offered("cairn instance list -o ") == ["table", "json", "yaml"]
    assert offered("cairn instance show w") == ["web", "worker"]
    assert offered("cairn instance stop web d") == ["db"]
    assert offered("cairn host drain ") == ["rack-1"]
    assert offered("cairn workflow cancel ") == [WORKFLOW]
    assert offered("cairn watch inst") == ["instance"]
    assert offered("cairn watch instance show ") == ["db", "web", "worker"]


def test_completion_is_silent_where_the_api_is_not(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.on("GET /instances", Answer(503, error={"code": "unavailable", "message": "away"}))
    assert offered("cairn instance show ") == []
    assert len(api.requests) == 1
    api.on("GET /instances", Answer(200, {"name": "of something else"}))
    assert offered("cairn instance show ") == []
    for url in ("http://127.0.0.1:9/v1", "http://[::1/v1", "no address"):
        monkeypatch.setenv("CAIRN_API_URL", url)
        assert offered("cairn instance show ") == []
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:9")
    monkeypatch.setenv("CAIRN_API_URL", "http://platform.invalid/v1")
    assert offered("cairn instance show ") == []
    monkeypatch.delenv("ALL_PROXY")
    monkeypatch.delenv("CAIRN_API_URL")
    monkeypatch.setenv("CAIRN_DATA_DIR", "/nowhere")
    assert offered("cairn instance show ") == []


def test_completion_asks_the_api_that_the_line_names(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.on("GET /instances", Answer(200, [instance("web")]))
    monkeypatch.delenv("CAIRN_API_URL")
    assert offered(f"cairn --api-url {api.url} instance show ") == ["web"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    done = subprocess.run([*PROGRAM, "completion", shell], capture_output=True, text=True, timeout=20, check=True)
    assert f"complete_{shell}" in done.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, timeout=20, check=True)


def test_hosts_are_named_by_completion(api: FakeApi) -> None:
    api.on("GET /hosts", Answer(200, [host("rack-1"), host("rack-2", id=HOST)]))
    assert offered("cairn host show rack-") == ["rack-1", "rack-2"]
