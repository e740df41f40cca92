"""Workspaces and credentials as rows: accepted, refused, shown; what agents ask for."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from psycopg.types.json import Jsonb

from model import sealing
from model.base import new_id
from tests.api.conftest import Api

Json = dict[str, Any]
TOKEN = "planted-token-Zr8Wq2LmX5"
URL = "https://192-0-2-1.example/team/shop.git"


async def create(api: Api, name: str = "shop", source: Json | None = None, **more: Any) -> Json:
    """A workspace that is accepted; the answer's envelope."""
    answer = await api.http.post("/v1/workspaces", json={"name": name, "source": source or {"git_url": URL}} | more)
    assert answer.status_code == 202, answer.text
    found: Json = answer.json()
    return found


def put(api: Api, workspace: Json, status: str = "ready") -> None:
    """What workers would have done."""
    api.db.rows("UPDATE workspaces SET status = %s, commit = %s WHERE id = %s", status, "c" * 40, workspace["id"])
    api.db.rows("UPDATE workflows SET state = 'completed', finished_at = now() WHERE resource_id = %s", workspace["id"])


async def credential(api: Api, **more: Any) -> Json:
    body = {"name": "gitlab", "type": "https", "host": "192-0-2-1.example", "token": TOKEN} | more
    answer = await api.http.post("/v1/credentials", json=body)
    assert answer.status_code == 201, answer.text
    assert TOKEN not in answer.text
    made: Json = answer.json()["data"]
    return made


async def test_create_writes_workspace_workflow_and_event(api: Api) -> None:
    made = await create(api, source={"git_url": URL, "ref": "main", "depth": 1})
    workspace = made["data"]
    assert (workspace["status"], workspace["commit"], workspace["host"]) == ("initializing", None, None)
    assert workspace["source"]["ref"] == "main"
    row = api.db.one("SELECT kind, resource_type, id FROM workflows")
    assert (row["kind"], row["resource_type"], str(row["id"])) == (
        "InitWorkspace",
        "workspace",
        made["meta"]["workflow_id"],
    )
    assert [row["type"] for row in api.db.rows("SELECT type FROM events")] == ["workspace.initializing"]
    shown = await api.http.get(f"/v1/workspaces/{workspace['id']}")
    assert shown.json()["data"]["name"] == "shop"
    assert [one["id"] for one in (await api.http.get("/v1/workspaces?name=shop")).json()["data"]] == [workspace["id"]]
    again = await api.http.post("/v1/workspaces", json={"name": "shop", "source": {"git_url": URL}})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "name_taken")


async def test_same_key_at_once_is_one_workspace(api: Api) -> None:
    body, headers = {"name": "shop", "source": {"git_url": URL}}, {"Idempotency-Key": "one"}
    answers = await asyncio.gather(*(api.http.post("/v1/workspaces", json=body, headers=headers) for _ in range(5)))
    assert len({answer.json()["data"]["id"] for answer in answers}) == 1
    assert len(api.db.rows("SELECT 1 FROM workspaces")) == 1


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ({"git_url": "file:///etc"}, "url_refused"),
        ({"git_url": "https://me:secret@example.org/shop.git"}, "url_refused"),
        ({"git_url": "https://localhost/shop.git"}, "url_refused"),
        ({"git_url": "ssh://git@localhost/shop.git"}, "url_refused"),
        ({"git_url": URL, "path": "/srv/shop"}, "validation_failed"),
        ({}, "validation_failed"),
        ({"path": "srv/../etc"}, "validation_failed"),
        ({"path": "/srv/shop", "ref": "main"}, "validation_failed"),
        ({"git_url": URL, "ref": "--upload-pack=x"}, "validation_failed"),
        ({"git_url": URL, "depth": 0}, "validation_failed"),
        ({"git_url": URL, "credential_id": str(uuid4())}, "validation_failed"),
    ],
)
async def test_what_cannot_be_fetched_is_refused(api: Api, source: Json, code: str) -> None:
    answer = await api.http.post("/v1/workspaces", json={"name": "shop", "source": source})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code), answer.text
    assert not api.db.rows("SELECT 1 FROM workspaces")


