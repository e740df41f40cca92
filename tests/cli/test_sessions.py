"""``cairn session``: what it sends, and what it says."""

from __future__ import annotations

import contextlib
import io
import socket
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

from cli import forwarding
from cli.client import Client
from cli.errors import CommandFailed, Exit
from tests.cli.fake import INSTANCE, WHEN, WORKFLOW, Answer, FakeApi, accepted, cairn, workflow

WORKSPACE, SESSION = "0199b3f0-0000-7000-8000-0000000000a1", "0199b3f0-0000-7000-8000-0000000000a2"
AGENT = "0199b3f0-0000-7000-8000-0000000000a3"
ABOUT = {"id": WORKSPACE, "name": "shop"}


def session(**over: Any) -> dict[str, Any]:
    named = {"id": SESSION, "name": "work", "status": "running", "workspace_id": WORKSPACE, "commit": "1" * 40}
    about = {"instance_id": INSTANCE, "image": "cairn/base:latest", "instance_type": "basic-1", "host": "rack-1"}
    return {
        **named,
        **about,
        "network": {"mode": "none"},
        "agent_id": None,
        "expires_at": None,
        "head": None,
        "start": "cold",
        "start_reason": "no pool has such sandboxes",
        "error": None,
        "created_at": WHEN,
        **over,
    }


def test_create_says_what_was_asked_for_and_nothing_else(api: FakeApi) -> None:
    api.on("GET /workspaces", Answer(200, [ABOUT]))
    api.on(f"POST /workspaces/{WORKSPACE}/sessions", accepted(session(status="initializing")))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow()))
    api.on(f"GET /sessions/{SESSION}", Answer(200, session()))
    result = cairn("session", "create", "shop", "--name", "work", "--allow", "pypi.org", "--ttl", "1h", "--env", "A=b")
    assert result.exit_code == 0, result.output
    (sent,) = api.seen(f"POST /workspaces/{WORKSPACE}/sessions")
    network = {"mode": "allow-list", "allow": ["pypi.org"]}
    wanted = {"name": "work", "instance_type": "basic-1", "env": {"A": "b"}, "network": network, "ttl_seconds": 3600}
    assert sent.body == wanted
    assert WORKSPACE in result.stdout and "shop (" not in result.stdout, "it may not be seen"
    api.on(f"GET /workspaces/{WORKSPACE}", Answer(200, ABOUT))
    assert f"shop ({WORKSPACE})" in cairn("session", "create", "shop").stdout
    assert cairn("session", "create", "shop", "--allow", "a.org", "--network", "none").exit_code == Exit.USAGE


def test_show_names_its_workspace_and_its_agent(api: FakeApi) -> None:
    api.on("GET /sessions", Answer(200, [session(agent_id=AGENT)]))
    api.on(f"GET /workspaces/{WORKSPACE}", Answer(200, ABOUT))
    api.on(f"GET /agents/{AGENT}", Answer(404, error={"code": "not_found", "message": "there is no agent"}))
    shown = cairn("session", "show", "work")
    assert shown.exit_code == 0 and f"shop ({WORKSPACE})" in shown.stdout and AGENT in shown.stdout, shown.output


def test_a_command_in_a_stopped_session_says_how_to_start_that(api: FakeApi) -> None:
    api.on("GET /sessions", Answer(200, [session(status="stopped")]))
    refused = cairn("session", "exec", "work", "--", "ls")
    assert (refused.exit_code, "cairn session start work" in refused.stderr) == (Exit.REFUSED, True)


def test_files_are_listed_and_copied_both_ways(api: FakeApi, tmp_path: Path) -> None:
    api.on("GET /sessions", Answer(200, [session()]))
    entry = {"name": "a", "path": "src/a", "type": "link", "size": 1, "mode": "777", "modified_at": WHEN, "target": "b"}
    api.on(f"GET /sessions/{SESSION}/files", Answer(200, {"entries": [entry], "truncated": False}))
    result = cairn("session", "files", "work", "src")
    assert result.exit_code == 0 and "a -> b" in result.stdout, result.output
    api.on(f"PUT /sessions/{SESSION}/files/src/new", Answer(200, entry))
    # The stand-in reads bodies as JSON.
    (tmp_path / "new").write_text("{}")
    result = cairn("session", "cp", str(tmp_path / "new"), "work:src/")
    assert result.exit_code == 0, result.output
    assert len(api.seen(f"PUT /sessions/{SESSION}/files/src/new")) == 1
    assert cairn("session", "cp", "a", "b").exit_code == Exit.USAGE
    for leading in ("work:../diff", "work:src/../../../preferences/x", "work:./a"):
        for both in ((leading, str(tmp_path / "out")), (str(tmp_path / "new"), leading)):
            refused = cairn("session", "cp", *both)
            assert refused.exit_code == Exit.USAGE and "'..'" in refused.output, refused.output


