"""A second agent joins, with the same engine: it takes launches, may be killed, rotated and removed."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.machine import CAIRN, Machine, beside, token
from tests.stack import Stack, wait_for


@pytest.fixture
def machine(stack: Stack, tmp_path: Path) -> Iterator[Machine]:
    with beside(stack, tmp_path) as made:
        yield made


def test_joined_host_takes_launches_survives_kill_and_its_removal_voids_its_credential(
    stack: Stack, machine: Machine
) -> None:
    first, second = (token(stack, labels={"rack": n}) for n in ("1", "2"))
    machine.start("joined-1", first)
    machine.start("joined-2", second)
    host, beside = machine.host("joined-1"), machine.host("joined-2")
    assert (host["labels"], beside["labels"]) == ({"rack": "1"}, {"rack": "2"})

    named = stack.running(backend="docker", host="joined-1")
    labelled = stack.running(backend="docker", host_labels={"rack": "2"})
    assert (named["host"], labelled["host"]) == ("joined-1", "joined-2")

    twice = subprocess.run(
        [CAIRN, "host", "join", "--name", "joined-2"],
        env=machine.environ(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert twice.returncode == 4
    assert "runs already" in twice.stderr

    machine.end("joined-1", signal.SIGKILL)
    launched = stack.launch(backend="docker", host="joined-1")
    machine.start("joined-1", first)
    stack.completed(launched)
    assert machine.host("joined-1")["id"] == host["id"]
    assert len(stack.containers()) == 3

    refused = stack.request("DELETE", f"/hosts/{host['id']}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")
    for one in (named, launched):
        stack.completed(stack.act("delete", one))
    credential = machine.credential("joined-1")
    assert machine.renewed(host, credential) == 200
    assert stack.request("DELETE", f"/hosts/{host['id']}").status_code == 204
    assert machine.renewed(host, credential) == 401
    wait_for("the agent says so", lambda: "lease.refused" in machine.log("joined-1"), 15)
    assert stack.instance(labelled)["status"] == "running"


def test_a_credential_renews_its_own_host_only(stack: Stack, machine: Machine) -> None:
    machine.start("joined-1", token(stack))
    host = machine.host("joined-1")
    other = next(host for host in stack.list("/hosts") if host["name"] != "joined-1")
    machine.end("joined-1")
    body = {"hosts": [{"id": other["id"]}, {"id": host["id"]}]}
    answer = httpx.post(
        f"{stack.endpoint()['api_url']}/hosts/lease",
        json=body,
        headers={"Authorization": f"Bearer {machine.credential('joined-1')}"},
        trust_env=False,
    )
    assert [renewed["id"] for renewed in answer.json()["data"]["hosts"]] == [host["id"]]


def test_rotation_changes_key_and_credential_of_the_same_host(stack: Stack, machine: Machine) -> None:
    machine.start("joined-1", token(stack))
    host = machine.host("joined-1")
    before = machine.credential("joined-1")

    unnamed = machine.register("joined-1", "--rotate", token=token(stack))
    assert unnamed.returncode == 4
    assert "name_taken" in unnamed.stderr
    assert machine.credential("joined-1") == before
    assert machine.renewed(host, before) == 200

    again = token(stack, name="joined-1")
    rotated = machine.register("joined-1", "--rotate", token=again)
    assert rotated.returncode == 0, rotated.stderr
    after = machine.credential("joined-1")
    assert (machine.renewed(host, before), machine.renewed(host, after)) == (401, 200)
    machine.end("joined-1")
    machine.start("joined-1", again)
    assert machine.host("joined-1")["id"] == host["id"]
    assert stack.running(backend="docker", host="joined-1")["host"] == "joined-1"


def test_a_crash_before_the_answer_is_kept_is_made_good_by_the_same_command(stack: Stack, machine: Machine) -> None:
    """The platform knows what the machine does not: as after a kill between the answer and its writing down."""
    path = machine.folder / "agents" / "joined-1.json"
    first = token(stack)
    assert machine.register("joined-1", token=first).returncode == 0
    joined = json.loads(path.read_bytes())
    asked = {"keys": joined["keys"], "next_credential": joined["membership"]["credential"]}
    path.write_text(json.dumps(asked))
    assert machine.register("joined-1", token=first).returncode == 0
    again = json.loads(path.read_bytes())
    assert again["keys"] == joined["keys"]
    assert again["membership"]["hosts"] == joined["membership"]["hosts"]

    second = token(stack, name="joined-1")
    assert machine.register("joined-1", "--rotate", token=second).returncode == 0
    rotated = json.loads(path.read_bytes())
    path.write_text(
        json.dumps(again | {"next_keys": rotated["keys"], "next_credential": rotated["membership"]["credential"]})
    )
    assert machine.register("joined-1", token=second).returncode == 0
    assert json.loads(path.read_bytes())["keys"] == rotated["keys"]
    machine.start("joined-1", second)
    assert machine.host("joined-1")["id"] == joined["membership"]["hosts"][0]["id"]


def test_a_wrong_token_and_a_taken_name_say_what_to_do(stack: Stack, machine: Machine) -> None:
    wrong = machine.register("joined-1", token="cairn_join_wrong")
    assert wrong.returncode == 4
    assert "cairn host token" in wrong.stderr
    assert machine.register("joined-1", token=token(stack)).returncode == 0
    (machine.folder / "agents" / "joined-1.json").unlink()
    taken = machine.register("joined-1", token=token(stack))
    assert taken.returncode == 4
    assert "cairn host token --name joined-1" in taken.stderr
    assert machine.register("joined-1", token=token(stack, name="joined-1")).returncode == 0