async def test_sync_rename_and_delete(api: Api) -> None:
    workspace = (await create(api))["data"]
    path = f"/v1/workspaces/{workspace['id']}"
    early = await api.http.post(f"{path}/sync")
    assert (early.status_code, early.json()["error"]["code"]) == (409, "invalid_state")
    put(api, workspace)
    renamed = await api.http.patch(path, json={"name": "shop-2"})
    assert (renamed.status_code, renamed.json()["data"]["name"]) == (200, "shop-2")
    synced = await api.http.post(f"{path}/sync")
    assert synced.status_code == 202, synced.text
    assert (synced.json()["data"]["status"], synced.json()["data"]["commit"]) == ("ready", "c" * 40)
    twice = await api.http.post(f"{path}/sync")
    assert (twice.status_code, twice.json()["error"]["details"]["workflow_id"]) == (
        409,
        synced.json()["meta"]["workflow_id"],
    )
    deleted = await api.http.delete(path)
    assert (deleted.status_code, deleted.json()["data"]["status"]) == (202, "deleting")
    again = await api.http.delete(path)
    assert again.json()["meta"]["workflow_id"] == deleted.json()["meta"]["workflow_id"]
    # A sync that had not begun is called off; the delete too, and all is as it was.
    states = {row["kind"]: row["state"] for row in api.db.rows("SELECT kind, state FROM workflows")}
    assert states["SyncWorkspace"] == "cancelled"
    assert (await api.http.get(f"/v1/workspaces/{uuid4()}")).status_code == 404


async def test_credential_is_sealed_bound_to_its_host_and_shown_to_nobody(api: Api) -> None:
    made = await credential(api)
    assert (made["host"], made["username"]) == ("192-0-2-1.example", "git")
    workspace = (await create(api, source={"git_url": URL, "credential_id": made["id"]}))["data"]
    assert workspace["source"]["credential_id"] == made["id"]
    elsewhere = {"git_url": "https://192-0-2-2.example/shop.git", "credential_id": made["id"]}
    refused = await api.http.post("/v1/workspaces", json={"name": "other", "source": elsewhere})
    assert refused.status_code == 422, refused.text
    assert "goes to no other host" in refused.text
    path = f"/v1/credentials/{made['id']}"
    in_use = await api.http.delete(path)
    assert (in_use.status_code, in_use.json()["error"]["details"]["workspaces"]) == (409, ["shop"])
    rotated = await api.http.put(path, json={"token": TOKEN + "-2"})
    assert (rotated.status_code, rotated.json()["data"]["version"]) == (200, 2), rotated.text
    assert (await api.http.put(path, json={"private_key": "x"})).status_code == 422
    api.db.rows("UPDATE workspaces SET status = 'deleted', deleted_at = now(), credential_id = NULL")
    assert (await api.http.delete(path)).status_code == 204
    dump = str([api.db.rows(f"SELECT * FROM {table}") for table in ("credentials", "workspaces", "events", "audit")])
    assert TOKEN not in dump
    assert not api.db.rows("SELECT 1 FROM sealed_values")


async def test_credential_of_ssh_needs_a_key_and_known_hosts(api: Api) -> None:
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----"
    body = {"name": "deploy", "type": "ssh", "host": "git.example.org", "private_key": key}
    assert (await api.http.post("/v1/credentials", json=body)).status_code == 422
    whole = await api.http.post("/v1/credentials", json=body | {"known_hosts": "git.example.org ssh-ed25519 AAAA"})
    assert whole.status_code == 201, whole.text
    assert (await api.http.post("/v1/credentials", json=body | {"token": "x"})).status_code == 422


