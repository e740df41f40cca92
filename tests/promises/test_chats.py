"""Agents on a real stack: a prompt is worked on once and its answer is whole, whatever is killed meanwhile."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.stack import Json, Stack, wait_for
from worker import agent_image, engine

pytestmark = pytest.mark.engine
WORDS = [f"word{number} " for number in range(40)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    agent_image.image.ensure(engine.SOCKET, lambda _: None)
    source = tmp_path_factory.mktemp("source")
    (source / "README").write_text("base\n")
    made = Stack(simulated_hosts=0, CAIRN_WORKSPACE_PATHS=str(source)).start().ready()
    accepted = made.accept("POST", "/workspaces", {"name": "shop", "source": {"path": str(source)}})
    made.completed(accepted)
    yield made
    made.remove()


def session(stack: Stack, delay: float) -> Json:
    body = {"name": f"slow-{delay}".replace(".", "-"), "env": {"CAIRN_AGENT_DELAY": str(delay)}}
    assert stack.request("POST", "/agents", json=body | {"is_default": True}).status_code == httpx.codes.CREATED
    workspace = stack.get("/workspaces")[0]["id"]
    wanted = {"agent_id": "default", "network": {"mode": "none"}}
    accepted = stack.accept("POST", f"/workspaces/{workspace}/sessions", wanted)
    stack.completed(accepted)
    found: Json = stack.get(f"/sessions/{accepted['data']['id']}")
    assert found["status"] == "ready", found
    return found


@contextmanager
def live(stack: Stack, method: str, path: str, **more: Any) -> Iterator[httpx.Response]:
    known = stack.endpoint()
    headers = {"X-API-Key": known["api_key"]} | more.pop("headers", {})
    url = known["api_url"] + path
    with httpx.stream(method, url, headers=headers, timeout=30, trust_env=False, **more) as stream:
        assert stream.status_code == httpx.codes.OK
        yield stream


class Told:
    """The events of a session, by id, however often the stream breaks off: as a client keeps them."""

    def __init__(self, stack: Stack, made: Json) -> None:
        self.events: list[tuple[str, str, Any]] = []
        self._stack, self._path = stack, f"/sessions/{made['id']}/stream"
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        last = "0.0"
        while not self.ended:
            try:
                with live(self._stack, "GET", self._path, headers={"Last-Event-ID": last}) as stream:
                    fields: dict[str, str] = {}
                    for line in stream.iter_lines():
                        name, _, value = line.partition(": ")
                        if line:
                            fields[name] = value
                            continue
                        if "data" in fields:
                            last = fields["id"]
                            self.events.append((last, fields["event"], json.loads(fields["data"])))
                            if self.ended:
                                return
                        fields = {}
            except (httpx.HTTPError, OSError, KeyError, AssertionError):
                time.sleep(0.1)

    @property
    def ended(self) -> bool:
        return any(kind == "end" for _, kind, _ in self.events)

    def count(self, kind: str) -> int:
        return sum(one == kind for _, one, _ in self.events)

    def whole(self) -> list[tuple[str, str, Any]]:
        self._thread.join(60)
        assert self.ended, self.events
        assert len({id for id, _, _ in self.events}) == len(self.events), "told twice"
        return self.events


def ask(stack: Stack, made: Json, prompt: str) -> Json:
    answer = stack.request(
        "POST", f"/sessions/{made['id']}/chat", json={"prompt": prompt}, headers={"Accept": "application/json"}
    )
    assert answer.status_code == httpx.codes.ACCEPTED, answer.text
    found: Json = answer.json()
    return found


def test_an_answer_is_whole_and_worked_on_once_whatever_is_killed(stack: Stack) -> None:
    made = session(stack, 0.1)
    told = Told(stack, made)
    asked = ask(stack, made, "$ echo once >> made; cat README\n" + "".join(WORDS))
    wait_for("it has begun", lambda: told.count("text") > 3)
    for process in ("api", "host_agent"):
        before = told.count("text")
        stack.kill(process)
        wait_for(f"it goes on after {process}", lambda seen=before: told.count("text") > seen or told.ended)
    events = told.whole()
    assert [data["text"].strip() for _, kind, data in events if kind == "text"] == [word.strip() for word in WORDS]
    kinds = [kind for _, kind, _ in events if kind != "text"]
    assert kinds == ["prompt", "tool", "tool_output", "tool_result", "end"]
    assert events[-1][2] == {"status": "completed", "error": None}
    # An agent that was killed a moment ago may not be back.
    assert stack.answered("GET", f"/sessions/{made['id']}/files/made").text == "once\n"
    stack.completed(asked)
    assert stack.get(f"/sessions/{made['id']}")["status"] == "ready"
    said = stack.get(f"/sessions/{made['id']}/messages")
    assert [(row["role"], row["status"]) for row in said] == [("agent", "completed"), ("user", "completed")]

    # Called off, its command ends too; what was said stays, and the next prompt is heard.
    def beats() -> int:
        return len(stack.request("GET", f"/sessions/{made['id']}/files/beats").content)

    asked = ask(stack, made, "$ while :; do printf . >> beats; sleep 0.1; done")
    wait_for("its command runs", lambda: stack.request("GET", f"/sessions/{made['id']}/files/beats").is_success)
    assert stack.request("POST", f"/sessions/{made['id']}/chat/cancel").status_code == httpx.codes.ACCEPTED
    assert stack.ended(asked)["state"] == "cancelled"
    before = beats()
    time.sleep(1)
    assert beats() == before
    assert stack.get(f"/sessions/{made['id']}/messages")[0]["status"] == "cancelled"
    with live(stack, "POST", f"/sessions/{made['id']}/chat", json={"prompt": "again"}) as stream:
        assert "completed" in stream.read().decode()
    stack.completed(stack.accept("DELETE", f"/sessions/{made['id']}"))
    assert stack.containers() == []


def test_what_does_not_keep_to_the_contract_fails_and_says_why(stack: Stack) -> None:
    script = (
        "while :; do printf 'HTTP/1.0 200 OK\\r\\n\\r\\nid: 1\\nevent: text\\ndata: no\\n\\n' | nc -l -p 9000; done"
    )
    body = {"name": "odd", "type": "custom", "cmd": ["/bin/sh", "-c", script], "port": 9000, "image": agent_image.IMAGE}
    odd = stack.request("POST", "/agents", json=body).json()["data"]
    workspace = stack.get("/workspaces")[0]["id"]
    accepted = stack.accept("POST", f"/workspaces/{workspace}/sessions", {"agent_id": odd["id"]})
    stack.completed(accepted)
    failed = stack.ended(ask(stack, accepted["data"], "hello"))
    assert (failed["state"], failed["error"]["code"]) == ("failed", "agent_failed"), failed
    assert "JSON object" in failed["error"]["message"]
    stack.completed(stack.accept("DELETE", f"/sessions/{accepted['data']['id']}"))
