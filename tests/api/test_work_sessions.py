"""Work sessions as rows: accepted, changed, refused; who may enter their sandboxes and see their files."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from api import session_files
from model.base import new_id
from model.sessions import IDLE
from tests.api.conftest import Api

Json = dict[str, Any]
COMMIT = "1" * 40
AGENT = "https://127.0.0.1:1"  # nobody listens there


async def workspace(api: Api, name: str = "shop", host: str = "one") -> str:
    """One that workers have brought to a host."""
    id, run, project = new_id(), new_id(), api.db.project_id
    api.db.rows(
        'INSERT INTO workflows (id, project_id, kind, resource_type, resource_id, actor, "order", state, finished_at)'
        " VALUES (%s, %s, 'InitWorkspace', 'workspace', %s, 'test', '{}', 'completed', now())",
        *(run, project, id),
    )
    api.db.rows(
        'INSERT INTO workspaces (id, project_id, name, status, path, host_id, "commit", workflow_id)'
        " VALUES (%s, %s, %s, 'ready', '/srv', %s, %s, %s)",
        *(id, project, name, api.db.hosts[host], COMMIT, run),
    )
    return str(id)


async def create(api: Api, workspace_id: str, **more: Any) -> Json:
    answer = await api.http.post(f"/v1/workspaces/{workspace_id}/sessions", json=more)
    assert answer.status_code == 202, answer.text
    found: Json = answer.json()["data"]
    return found


def put(api: Api, made: Json, status: str, instance: str = "") -> None:
    """What workers would have done: the session in a state, all runs ended."""
    deleted = ", deleted_at = now()" if status == "removed" else ""
    api.db.rows(f"UPDATE work_sessions SET status = %s{deleted} WHERE id = %s", status, made["id"])
    api.db.rows("UPDATE instances SET status = %s WHERE id = %s", instance or status, made["instance_id"])
    api.db.rows("UPDATE workflows SET state = 'completed', finished_at = now() WHERE finished_at IS NULL")


async def test_create_writes_session_sandbox_and_both_runs(api: Api) -> None:
    api.db.rows("UPDATE hosts SET capabilities = '[\"network.none\"]'")
    made = await create(api, await workspace(api), env={"A": "b"}, network={"mode": "none"}, ttl_seconds=600)
    assert (made["status"], made["commit"], made["network"]["mode"]) == ("initializing", COMMIT, "none")
    assert made["name"].startswith("shop-") and made["env"] == {"A": "b"} and made["expires_at"]
    sandbox = api.db.one("SELECT * FROM instances")
    assert (str(sandbox["session_id"]), str(sandbox["id"])) == (made["id"], made["instance_id"])
    assert (sandbox["wanted_host"], sandbox["cmd"]) == ("one", IDLE)
    rows = api.db.rows("SELECT kind, parent_id, id FROM workflows WHERE kind <> 'InitWorkspace' ORDER BY kind")
    assert [row["kind"] for row in rows] == ["InitSession", "ProvisionInstance"]
    assert rows[1]["parent_id"] == rows[0]["id"] and str(rows[0]["id"]) == made["workflow_id"]
    shown = await api.http.get(f"/v1/sessions/{made['id']}")
    assert shown.json()["data"] == made and shown.headers["ETag"] == '"1"'
    for query, found in ((f"?workspace_id={made['workspace_id']}", 1), (f"?workspace_id={new_id()}", 0), ("", 1)):
        assert len((await api.http.get(f"/v1/sessions{query}")).json()["data"]) == found
    instance = (await api.http.get(f"/v1/instances/{made['instance_id']}")).json()["data"]
    assert instance["managed_by"] == {"type": "session", "id": made["id"]}


async def test_same_key_at_once_is_one_session(api: Api) -> None:
    path, headers = f"/v1/workspaces/{await workspace(api)}/sessions", {"Idempotency-Key": "one"}
    answers = await asyncio.gather(*(api.http.post(path, json={}, headers=headers) for _ in range(8)))
    assert {answer.json()["data"]["id"] for answer in answers} == {
        str(api.db.one("SELECT id FROM work_sessions")["id"])
    }


@pytest.mark.parametrize(
    "body", [{"image": "-x"}, {"network": {"mode": "some"}}, {"ports": "80", "network": {"mode": "none"}}, {"ttl": 1}]
)
async def test_what_cannot_be_is_refused(api: Api, body: Json) -> None:
    answer = await api.http.post(f"/v1/workspaces/{await workspace(api)}/sessions", json=body)
    assert answer.status_code == 422, answer.text
    assert not api.db.rows("SELECT 1 FROM work_sessions")


async def test_a_workspace_that_is_not_ready_or_is_fetched_has_no_new_sessions_and_stays_while_it_has_some(
    api: Api,
) -> None:
    id = await workspace(api)
    made = await create(api, id, name="a")
    taken = await api.http.post(f"/v1/workspaces/{id}/sessions", json={"name": "a"})
    assert taken.json()["error"]["code"] == "name_taken"
    refused = await api.http.delete(f"/v1/workspaces/{id}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")
    assert (await api.http.post(f"/v1/workspaces/{id}/sync")).status_code == 202
    busy = await api.http.post(f"/v1/workspaces/{id}/sessions", json={})
    assert (busy.status_code, busy.json()["error"]["code"]) == (409, "invalid_state")
    put(api, made, "removed", "deleted")
    assert (await api.http.delete(f"/v1/workspaces/{id}")).status_code == 202
    assert (await api.http.post(f"/v1/workspaces/{id}/sessions", json={})).status_code == 409
    assert (await api.http.post(f"/v1/workspaces/{new_id()}/sessions", json={})).status_code == 404


async def test_stop_start_and_delete_follow_the_state(api: Api) -> None:
    made = await create(api, await workspace(api))
    path = f"/v1/sessions/{made['id']}"
    for verb in ("stop", "start"):
        assert (await api.http.post(f"{path}/{verb}")).status_code == 409
    put(api, made, "running")
    assert (await api.http.post(f"{path}/start")).status_code == 409
    stopping = await api.http.post(f"{path}/stop")
    assert (stopping.status_code, stopping.json()["data"]["status"]) == (202, "running")
    again = await api.http.post(f"{path}/stop")
    assert again.json()["error"]["details"]["workflow_id"] == stopping.json()["meta"]["workflow_id"]
    put(api, made, "stopped")
    assert (await api.http.post(f"{path}/start")).status_code == 202
    deleting = await api.http.delete(path)
    assert (deleting.status_code, deleting.json()["data"]["status"]) == (202, "removing")
    assert (await api.http.delete(path)).json()["meta"]["workflow_id"] == deleting.json()["meta"]["workflow_id"]
    # The start that had not begun has ended.
    ended = api.db.one("SELECT state FROM workflows WHERE kind = 'StartSession'")
    assert ended["state"] == "cancelled"
    put(api, made, "removed", "deleted")
    assert (await api.http.delete(path)).status_code == 200
    assert [one["id"] for one in (await api.http.get("/v1/sessions?status=removed")).json()["data"]] == [made["id"]]
    assert (await api.http.get("/v1/sessions")).json()["data"] == []


async def test_a_commit_is_accepted_where_its_workspace_is_still_where_it_was(api: Api) -> None:
    id = await workspace(api)
    made = await create(api, id)
    path, body = f"/v1/sessions/{made['id']}/commit", {"message": "Mend it"}
    assert (await api.http.post(path, json=body)).json()["error"]["code"] == "invalid_state"
    put(api, made, "stopped")
    for bad in (
        {},
        {"message": " \n"},
        {"message": "x" * 20_000},
        body | {"author": {"name": "A <b>", "email": "a@b"}},
        body | {"author": {"name": "A\nB", "email": "a@b"}},
        body | {"author": {"name": "A", "email": "a b@c"}},
        body | {"author": {"name": "A"}},
    ):
        assert (await api.http.post(path, json=bad)).status_code == 422, bad
    key = api.db.key(api.db.project_id, "no-workspaces", "developer", scopes=["sessions:*"])
    assert (await api.as_(key).post(path, json=body)).status_code == 403
    api.db.rows("UPDATE workspaces SET submodules = true")
    assert "submodules" in (await api.http.post(path, json=body)).json()["error"]["message"]
    api.db.rows("UPDATE workspaces SET submodules = false")
    full = body | {"author": {"name": "Ada Lovelace", "email": "ada@example.org"}}
    headers = {"Idempotency-Key": "one"}
    accepted = [await api.http.post(path, json=full, headers=headers) for _ in range(2)]
    assert {answer.status_code for answer in accepted} == {202}
    order = api.db.one("SELECT \"order\" FROM workflows WHERE kind = 'CommitSession'")["order"]
    assert (order["message"], order["author"]) == ("Mend it", "Ada Lovelace <ada@example.org>")
    # Neither the session nor its workspace is anybody else's meanwhile.
    for other in (api.http.post(path, json=body), api.http.post(f"/v1/workspaces/{id}/sync")):
        answer = await other
        assert answer.json()["error"]["code"] == "invalid_state", answer.text
    put(api, made, "running")
    api.db.rows('UPDATE workspaces SET "commit" = %s', "2" * 40)
    moved = (await api.http.post(path, json=body)).json()["error"]
    assert (moved["code"], moved["details"]["workspace_commit"]) == ("workspace_moved", "2" * 40)
    assert moved["details"]["session_commit"] == COMMIT
    # What it has committed is what its changes follow.
    api.db.rows("UPDATE work_sessions SET head = %s", "2" * 40)
    assert (await api.http.post(path, json=body)).status_code == 202


async def test_a_forced_delete_says_so(api: Api) -> None:
    made = await create(api, await workspace(api))
    path = f"/v1/sessions/{made['id']}"
    first = (await api.http.delete(path)).json()["meta"]["workflow_id"]
    # It takes the place of one that waits; another does not.
    forced = [(await api.http.delete(f"{path}?force=true")).json()["meta"]["workflow_id"] for _ in range(2)]
    assert forced[0] == forced[1] != first
    order = api.db.one('SELECT "order" FROM workflows WHERE id = %s', forced[0])["order"]
    assert order["force"] is True


async def test_the_sandbox_is_changed_through_its_session_alone_and_entered_by_who_may_use_it(api: Api) -> None:
    made = await create(api, await workspace(api))
    put(api, made, "running")
    path = f"/v1/instances/{made['instance_id']}"
    api.db.rows("UPDATE instances SET host_id = %s WHERE id = %s", api.db.hosts["one"], made["instance_id"])
    for act in (api.http.post(f"{path}/stop"), api.http.delete(path), api.http.patch(path, json={"name": "b"})):
        answer = await act
        assert answer.json()["error"]["details"]["managed_by"]["id"] == made["id"], answer.text
    # Nobody answers there; what matters is that it was let through.
    api.db.rows("UPDATE hosts SET last_seen_at = now(), agent_url = %s, fingerprint = %s", AGENT, bytes(32))
    entered = await api.http.post(f"{path}/exec", json={"cmd": "true"})
    assert entered.json()["error"]["code"] == "host_unreachable"
    key = api.db.key(api.db.project_id, "instances-alone", "developer", scopes=["instances:*"])
    assert (await api.as_(key).post(f"{path}/exec", json={"cmd": "true"})).status_code == 403


async def test_files_are_asked_for_only_where_they_are(api: Api) -> None:
    made = await create(api, await workspace(api))
    base = f"/v1/sessions/{made['id']}"
    put(api, made, "error")

    def acts() -> list[Any]:
        return [
            api.http.get(f"{base}/files"),
            api.http.get(f"{base}/files/a/b"),
            api.http.put(f"{base}/files/a", content=b"x" * (2 << 20)),
            api.http.delete(f"{base}/files/a"),
            api.http.post(f"{base}/files/move", json={"from": "a", "to": "b"}),
            api.http.post(f"{base}/files/mkdir", json={"path": "a"}),
            api.http.get(f"{base}/diff?stat=true"),
            api.http.get(f"{base}/archive"),
            api.http.put(f"{base}/archive", content=b""),
            api.http.get(f"{base}/watch"),
        ]

    for answer in [await act for act in acts()]:
        assert answer.json()["error"]["code"] == "invalid_state", answer.text
    put(api, made, "stopped")
    api.db.rows("UPDATE hosts SET last_seen_at = now(), agent_url = %s, fingerprint = %s", AGENT, bytes(32))
    for answer in [await act for act in acts()]:
        assert answer.json()["error"]["code"] == "host_unreachable", answer.text


async def test_a_name_that_ends_a_line_is_no_other_file(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def change(_request: Any, _caller: Any, _session: Any, query: dict[str, str], _body: Any = None) -> None:
        asked.append(query["path"])

    monkeypatch.setattr(session_files, "_change", change)
    for path in ("victim%0a", "%0a", "a%0ab/c", "victim", ""):
        assert (await api.http.delete(f"/v1/sessions/{uuid4()}/files/{path}")).status_code == 204
    assert asked == ["victim\n", "\n", "a\nb/c", "victim", ""]


@pytest.mark.parametrize("path", ["a\x00", "..\x00", "a\ud800", "../a", "/a"])
async def test_what_is_no_path_is_refused_before_it_is_told_of(api: Api, path: str) -> None:
    base, headers = f"/v1/sessions/{uuid4()}/files", {"content-type": "application/json"}
    bodies = [("move", {"from": path, "to": "x"}), ("move", {"from": "x", "to": path}), ("mkdir", {"path": path})]
    said = [await api.http.post(f"{base}/{act}", content=json.dumps(body), headers=headers) for act, body in bodies]
    if "\x00" in path:
        said += [await api.http.put(f"{base}/{quote(path)}", content=b"x"), await api.http.delete(f"{base}/a%00")]
    for answer in said:
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_failed"), answer.text