def test_folders_are_copied_both_ways_and_nothing_comes_to_be_elsewhere(api: FakeApi, tmp_path: Path) -> None:
    api.on("GET /sessions", Answer(200, [session()]))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("src/a"), io.BytesIO())
    api.on(f"GET /sessions/{SESSION}/archive", Answer(200, raw=packed.getvalue()))
    result = cairn("session", "cp", "-r", "work:src", str(tmp_path / "here"))
    assert result.exit_code == 0 and (tmp_path / "here" / "src" / "a").is_file(), result.output
    assert api.seen(f"GET /sessions/{SESSION}/archive")[0].query == {"path": "src"}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../evil"), io.BytesIO())
    api.scripts[f"GET /sessions/{SESSION}/archive"].clear()
    api.on(f"GET /sessions/{SESSION}/archive", Answer(200, raw=packed.getvalue()))
    assert cairn("session", "cp", "-r", "work:", str(tmp_path / "here")).exit_code == Exit.USAGE
    assert not (tmp_path / "evil").exists()


def test_a_diff_is_printed_and_a_commit_says_who_it_is_by(api: FakeApi) -> None:
    api.on("GET /sessions", Answer(200, [session()]))
    change = {"path": "b", "old_path": "a", "status": "renamed", "additions": 1, "deletions": None}
    found = {"base": "1" * 40, "files": [change], "diff": "diff --git a/a b/b\n", "truncated": True}
    api.on(f"GET /sessions/{SESSION}/diff", Answer(200, found))
    result = cairn("session", "diff", "work")
    assert result.stdout == "diff --git a/a b/b\n" and "there is more" in result.stderr
    assert "a -> b" in cairn("session", "diff", "work", "src", "--stat").stdout
    assert api.seen(f"GET /sessions/{SESSION}/diff")[1].query == {
        "path": "src",
        "stat": "true",
        "since": "commit",
        "binary": "false",
    }
    api.on(f"POST /sessions/{SESSION}/commit", accepted(session()))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow()))
    api.on(f"GET /sessions/{SESSION}", Answer(200, session(head="2" * 40)))
    result = cairn("session", "commit", "work", "-m", "Mend it", "--author", "Ada <ada@example.org>")
    assert result.exit_code == 0 and "2" * 40 in result.stdout, result.output
    assert "nothing was changed" not in result.stderr
    (sent,) = api.seen(f"POST /sessions/{SESSION}/commit")
    assert sent.body == {"message": "Mend it", "author": {"name": "Ada", "email": "ada@example.org"}}
    assert cairn("session", "commit", "work", "-m", "x", "--author", "Ada").exit_code == Exit.USAGE


def test_a_commit_of_nothing_says_so(api: FakeApi) -> None:
    there = session(head="2" * 40)
    api.on("GET /sessions", Answer(200, [there]))
    api.on(f"POST /sessions/{SESSION}/commit", accepted(there))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow()))
    api.on(f"GET /sessions/{SESSION}", Answer(200, there))
    result = cairn("session", "commit", "work", "-m", "Mend it")
    assert result.exit_code == Exit.OK and "nothing was changed: there is no new commit" in result.stderr
    assert "nothing was changed" not in cairn("session", "commit", "work", "-m", "x", "--no-wait").stderr


def test_a_patch_is_whole_or_is_none(api: FakeApi) -> None:
    api.on("GET /sessions", Answer(200, [session()]))
    coloured = "diff --git a/a b/b\n+\x1b[31mréd\x1b[0m\n"
    found = {"base": "1" * 40, "files": [], "diff": coloured, "truncated": False}
    api.on(f"GET /sessions/{SESSION}/diff", Answer(200, found), Answer(200, found | {"truncated": True}))
    assert cairn("session", "diff", "work", "--patch").stdout_bytes == coloured.encode()
    asked = api.seen(f"GET /sessions/{SESSION}/diff")[0].query
    assert asked == {"stat": "false", "since": "start", "binary": "true"}
    result = cairn("session", "diff", "work", "--patch")
    assert (result.exit_code, result.stdout) == (Exit.REFUSED, "") and "diff work PATH --patch" in result.stderr
    assert cairn("session", "diff", "work", "--patch", "--stat").exit_code == Exit.USAGE