async def test_agent_gets_what_is_sealed_for_it_and_hears_what_is_needed(api: Api) -> None:
    workspace = (await create(api))["data"]
    project, host = workspace["project_id"], api.db.hosts["one"]
    agent = api.as_("agent-one")
    path = f"/v1/hosts/git-logins/{workspace['id']}?project_id={project}"
    assert (await agent.get(path)).status_code == 404
    sealed = sealing.seal(b"x", purpose="test", key=sealing.public_key(sealing.new_private_key()))
    api.db.rows(
        "INSERT INTO workspace_logins (workspace_id, project_id, host_id, sealed) VALUES (%s, %s, %s, %s)",
        *(workspace["id"], project, host, sealed),
    )
    assert (await agent.get(path)).json()["data"]["sealed"] == sealed
    api.db.rows("UPDATE workspaces SET host_id = %s", host)
    strange = str(uuid4())
    held = [{"id": one, "project_id": project} for one in (workspace["id"], strange)]
    told = await agent.post("/v1/hosts/workspaces", json={"workspaces": held})
    assert told.json()["data"]["gone"] == [strange], told.text
    many = [{"id": str(uuid4()), "project_id": project} for _ in range(6)]
    told = await agent.post("/v1/hosts/workspaces", json={"workspaces": many})
    assert told.json()["data"]["gone"] == [], "an older backup may have been restored"
    # But of what has a row that says so it is known, however many there are.
    api.db.rows("UPDATE workspaces SET status = 'deleted', deleted_at = now(), host_id = NULL")
    told = await agent.post(
        "/v1/hosts/workspaces", json={"workspaces": [*many, {"id": workspace["id"], "project_id": project}]}
    )
    assert told.json()["data"]["gone"] == [workspace["id"]]
    api.db.rows("UPDATE workspaces SET status = 'ready', deleted_at = NULL, host_id = %s", host)
    # The same of sessions, beside.
    api.db.rows("UPDATE workspaces SET commit = %s", "c" * 40)
    put(api, workspace)
    session = (await api.http.post(f"/v1/workspaces/{workspace['id']}/sessions", json={})).json()["data"]["id"]
    held = [{"id": one, "project_id": project} for one in (session, strange)]
    for status, gone in (("error", [strange]), ("removed", [session, strange])):
        api.db.rows("UPDATE work_sessions SET status = %s", status)
        told = await agent.post("/v1/hosts/workspaces", json={"sessions": held})
        assert told.json()["data"] == {"gone": [], "gone_sessions": gone, "gone_caches": []}, told.text
    await agent.aclose()


async def told(api: Api, project: str, **held: list[str]) -> Json:
    """What the agent of host one is answered."""
    agent = api.as_("agent-one")
    body = {what: [{"id": id, "project_id": project} for id in ids] for what, ids in held.items()}
    answer = await agent.post("/v1/hosts/workspaces", json=body)
    await agent.aclose()
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()["data"]
    return found


async def test_files_made_before_a_restore_are_kept_for_ever_and_named(api: Api) -> None:
    """What an agent holds of the lost hour has no row, and nothing says that nobody wants it."""
    project = (await create(api))["data"]["project_id"]
    lost = {kind: str(new_id()) for kind in ("workspaces", "sessions", "caches")}
    # Of a project that was made in that hour too.
    nowhere, elsewhere = str(new_id()), str(new_id())
    api.db.rows("INSERT INTO restores (id, backup_at, epoch) VALUES (gen_random_uuid(), now(), 2)")
    held = {kind: [id] for kind, id in lost.items()}
    nothing: Json = {"gone": [], "gone_sessions": [], "gone_caches": []}
    for _ in range(2):
        assert await told(api, project, **held) == nothing
        assert await told(api, nowhere, sessions=[elsewhere]) == nothing
    rows = api.db.rows("SELECT kind, id::text, host, project_id::text AS project FROM restore_trees")
    assert {(row["kind"], row["id"], row["host"], row["project"]) for row in rows} == {
        ("workspace", lost["workspaces"], "one", project),
        ("session", lost["sessions"], "one", project),
        ("cache", lost["caches"], "one", project),
        ("session", elsewhere, "one", nowhere),
    }
    left = str(new_id())
    api.db.rows("UPDATE restores SET finished_at = now(), left_alone = %s", Jsonb([left]))
    assert await told(api, project, **held) == nothing
    # What came after it is removed as ever, but for what the operator has named.
    later = str(new_id())
    answer = await told(api, project, workspaces=[lost["workspaces"], later, left], caches=[later])
    assert answer == {"gone": [later], "gone_sessions": [], "gone_caches": [later]}


async def test_row_from_before_a_restore_gives_files_away_only_when_it_is_deleted(api: Api) -> None:
    """One whose run ended in the lost hour is in error after it, and its files are complete."""
    workspace = (await create(api))["data"]
    project, id = workspace["project_id"], workspace["id"]
    api.db.rows("UPDATE workspaces SET status = 'error'")
    assert (await told(api, project, workspaces=[id]))["gone"] == [id]
    api.db.rows("INSERT INTO restores (id, backup_at, epoch, finished_at) VALUES (gen_random_uuid(), now(), 2, now())")
    assert (await told(api, project, workspaces=[id]))["gone"] == []
    api.db.rows("UPDATE workspaces SET status = 'deleted', deleted_at = now()")
    assert (await told(api, project, workspaces=[id]))["gone"] == [id]
