"""Work sessions on a real stack: their files stay whatever stops, and nothing of them is left when they are gone."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests import invariants
from tests.stack import Json, Stack, wait_for

pytestmark = pytest.mark.engine
TOTAL = "cd /workspace && find . -type f | sort | xargs sha256sum | sha256sum"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a workspace is copied from."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "src").mkdir()
    (folder / "README").write_text("base\n")
    (folder / "src" / "data.bin").write_bytes(os.urandom(300_000))
    return folder


@pytest.fixture(scope="module")
def stack(source: Path) -> Iterator[Stack]:
    made = Stack(simulated_hosts=0, CAIRN_WORKSPACE_PATHS=str(source)).start().ready()
    yield made
    made.remove()


def run(stack: Stack, session: Json, command: str) -> str:
    """What a command in its sandbox writes."""
    body = {"cmd": ["/bin/sh", "-c", command], "timeout": 30}
    answer = stack.request("POST", f"/instances/{session['instance_id']}/exec", json=body)
    assert answer.status_code == httpx.codes.OK, answer.text
    result = answer.json()["data"]
    assert result["exit_code"] == 0, result
    return str(result["stdout"])


def created(stack: Stack, workspace: str, **body: Any) -> Json:
    accepted = stack.accept("POST", f"/workspaces/{workspace}/sessions", {"network": {"mode": "none"}} | body)
    stack.completed(accepted)
    found: Json = stack.get(f"/sessions/{accepted['data']['id']}")
    assert found["status"] == "running", found
    return found


def test_a_session_keeps_its_files_through_stop_start_and_kills_and_leaves_nothing(stack: Stack, source: Path) -> None:
    made = stack.accept("POST", "/workspaces", {"name": "shop", "source": {"path": str(source)}})
    stack.completed(made)
    workspace = made["data"]["id"]
    session, other = created(stack, workspace, name="work"), created(stack, workspace, name="other")
    path = f"/sessions/{session['id']}"
    assert run(stack, session, "cat README; pwd") == "base\n/workspace\n"

    # Both sides see what the other writes.
    written = os.urandom(2_000_000)
    assert stack.request("PUT", f"{path}/files/new/data", content=written).status_code == httpx.codes.OK
    assert run(stack, session, "sha256sum new/data").split()[0] == hashlib.sha256(written).hexdigest()
    run(stack, session, "echo inside > src/inside; rm README; mv src lib; ln -s /etc out; ln -s ../.. up")
    assert stack.request("GET", f"{path}/files/lib/inside").text == "inside\n"
    part = stack.request("GET", f"{path}/files/new/data", headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (httpx.codes.PARTIAL_CONTENT, written[5:10])
    whole = stack.request("GET", f"{path}/files/lib/inside", headers={"Range": "bytes=5-3"})
    assert (whole.status_code, whole.text) == (httpx.codes.OK, "inside\n"), "that is no range"
    behind = stack.request("GET", f"{path}/files/lib/inside", headers={"Range": "bytes=7-"})
    assert behind.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE
    huge = stack.request("GET", f"{path}/files/lib/inside", headers={"Range": f"bytes={'9' * 5000}-"})
    assert huge.status_code == httpx.codes.OK
    names = [entry["name"] for entry in stack.get(f"{path}/files")["entries"]]
    assert names == ["lib", "new", "out", "up"]
    for hostile in ("out/passwd", "up/data", "%2e%2e/tree.json", "/etc/passwd", "lib/%2e%2e/%2e%2e/tree.json"):
        answer = stack.request("GET", f"{path}/files/{hostile}")
        assert answer.status_code in (404, 422), f"{hostile}: {answer.status_code} {answer.text}"
    for link in ("out", "up"):
        assert stack.request("DELETE", f"{path}/files/{link}").status_code == httpx.codes.NO_CONTENT
    assert stack.request("POST", f"{path}/files/move", json={"from": "new/data", "to": "kept"}).is_success

    invariants.settle(stack, 10)
    # Stopped, its files are there; started, and after the agent was killed, all of them are the same.
    before = run(stack, session, TOTAL)
    stack.completed(stack.accept("POST", f"{path}/stop"))
    assert stack.get(path)["status"] == "stopped"
    archive = stack.request("GET", f"{path}/archive").content
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        content = tar.extractfile("./kept")
        assert content is not None and content.read() == written
    stack.kill("host_agent")
    stack.completed(stack.accept("POST", f"{path}/start"))
    assert run(stack, session, TOTAL) == before
    assert run(stack, other, "cat README") == "base\n"

    # What is unpacked is there; what runs out of time goes by itself.
    assert stack.request("PUT", f"/sessions/{other['id']}/archive?path=in", content=archive).is_success
    assert run(stack, other, "sha256sum in/kept").split()[0] == hashlib.sha256(written).hexdigest()
    assert stack.request("DELETE", f"/workspaces/{workspace}").status_code == httpx.codes.CONFLICT
    brief = stack.accept("POST", f"/workspaces/{workspace}/sessions", {"name": "brief", "ttl_seconds": 1})
    for gone in (session, other):
        stack.completed(stack.accept("DELETE", f"/sessions/{gone['id']}"))
    wait_for("it has gone", lambda: stack.get(f"/sessions/{brief['data']['id']}")["status"] == "removed", 60)
    invariants.settle(stack, 10)
    assert stack.containers() == []
    stack.completed(stack.accept("DELETE", f"/workspaces/{workspace}"))
    assert not [*stack.agents_dir.glob("trees/*/*/")]


def test_what_a_session_commits_is_what_new_ones_begin_with(stack: Stack, source: Path) -> None:
    made = stack.accept("POST", "/workspaces", {"name": "commits", "source": {"path": str(source)}})
    stack.completed(made)
    workspace = made["data"]["id"]
    session, other = created(stack, workspace, name="ours"), created(stack, workspace, name="theirs")
    path, first = f"/sessions/{session['id']}", session["commit"]
    for one in (session, other):
        run(stack, one, "echo changed > README; mkdir new; echo new > new/file; chmod 600 new/file; rm src/data.bin")
    found = stack.get(f"{path}/diff")
    about = {change["path"]: change["status"] for change in found["files"]}
    assert about == {"README": "modified", "new/file": "added", "src/data.bin": "deleted"}
    assert "-base\n+changed\n" in found["diff"] and not found["truncated"] and found["base"] == first
    part = stack.request("GET", f"{path}/diff?path=new&stat=true").json()["data"]
    assert ([change["path"] for change in part["files"]], part["diff"]) == (["new/file"], None)

    # The agent dies with the commit made and nobody told: it is made once.
    point = "commit.write.after_effect"
    before = len(stack.hits(point))
    stack.fault(point, "kill")
    author = {"name": "Ada", "email": "ada@example.org"}
    accepted = stack.accept("POST", f"{path}/commit", {"message": "Mend it", "author": author})
    stack.wait_for_hit(point, before)
    stack.completed(accepted)
    second = stack.get(f"/workspaces/{workspace}")["commit"]
    assert second != first and stack.get(path)["head"] == second
    (repository,) = stack.data.glob(f"**/trees/workspaces/{workspace}/repo.git")
    log = subprocess.run(
        ["git", "-c", "safe.directory=*", "log", "--format=%H %an %s", "workspace"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert log[0] == f"{second} Ada Mend it" and len(log) == 2 and log[1].startswith(first)
    assert stack.get(f"{path}/diff")["files"] == []
    whole = stack.request("GET", f"{path}/diff?since=start&binary=true").json()["data"]
    assert whole["base"] == first and {change["path"] for change in whole["files"]} == set(about)
    assert "GIT binary patch" in whole["diff"], "of src/data.bin, which is gone"
    assert run(stack, session, "cat README") == "changed\n", "it goes on"

    late = stack.request("POST", f"/sessions/{other['id']}/commit", json={"message": "Mend it too"})
    assert late.status_code == httpx.codes.CONFLICT and first in late.text and second in late.text
    new = created(stack, workspace, name="new")
    assert new["commit"] == second
    assert run(stack, new, "cat README new/file; ls") == "changed\nnew\nREADME\nnew\n", "no folder is empty"
    known = stack.endpoint()
    address = known["api_url"].replace("http", "ws", 1) + f"/sessions/{new['id']}/terminal?command=pwd"
    with connect(address, additional_headers={"X-API-Key": known["api_key"]}, proxy=None) as terminal:
        shown = b"".join(part for part in terminal if isinstance(part, bytes))
    assert shown.strip() == b"/workspace"
    _reach_a_port(stack, new)
    for gone in (session, other, new):
        stack.completed(stack.accept("DELETE", f"/sessions/{gone['id']}?force=true"))
    stack.completed(stack.accept("DELETE", f"/workspaces/{workspace}"))
    invariants.settle(stack, 10)
    assert not list(stack.data.glob(f"**/trees/workspaces/{workspace}"))


def _reach_a_port(stack: Stack, session: Json) -> None:
    """From here, though the sandbox has no network."""
    run(stack, session, "httpd -p 127.0.0.1:8080 -h /workspace && head -c 3000000 /dev/urandom > random")
    digest = run(stack, session, "sha256sum random").split()[0]
    command = [str(Path(sys.executable).with_name("cairn")), "session", "port-forward", session["name"], "0:8080"]
    forwarding = subprocess.Popen(
        command,
        env=stack.environ,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background with SIGINT ignored, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - one system call
    )
    with forwarding:
        try:
            assert forwarding.stderr is not None
            said = forwarding.stderr.readline()
            port = re.search(r"127\.0\.0\.1:(\d+) is port 8080 of session new", said)
            assert port is not None, said
            with httpx.Client(base_url=f"http://127.0.0.1:{port[1]}", trust_env=False, timeout=20) as there:
                for _ in range(3):
                    assert there.get("/README").text == "changed\n"
                assert hashlib.sha256(there.get("/random").content).hexdigest() == digest
            forwarding.send_signal(signal.SIGINT)
            assert forwarding.wait(10) == 130
        finally:
            forwarding.kill()


def test_a_session_that_is_called_off_leaves_nothing(stack: Stack, source: Path) -> None:
    made = stack.accept("POST", "/workspaces", {"name": "off", "source": {"path": str(source)}})
    stack.completed(made)
    seen: list[str] = []
    accepted: Json = {}
    for point in ("session.prepare.before", "image.ensure.before", "instance.create.after_effect"):
        before = len(stack.hits(point))
        stack.fault(point, "pause")
        accepted = accepted or stack.accept("POST", f"/workspaces/{made['data']['id']}/sessions", {})
        stack.wait_for_hit(point, before)
        seen.append(stack.get(f"/sessions/{accepted['data']['id']}")["status"])
    assert seen == ["cloning", "pulling_image", "creating_sandbox"]
    stack.cancelled(accepted, 30)
    stack.plant()
    time.sleep(0.1)
    assert stack.get(f"/sessions/{accepted['data']['id']}")["status"] == "error"
    invariants.settle(stack, 10)
    assert stack.containers() == []
    stack.completed(stack.accept("DELETE", f"/sessions/{accepted['data']['id']}"))


def test_sessions_share_a_cache_that_outlives_them_until_it_is_emptied_and_deleted(stack: Stack, source: Path) -> None:
    workspace = stack.accept("POST", "/workspaces", {"name": "cached", "source": {"path": str(source)}})
    stack.completed(workspace)
    id, place = workspace["data"]["id"], "/root/.cache/pip"
    cache = f"/cache-volumes/{stack.accept('POST', '/cache-volumes', {'name': 'pip', 'path': place})['data']['id']}"
    one = created(stack, id, caches=["pip"])
    assert (one["caches"], one["start_reason"], len(stack.get(cache)["hosts"])) == (["pip"], "it has cache volumes", 1)
    run(stack, one, f"mkdir {place}/http && echo wheel > {place}/http/wheel")
    stack.completed(stack.accept("DELETE", f"/sessions/{one['id']}"))
    two = created(stack, id, caches=["pip"])
    assert run(stack, two, f"cat {place}/http/wheel") == "wheel\n"
    # Whatever becomes of its agent, and of the container.
    stack.kill("host_agent")
    for verb in ("stop", "start"):
        stack.completed(stack.accept("POST", f"/sessions/{two['id']}/{verb}"))
    assert run(stack, two, f"cat {place}/http/wheel") == "wheel\n"
    point = "cache_volume.clear.after_effect"
    before = len(stack.hits(point))
    stack.fault(point, "kill")
    cleared = stack.accept("POST", f"{cache}/clear")
    stack.wait_for_hit(point, before)
    stack.completed(cleared)
    assert run(stack, two, f"ls -A {place}; echo new > {place}/new; cat {place}/new") == "new\n"
    refused = stack.request("DELETE", cache)
    assert refused.status_code == httpx.codes.CONFLICT and two["name"] in refused.text
    stack.completed(stack.accept("DELETE", f"/sessions/{two['id']}"))
    stack.completed(stack.accept("DELETE", cache))
    stack.completed(stack.accept("DELETE", f"/workspaces/{id}"))
    invariants.settle(stack, 10)
    assert not list(stack.data.glob("**/trees/caches/*"))
