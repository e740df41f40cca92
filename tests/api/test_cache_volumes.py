"""Cache volumes as rows: made, emptied, deleted, refused; named by sessions; what agents are told to remove."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from model.base import new_id
from tests.api.conftest import Api
from tests.api.test_work_sessions import create, put, workspace

Json = dict[str, Any]
ABLE = "UPDATE hosts SET capabilities = '[\"caches\"]'"


async def cache(api: Api, name: str = "pip", path: str = "/root/.cache/pip") -> Json:
    answer = await api.http.post("/v1/cache-volumes", json={"name": name, "path": path})
    assert answer.status_code == 201, answer.text
    made: Json = answer.json()["data"]
    return made


def end(api: Api, made: Json, status: str) -> None:
    """What workers would have done: the volume in a state, all runs ended."""
    deleted = ", deleted_at = now()" if status == "deleted" else ""
    api.db.rows(f"UPDATE cache_volumes SET status = %s{deleted} WHERE id = %s", status, made["id"])
    api.db.rows("UPDATE workflows SET state = 'completed', finished_at = now() WHERE finished_at IS NULL")


async def test_it_is_a_row_alone(api: Api) -> None:
    made = await cache(api)
    assert (made["status"], made["hosts"], made["workflow_id"], made["version"]) == ("ready", [], None, 1)
    shown = await api.http.get(f"/v1/cache-volumes/{made['id']}")
    assert shown.json()["data"] == made and shown.headers["ETag"] == '"1"'
    taken = await api.http.post("/v1/cache-volumes", json={"name": "pip", "path": "/root/.npm"})
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "name_taken")
    assert [one["id"] for one in (await api.http.get("/v1/cache-volumes?name=pip")).json()["data"]] == [made["id"]]
    assert [row["type"] for row in api.db.rows("SELECT type FROM events")] == ["cache_volume.ready"]
    assert api.db.one("SELECT resource_type FROM audit WHERE resource_id = %s", made["id"])
    assert not api.db.rows("SELECT 1 FROM workflows")


async def test_same_key_at_once_is_one(api: Api) -> None:
    body, headers = {"name": "pip", "path": "/root/.cache/pip"}, {"Idempotency-Key": "one"}
    answers = await asyncio.gather(*(api.http.post("/v1/cache-volumes", json=body, headers=headers) for _ in range(5)))
    assert [answer.status_code for answer in answers] == [201] * 5
    assert len({answer.json()["data"]["id"] for answer in answers}) == 1
    other = await api.http.post("/v1/cache-volumes", json=body | {"path": "/root/.npm"}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_mismatch")


@pytest.mark.parametrize(
    "body",
    [
        {"name": "pip"},
        {"name": "a/b", "path": "/root/.npm"},
        {"name": "pip", "path": "/etc"},
        {"name": "pip", "path": "/root/../etc/x"},
        {"name": "pip", "path": "/workspace/node_modules"},
        {"name": "pip", "path": "/a\x00b"},
        {"name": "pip", "path": ["/a"]},
        {"name": "pip", "path": "/root/.npm", "size": 1},
    ],
)
async def test_what_cannot_be_is_refused(api: Api, body: Json) -> None:
    answer = await api.http.post("/v1/cache-volumes", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_failed"), answer.text
    assert not api.db.rows("SELECT 1 FROM cache_volumes")


async def test_a_project_has_a_hundred(api: Api) -> None:
    api.db.rows(
        "INSERT INTO cache_volumes (id, project_id, name, status, path, deleted_at) SELECT gen_random_uuid(), %s,"
        " 'c' || n, CASE WHEN n > 99 THEN 'deleted' ELSE 'ready' END, '/c/' || n, now() FROM generate_series(1, 120) n",
        api.db.project_id,
    )
    both = [api.http.post("/v1/cache-volumes", json={"name": name, "path": "/cache"}) for name in ("a", "b")]
    said = sorted(answer.status_code for answer in await asyncio.gather(*both))
    assert said == [201, 409]


async def test_clear_and_delete_follow_the_state(api: Api) -> None:
    made = await cache(api)
    path = f"/v1/cache-volumes/{made['id']}"
    stale = await api.http.post(f"{path}/clear", headers={"If-Match": '"7"'})
    assert stale.status_code == 412
    clearing = await api.http.post(f"{path}/clear")
    assert (clearing.status_code, clearing.json()["data"]["status"]) == (202, "clearing"), clearing.text
    twice = await api.http.post(f"{path}/clear")
    run = clearing.json()["meta"]["workflow_id"]
    assert (twice.status_code, twice.json()["error"]["details"]["workflow_id"]) == (409, run)
    called_off = await api.http.post(f"/v1/workflows/{run}/cancel")
    assert called_off.json()["data"]["state"] == "cancelled", called_off.text
    assert (await api.http.get(path)).json()["data"]["status"] == "ready"
    under_way = (await api.http.post(f"{path}/clear")).json()["meta"]["workflow_id"]
    deleting = await api.http.delete(path)
    assert (deleting.status_code, deleting.json()["data"]["status"]) == (202, "deleting")
    assert (await api.http.delete(path)).json()["meta"]["workflow_id"] == deleting.json()["meta"]["workflow_id"]
    # The clear that had not begun has ended; a forced delete takes the place of one that waits, once.
    assert api.db.one("SELECT state FROM workflows WHERE id = %s", under_way)["state"] == "cancelled"
    forced = [(await api.http.delete(f"{path}?force=true")).json()["meta"]["workflow_id"] for _ in range(2)]
    assert forced[0] == forced[1] != deleting.json()["meta"]["workflow_id"]
    assert (await api.http.post(f"{path}/clear")).status_code == 409
    end(api, made, "deleted")
    assert (await api.http.delete(path)).status_code == 200
    assert (await api.http.get("/v1/cache-volumes")).json()["data"] == []
    assert len((await api.http.get("/v1/cache-volumes?status=deleted")).json()["data"]) == 1
    await cache(api)


async def test_a_session_has_those_that_it_names_on_its_host(api: Api) -> None:
    api.db.rows(ABLE)
    pip, npm = await cache(api), await cache(api, "npm", "/root/.npm")
    made = await create(api, await workspace(api), caches=["pip", "npm"])
    assert (made["caches"], made["start"], made["start_reason"]) == (["npm", "pip"], "cold", "it has cache volumes")
    sandbox = api.db.one("SELECT caches FROM instances")
    assert sandbox["caches"] == [{"id": one["id"], "path": one["path"]} for one in (pip, npm)]
    path = f"/v1/cache-volumes/{pip['id']}"
    assert (await api.http.get(path)).json()["data"]["hosts"] == ["one"]
    listed = (await api.http.get("/v1/sessions")).json()["data"]
    assert [one["caches"] for one in listed] == [["npm", "pip"]]
    # It can be emptied meanwhile, and named by others as it is.
    assert (await api.http.post(f"{path}/clear")).status_code == 202
    await create(api, made["workspace_id"], caches=["pip"])
    end(api, pip, "ready")
    refused = (await api.http.delete(path)).json()["error"]
    assert refused["code"] == "in_use" and made["name"] in refused["details"]["sessions"], refused
    api.db.rows("UPDATE work_sessions SET status = 'removed', deleted_at = now()")
    assert (await api.http.delete(path)).status_code == 202
    # What a removed session had is still said of it.
    assert (await api.http.get(f"/v1/sessions/{made['id']}")).json()["data"]["caches"] == ["npm", "pip"]
    gone = await api.http.post(f"/v1/workspaces/{made['workspace_id']}/sessions", json={"caches": ["pip"]})
    assert (gone.status_code, gone.json()["error"]["details"]["state"]) == (409, "deleting")


async def test_what_a_session_cannot_have_is_refused(api: Api) -> None:
    api.db.rows(ABLE)
    await cache(api)
    await cache(api, "deeper", "/root/.cache/pip/http")
    await cache(api, "same", "/root/.cache/pip")
    path = f"/v1/workspaces/{await workspace(api)}/sessions"
    async with api.as_(api.db.project("stranger")) as stranger:
        await stranger.post("/v1/cache-volumes", json={"name": "theirs", "path": "/root/.npm"})
    said = []
    for names in (["theirs"], ["absent"], ["pip", "pip"], ["deeper", "pip"], ["pip", "same"], ["x"] * 17, [""]):
        answer = await api.http.post(path, json={"caches": names})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_failed"), answer.text
        said.append(answer.json()["error"]["message"])
    assert said[0].replace("theirs", "absent") == said[1]
    key = api.db.key(api.db.project_id, "sessions-alone", "developer", scopes=["sessions:*"])
    async with api.as_(key) as narrow:
        assert (await narrow.post(path, json={"caches": ["pip"]})).status_code == 403
    api.db.rows("UPDATE hosts SET capabilities = '[]'")
    unable = await api.http.post(path, json={"caches": ["pip"]})
    assert (unable.status_code, unable.json()["error"]["code"]) == (409, "no_capacity")
    assert "'one' cannot give sandboxes cache volumes" in unable.json()["error"]["message"]
    for table in ("work_sessions", "session_cache_volumes", "cache_volume_hosts"):
        assert not api.db.rows(f"SELECT 1 FROM {table}"), table


async def test_sessions_and_a_delete_at_once_leave_no_session_without_its_cache(api: Api) -> None:
    api.db.rows(ABLE)
    shop = await workspace(api)
    for turn in range(4):
        made = await cache(api, f"c{turn}", f"/cache/{turn}")
        body = {"caches": [made["name"]]}
        acts = [api.http.post(f"/v1/workspaces/{shop}/sessions", json=body) for _ in range(3)]
        acts.insert(turn % 3, api.http.delete(f"/v1/cache-volumes/{made['id']}"))
        answers = await asyncio.gather(*acts)
        assert {answer.status_code for answer in answers} <= {202, 409}, [answer.text for answer in answers]
        deleted = answers[turn % 3].status_code == 202
        live = api.db.rows("SELECT 1 FROM session_cache_volumes WHERE volume_id = %s", made["id"])
        assert bool(live) is not deleted


async def test_agents_hear_which_are_nobodys_any_more(api: Api) -> None:
    api.db.rows(ABLE)
    made = await cache(api)
    await create(api, await workspace(api), caches=["pip"])
    project, strange = str(api.db.project_id), str(uuid4())
    held = [{"id": one, "project_id": project} for one in (made["id"], strange)]
    async with api.as_("agent-one") as agent, api.as_("agent-two") as other:
        told = (await agent.post("/v1/hosts/workspaces", json={"caches": held})).json()["data"]
        assert told == {"gone": [], "gone_sessions": [], "gone_caches": [strange]}
        # On another host it is nobody's.
        told = (await other.post("/v1/hosts/workspaces", json={"caches": held})).json()["data"]
        assert told["gone_caches"] == [made["id"], strange]
        many = [{"id": str(uuid4()), "project_id": project} for _ in range(6)]
        told = (await agent.post("/v1/hosts/workspaces", json={"caches": many})).json()["data"]
        assert told["gone_caches"] == [], "an older backup may have been restored"


async def test_a_host_that_is_removed_takes_its_part_along(api: Api) -> None:
    made = await cache(api)
    api.db.rows(
        "INSERT INTO cache_volume_hosts (volume_id, host_id, project_id) VALUES (%s, %s, %s)",
        *(made["id"], api.db.hosts["two"], api.db.project_id),
    )
    assert (await api.http.delete(f"/v1/hosts/{api.db.hosts['two']}")).status_code == 204
    assert (await api.http.get(f"/v1/cache-volumes/{made['id']}")).json()["data"]["hosts"] == []


async def test_a_foreign_one_and_an_absent_one_are_the_same(api: Api) -> None:
    async with api.as_(api.db.project("stranger")) as stranger:
        theirs = (await stranger.post("/v1/cache-volumes", json={"name": "pip", "path": "/c"})).json()["data"]["id"]
    for method, suffix in (("GET", ""), ("DELETE", ""), ("POST", "/clear")):
        said = []
        for one in (theirs, str(new_id())):
            answer = await api.http.request(method, f"/v1/cache-volumes/{one}{suffix}")
            said.append((answer.status_code, answer.json()["error"]["message"].replace(one, "")))
        assert said[0] == said[1] and said[0][0] == 404


async def test_a_session_of_before_has_none(api: Api) -> None:
    made = await create(api, await workspace(api))
    put(api, made, "running")
    assert made["caches"] == [] and made["start_reason"] != "it has cache volumes"