def test_who_talks_to_an_agent_that_works_is_told_how_to_call_that_off(api: FakeApi) -> None:
    api.on("GET /sessions", Answer(200, [session()]))
    details = {"state": "running", "workflow_id": WORKFLOW}
    refused = {"code": "invalid_state", "message": "session work is running, not ready", "details": details}
    api.on(f"POST /sessions/{SESSION}/chat", Answer(409, error=refused))
    result = cairn("session", "chat", "work", "go on")
    assert result.exit_code == Exit.REFUSED and "cairn session chat work --cancel" in result.stderr


def test_who_talks_to_no_agent_is_told_how_to_get_one(api: FakeApi) -> None:
    api.on("GET /sessions", Answer(200, [session()]))
    refused = {"code": "invalid_state", "message": "session work has no agent", "details": {"state": "no_agent"}}
    api.on(f"POST /sessions/{SESSION}/chat", Answer(409, error=refused))
    result = cairn("session", "chat", "work", "go on")
    assert "cairn session create WORKSPACE --agent" in result.stderr and "--cancel" not in result.stderr


def test_a_commit_whose_end_is_not_seen_is_not_said_to_be_of_nothing(api: FakeApi) -> None:
    api.on("GET /sessions", Answer(200, [session()]))
    api.on(f"POST /sessions/{SESSION}/commit", accepted(session()))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(403, error={"code": "forbidden", "message": "no", "details": {}}))
    result = cairn("session", "commit", "work", "-m", "Mend it")
    assert (result.exit_code, "nothing was changed" in result.stderr) == (Exit.TIMED_OUT, False)


def test_what_failed_has_failed_though_its_resource_may_not_be_seen(api: FakeApi) -> None:
    api.on("GET /sessions", Answer(200, [session()]))
    api.on(f"POST /sessions/{SESSION}/stop", accepted(session()))
    error = {"code": "no_capacity", "message": "no host has room", "details": {}}
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow("failed", error=error)))
    api.on(f"GET /sessions/{SESSION}", Answer(403, error={"code": "forbidden", "message": "no", "details": {}}))
    result = cairn("session", "stop", "work")
    assert (result.exit_code, "no host has room" in result.stderr) == (Exit.FAILED, True), result.output


def test_what_is_accepted_and_may_not_be_followed_is_accepted(api: FakeApi) -> None:
    api.on("GET /sessions", Answer(200, [session()]))
    api.on(f"POST /sessions/{SESSION}/stop", accepted(session()))
    forbidden = {"code": "forbidden", "message": "this needs the permission 'workflows:read'", "details": {}}
    api.on(f"GET /workflows/{WORKFLOW}", Answer(403, error=forbidden))
    api.on(f"GET /workspaces/{WORKSPACE}", Answer(200, ABOUT))
    result = cairn("session", "stop", "work")
    assert (result.exit_code, f"accepted; the end of workflow {WORKFLOW}" in result.stderr) == (Exit.TIMED_OUT, True)
    assert f"shop ({WORKSPACE})" in result.stdout, "as show has it"


@pytest.mark.parametrize(
    ("words", "method", "path", "hint"),
    [
        (["create", "shop"], "POST", f"/workspaces/{WORKSPACE}/sessions", "cairn session create --help"),
        (["commit", "work", "-m", ""], "POST", f"/sessions/{SESSION}/commit", "the command with --help"),
        (["cp", "work:a", "-"], "GET", f"/sessions/{SESSION}/files/a", "the command with --help"),
    ],
)
def test_hints_are_about_the_command_that_was_refused(
    api: FakeApi, words: list[str], method: str, path: str, hint: str
) -> None:
    api.on("GET /sessions", Answer(200, [session()]))
    api.on("GET /workspaces", Answer(200, [ABOUT]))
    refused = {"code": "validation_failed", "message": "no", "details": {"fields": []}}
    api.on(f"{method} {path}", Answer(422, error=refused))
    assert hint in cairn("session", *words).stderr


def test_forwarding_ends_with_its_session(api: FakeApi) -> None:
    api.on(f"GET /sessions/{SESSION}", Answer(200, session()), Answer(200, session(status="removed")))
    with Client() as client, forwarding.listen("127.0.0.1", 0) as listener:
        here = listener.getsockname()
        carried = threading.Thread(target=_connect_until_refused, args=(here,), daemon=True)
        carried.start()
        with pytest.raises(CommandFailed, match="no such session any more") as ended:
            forwarding.forward(client, f"/sessions/{SESSION}", {listener: 80})
    assert ended.value.exit is Exit.NOT_FOUND


def _connect_until_refused(address: tuple[str, int]) -> None:
    """The stand-in has no such route: what it says to that is no end while the session is there."""
    with contextlib.suppress(OSError):
        while True:
            with socket.create_connection(address, 5) as made:
                made.recv(1)
