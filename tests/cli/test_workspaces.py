"""``cairn workspace`` and ``cairn credential``: what they send, and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli.errors import Exit
from tests.cli.fake import WHEN, WORKFLOW, Answer, FakeApi, accepted, cairn, workflow

WORKSPACE, CREDENTIAL = "0199b3f0-0000-7000-8000-0000000000a1", "0199b3f0-0000-7000-8000-0000000000a3"
URL = "https://git.example.org/shop.git"


def workspace(**over: Any) -> dict[str, Any]:
    source = {"git_url": URL, "path": None, "ref": "main"}
    whole = {"ref": "main", "commit": "1" * 40, "size_bytes": 2048, "host": "rack-1", "error": None, "progress": None}
    named = {"id": WORKSPACE, "name": "shop", "status": "ready", "source": source, "created_at": WHEN}
    return named | whole | over


def credential(**over: Any) -> dict[str, Any]:
    about = {"type": "https", "host": "git.example.org", "username": "robot", "rotated_at": WHEN}
    return {"id": CREDENTIAL, "name": "gitlab", **about, **over}


def test_workspace_is_made_of_a_url_or_a_folder_and_says_how_far_it_is(api: FakeApi) -> None:
    fetched = workspace(status="initializing", commit=None, size_bytes=None, progress="receiving objects 45%")
    api.on("GET /credentials", Answer(200, [credential()]))
    api.on("POST /workspaces", accepted(workspace(status="initializing", commit=None)))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow()))
    api.on(f"GET /workspaces/{WORKSPACE}", Answer(200, workspace()), Answer(200, fetched))
    result = cairn("workspace", "create", "shop", URL, "--ref", "main", "--depth", "1", "--credential", "gitlab")
    assert result.exit_code == 0, result.output
    (sent,) = api.seen("POST /workspaces")
    assert sent.body == {
        "name": "shop",
        "source": {"git_url": URL, "ref": "main", "depth": 1, "credential_id": CREDENTIAL},
    }
    for words in ([], [URL, "--path", "/srv"]):
        assert cairn("workspace", "create", "shop", *words).exit_code == Exit.USAGE
    api.on("GET /workspaces", Answer(200, [fetched]), Answer(200, [fetched]), Answer(200, [workspace()]))
    assert "receiving objects 45%" in cairn("workspace", "show", "shop").stdout
    assert "initializing" in cairn("workspace", "list").stdout
    refusal = {"code": "in_use", "message": "workspace shop has sessions", "details": {}}
    api.on(f"DELETE /workspaces/{WORKSPACE}", Answer(409, error=refusal))
    refused = cairn("workspace", "rm", "shop")
    assert refused.exit_code != 0 and "cairn session rm NAME" in refused.stderr


def test_value_of_a_credential_comes_from_a_file_and_is_not_shown(api: FakeApi, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cr3t\n")
    api.on("POST /credentials", Answer(201, credential()))
    api.on("GET /credentials", Answer(200, [credential()]), Answer(200, [credential(type="ssh")]))
    api.on(f"PUT /credentials/{CREDENTIAL}", Answer(200, credential()), Answer(200, credential()))
    made = cairn("credential", "create", "gitlab", "--host", "git.example.org", "--from-file", str(token))
    assert made.exit_code == 0 and "s3cr3t" not in made.output, made.output
    (sent,) = api.seen("POST /credentials")
    assert sent.body == {"name": "gitlab", "type": "https", "host": "git.example.org", "token": "s3cr3t"}
    for kind in ("token", "private_key"):
        assert cairn("credential", "rotate", "gitlab", "--from-file", str(token)).exit_code == 0
        assert set(api.seen(f"PUT /credentials/{CREDENTIAL}")[-1].body) == {kind}
    assert cairn("credential", "rotate", "gitlab", "--from-file", str(tmp_path / "none")).exit_code == Exit.USAGE
