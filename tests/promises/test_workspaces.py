"""Workspaces on a real stack: from a server of the test's own to a host's disk, with and without a credential."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import docker
import httpx
import pytest

from tests.folders import contents
from tests.git_server import ALLOW, HOST, GitServer, git_server
from tests.stack import Json, Stack, wait_for
from worker import engine, git_image

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def server() -> Iterator[GitServer]:
    git_image.image.ensure(engine.SOCKET, lambda _: None)
    with git_server() as made:
        yield made


@pytest.fixture(scope="module")
def stack(server: GitServer) -> Iterator[Stack]:
    more = {
        "CAIRN_OUTBOUND_ALLOW": ALLOW,
        "CAIRN_GIT_CA_FILE": str(server.certificate),
        "CAIRN_GIT_IMAGE": git_image.IMAGE,
        "CAIRN_RECONCILE_INTERVAL": "1",
    }
    made = Stack(**more)
    try:
        yield made.start().ready()
    finally:
        made.remove()


def create(stack: Stack, url: str, **more: str) -> Json:
    host = next(host["name"] for host in stack.list("/hosts") if host["backend"] == "docker")
    body = {"name": f"w-{uuid.uuid4().hex[:8]}", "source": {"git_url": url, **more}, "host": host}
    return stack.accept("POST", "/workspaces", body)


def files(stack: Stack, id: str) -> list[Path]:
    return list(stack.data.glob(f"**/trees/workspaces/{id}"))


def test_clone_sync_cancel_and_delete(stack: Stack, server: GitServer) -> None:
    first = server.repository("shop", {"README.md": b"# Shop\n", "big": os.urandom(4 << 20)})
    accepted = create(stack, server.url("shop"), ref="main")
    stack.completed(accepted)
    workspace = stack.get(f"/workspaces/{accepted['data']['id']}")
    assert (workspace["status"], workspace["commit"], workspace["ref"]) == ("ready", first, "main")
    (folder,) = files(stack, workspace["id"])
    assert (folder / "bases" / first / "README.md").read_bytes() == b"# Shop\n"
    second = server.commit("shop", {"more": b"1"})
    server.push("shop", "main")
    stack.completed(stack.accept("POST", f"/workspaces/{workspace['id']}/sync"))
    assert stack.get(f"/workspaces/{workspace['id']}")["commit"] == second
    # One that is slow shows how far it is, and is called off.
    server.repository("slow", {"big": os.urandom(8 << 20)})
    server.pace = 200_000
    slow = create(stack, server.url("slow"))
    path = f"/workspaces/{slow['data']['id']}"
    wait_for("it says how far it is", lambda: "receiving" in (stack.get(path)["progress"] or ""), 40)
    assert stack.cancel(slow).status_code == httpx.codes.ACCEPTED
    assert stack.ended(slow, 20)["state"] == "cancelled"
    server.pace = None
    assert stack.get(path)["status"] == "error"
    assert not files(stack, slow["data"]["id"])
    client = docker.APIClient(engine.SOCKET)
    assert not client.containers(all=True, filters={"label": f"io.cairn.id={slow['data']['id']}"})
    client.close()
    # What no row names is removed.
    stray = folder.parent / str(uuid.uuid4())
    stray.mkdir()
    (stray / "project").write_text(workspace["project_id"])
    cache = folder.parents[1] / "caches" / workspace["project_id"] / str(uuid.uuid4())
    (cache / "http").mkdir(parents=True)
    wait_for("what no row names is gone", lambda: not stray.exists() and not cache.exists(), 30)
    stack.completed(stack.accept("DELETE", f"/workspaces/{workspace['id']}"))
    assert not folder.exists()


def test_credential_works_is_told_to_nobody_and_a_wrong_one_says_so(stack: Stack, server: GitServer) -> None:
    server.repository("kept", {"a": b"1"}, kind="private")
    body = {"name": "robot", "type": "https", "host": HOST, "username": server.login[0], "token": server.login[1]}
    answer = stack.request("POST", "/credentials", json=body)
    assert answer.status_code == httpx.codes.CREATED, answer.text
    credential = answer.json()["data"]
    accepted = create(stack, server.url("kept", "private"), credential_id=credential["id"])
    stack.completed(accepted)
    wrong = "wr0ng-planted-b33f"
    stack.request("PUT", f"/credentials/{credential['id']}", json={"token": wrong}).raise_for_status()
    failed = create(stack, server.url("kept", "private"), credential_id=credential["id"])
    row = stack.ended(failed)
    assert row["state"] == "failed"
    assert row["error"]["code"] == "fetch_failed"
    assert "Authentication failed" in row["error"]["message"]
    assert stack.get(f"/workspaces/{failed['data']['id']}")["status"] == "error"
    # In no row, no log, no history (Temporal's too is below the data folder), no file.
    secrets = [server.login[1].encode(), wrong.encode()]
    found = [path for path, held in contents(stack.folder) if any(secret in held for secret in secrets)]
    assert not found, found
    for one in (accepted, failed):
        stack.completed(stack.accept("DELETE", f"/workspaces/{one['data']['id']}"))
