"""Projects over the API: who sees which, making and changing them, and their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio

from tests.api.conftest import Api
from tests.api.test_ssh_keys import KEY

Json = dict[str, Any]


@pytest.fixture
def api(shared_api: Api) -> Api:
    return shared_api


@pytest_asyncio.fixture
async def jo(api: Api) -> AsyncIterator[httpx.AsyncClient]:
    """A user with an access token, who has the first project as default, and is a viewer there."""
    async with await api.signed_in(api.db.user(api.db.project_id, f"jo-{uuid4().hex[:8]}", "viewer")) as http:
        yield http


async def made(http: httpx.AsyncClient, **more: Any) -> Json:
    answer = await http.post("/v1/projects", json={"name": "Payments"} | more)
    assert answer.status_code == 201, answer.text
    found: Json = answer.json()["data"]
    return found


def code(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, (answer.json()["error"] or {}).get("code")


async def test_user_makes_a_project_and_owns_it(api: Api, jo: httpx.AsyncClient) -> None:
    project = await made(jo, description="what customers pay with")
    assert project["unix_name"].startswith("payments-") and project["active"] and not project["personal"]
    assert (await jo.get(f"/v1/projects/{project['id']}")).json()["data"] == project
    listed = (await jo.get("/v1/projects")).json()["data"]
    assert [one["id"] for one in listed] == [project["id"], str(api.db.project_id)]
    (member,) = (await jo.get(f"/v1/projects/{project['id']}/members")).json()["data"]
    assert member["roles"] == ["owner"]
    assert api.db.quota(UUID(project["id"]))["instances_limit"] is None


async def test_nobody_multiplies_their_quotas_by_making_projects(api: Api, jo: httpx.AsyncClient) -> None:
    settings = api.app.state.settings
    api.app.state.settings = settings.model_copy(update={"user_projects": 3})
    try:
        body = {"name": "More"}
        answers = await asyncio.gather(*(jo.post("/v1/projects", json=body) for _ in range(6)))
        assert sorted(one.status_code for one in answers) == [201] * 3 + [429] * 3
        assert {code(one)[1] for one in answers if not one.is_success} == {"quota_exceeded"}
        gone = next(one.json()["data"]["id"] for one in answers if one.is_success)
        assert (await jo.delete(f"/v1/projects/{gone}")).status_code == 204
        assert (await jo.post("/v1/projects", json=body)).status_code == 201
        assert all([(await api.http.post("/v1/projects", json=body)).status_code == 201 for _ in range(4)])
    finally:
        api.app.state.settings = settings


async def test_names_are_unique_in_no_project_but_unix_names_are_one_name_space(
    api: Api, jo: httpx.AsyncClient
) -> None:
    first, second = await made(jo, name="Twice"), await made(jo, name="Twice")
    assert first["unix_name"] != second["unix_name"]
    unix_name = f"taken-{uuid4().hex[:8]}"
    await made(jo, unix_name=unix_name)
    assert code(await jo.post("/v1/projects", json={"name": "x", "unix_name": unix_name})) == (409, "name_taken")
    for wrong in ("A", "1a", "a", "-ab", "ab-", "a_b", "a" * 33):
        assert (await jo.post("/v1/projects", json={"name": "x", "unix_name": wrong})).status_code == 422
    # Names of what is in projects are each project's own.
    for project in (first, second):
        key = {"name": "laptop", "public_key": KEY}
        assert (await jo.post("/v1/ssh-keys", json=key, headers=of(project))).status_code == 201


def of(project: Json) -> dict[str, str]:
    return {"X-Project-ID": project["id"]}


async def test_same_request_again_makes_one_project(jo: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": str(uuid4())}
    first, again = [await jo.post("/v1/projects", json={"name": "Once"}, headers=headers) for _ in range(2)]
    assert first.json()["data"] == again.json()["data"]
    assert len((await jo.get("/v1/projects?name=Once")).json()["data"]) == 1


async def test_path_names_the_project_and_the_permission_is_checked_there(api: Api, jo: httpx.AsyncClient) -> None:
    mine = await made(jo)
    patch = {"description": "new"}
    assert (await jo.patch(f"/v1/projects/{mine['id']}", json=patch)).json()["data"]["version"] == 2
    assert code(await jo.patch(f"/v1/projects/{api.db.project_id}", json=patch)) == (403, "forbidden")
    # Both, and they differ: there is no such project.
    both = await jo.get(f"/v1/projects/{mine['id']}", headers={"X-Project-ID": str(api.db.project_id)})
    assert code(both) == (404, "not_found")
    # A key opens its own alone, though its user has others.
    async with api.as_(api.db.project(f"p{uuid4().hex[:8]}")) as key:
        other = await made(key)
        assert code(await key.get(f"/v1/projects/{other['id']}")) == (404, "not_found")
        assert [one["name"] for one in (await key.get("/v1/projects")).json()["data"]] != ["Payments"]


async def test_version_guards_a_change(jo: httpx.AsyncClient) -> None:
    mine = await made(jo)
    path = f"/v1/projects/{mine['id']}"
    assert code(await jo.patch(path, json={"name": "x"}, headers={"If-Match": '"7"'})) == (412, "precondition_failed")
    changed = await jo.patch(path, json={"name": "x", "drift_policy": "heal"}, headers={"If-Match": '"1"'})
    assert (changed.json()["data"]["drift_policy"], changed.headers["etag"]) == ("heal", '"2"')
    assert code(await jo.patch(path, json={"unix_name": "other"})) == (422, "validation_failed")


async def test_administrators_see_all_projects_and_set_quotas(api: Api, jo: httpx.AsyncClient) -> None:
    mine = await made(jo)
    everything = (await api.http.get("/v1/projects?all=true&limit=500")).json()["data"]
    assert mine["id"] in {one["id"] for one in everything}
    assert mine["id"] not in {one["id"] for one in (await api.http.get("/v1/projects")).json()["data"]}
    assert code(await jo.get("/v1/projects?all=true")) == (403, "forbidden")
    path = f"/v1/projects/{mine['id']}/quotas"
    assert code(await jo.patch(path, json={"instances": 3})) == (403, "forbidden")
    answer = await api.http.patch(path, json={"instances": 3, "vcpus": 1.5})
    assert answer.json()["data"]["instances"] == {"limit": 3, "used": 0, "reserved": 0}
    assert (await jo.get(path)).json()["data"] == answer.json()["data"]
    assert (await api.http.patch(path, json={"instances": None})).json()["data"]["instances"]["limit"] is None
    assert code(await api.http.patch(f"/v1/projects/{uuid4()}/quotas", json={})) == (404, "not_found")


async def test_deactivated_project_is_closed_at_once_and_opens_again(api: Api, jo: httpx.AsyncClient) -> None:
    mine = await made(jo)
    path = f"/v1/projects/{mine['id']}"
    assert (await api.http.post(f"{path}/deactivate")).json()["data"]["active"] is False
    assert code(await jo.get(path)) == (403, "project_inactive")
    assert code(await jo.get("/v1/instances", headers=of(mine))) == (403, "project_inactive")
    assert [one["active"] for one in (await jo.get("/v1/projects")).json()["data"]] == [False, True]
    assert code(await jo.post(f"{path}/activate")) == (403, "forbidden")
    assert (await api.http.post(f"{path}/activate")).json()["data"]["active"] is True
    assert (await jo.get(path)).status_code == 200


async def test_empty_project_is_deleted_and_is_404_everywhere(api: Api, jo: httpx.AsyncClient) -> None:
    mine = await made(jo, unix_name=(unix_name := f"gone-{uuid4().hex[:8]}"))
    path = f"/v1/projects/{mine['id']}"
    account = (await jo.post("/v1/service-accounts", json={"name": "ci"}, headers=of(mine))).json()["data"]
    keys = f"/v1/service-accounts/{account['id']}/keys"
    key = (await jo.post(keys, json={"name": "one"}, headers=of(mine))).json()["data"]["key"]
    assert (await jo.post("/v1/ssh-keys", json={"name": "laptop", "public_key": KEY}, headers=of(mine))).is_success
    refused = await jo.delete(path)
    assert code(refused) == (409, "in_use") and refused.json()["error"]["details"] == {"ssh_keys": 1}
    assert " holds 1 ssh key: " in refused.json()["error"]["message"]
    api.db.rows("DELETE FROM ssh_keys WHERE project_id = %s", mine["id"])
    assert (await jo.post("/v1/secrets", json={"name": "only", "value": "copy"}, headers=of(mine))).is_success
    refused = await jo.delete(path)
    assert code(refused) == (409, "in_use") and refused.json()["error"]["details"] == {"secrets": 1}
    assert (await jo.delete("/v1/secrets/only", headers=of(mine))).status_code == 204
    job = {"name": "often", "schedule": "@every 1s", "target": {"http": {"url": "https://1.1.1.1/"}}}
    job_id = (await jo.post("/v1/cron/jobs", json=job, headers=of(mine))).json()["data"]["id"]
    refused = await jo.delete(path)
    assert code(refused) == (409, "in_use") and refused.json()["error"]["details"] == {"cron_jobs": 1}
    assert (await jo.delete(f"/v1/cron/jobs/{job_id}", headers=of(mine))).status_code == 204
    cache = {"name": "pip", "path": "/root/.cache/pip"}
    assert (await jo.post("/v1/cache-volumes", json=cache, headers=of(mine))).status_code == 201
    refused = await jo.delete(path)
    assert code(refused) == (409, "in_use") and refused.json()["error"]["details"] == {"cache_volumes": 1}
    api.db.rows("UPDATE cache_volumes SET status = 'deleted', deleted_at = now() WHERE project_id = %s", mine["id"])
    assert (await jo.delete(path)).status_code == 204
    for asked in (path, f"{path}/members", f"{path}/quotas"):
        assert code(await jo.get(asked)) == (404, "not_found")
    assert code(await jo.get("/v1/instances", headers=of(mine))) == (404, "not_found")
    assert code(await jo.delete(path)) == (404, "not_found")
    assert mine["id"] not in {one["id"] for one in (await jo.get("/v1/projects")).json()["data"]}
    async with api.as_(key) as http:
        assert code(await http.get("/v1/instances")) == (401, "unauthenticated")
    assert code(await api.http.post(f"{path}/activate")) == (404, "not_found")
    await made(jo, unix_name=unix_name)


async def test_what_is_somebodys_home_is_not_deleted(api: Api, jo: httpx.AsyncClient) -> None:
    assert code(await api.http.delete(f"/v1/projects/{api.db.project_id}")) == (409, "invalid_state")
    mine = await made(jo)
    user = api.db.one("SELECT user_id FROM bindings WHERE project_id = %s", mine["id"])["user_id"]
    api.db.rows("UPDATE projects SET personal_of = %s WHERE id = %s", user, mine["id"])
    assert code(await jo.delete(f"/v1/projects/{mine['id']}")) == (409, "invalid_state")


async def test_nothing_new_is_made_in_a_project_that_is_being_deleted(api: Api, jo: httpx.AsyncClient) -> None:
    mine = await made(jo)
    await jo.post("/v1/ssh-keys", json={"name": "laptop", "public_key": KEY}, headers=of(mine))
    path = f"/v1/projects/{mine['id']}?cascade=true"
    accepted, again = await jo.delete(path), await jo.delete(path)
    assert accepted.status_code == again.status_code == 202
    assert accepted.json()["meta"]["workflow_id"] == again.json()["meta"]["workflow_id"]
    assert accepted.json()["data"]["deleting"]
    for route, body in (
        ("/v1/instances", {"name": "web", "image": "cairn/base:latest"}),
        ("/v1/ssh-keys", {"name": "other", "public_key": KEY}),
        ("/v1/images", {"name": "own", "source": {"type": "upload"}}),
        ("/v1/service-accounts", {"name": "ci"}),
    ):
        assert code(await jo.post(route, json=body, headers=of(mine))) == (409, "invalid_state"), route
    workflow = await jo.get(f"/v1/workflows/{accepted.json()['meta']['workflow_id']}", headers=of(mine))
    assert workflow.json()["data"]["kind"] == "DeprovisionProject"


async def test_launch_and_deletion_at_once_leave_no_instance_behind(api: Api, jo: httpx.AsyncClient) -> None:
    for _ in range(5):
        mine = await made(jo)
        body = {"name": "web", "image": "cairn/base:latest"}
        answers = await asyncio.gather(
            jo.delete(f"/v1/projects/{mine['id']}"),
            *(jo.post("/v1/instances", json=body | {"name": f"i{i}"}, headers=of(mine)) for i in range(3)),
        )
        left = api.db.one("SELECT count(*) AS n FROM instances WHERE project_id = %s", mine["id"])["n"]
        if answers[0].status_code == 204:
            assert left == 0
        else:
            assert code(answers[0]) == (409, "in_use") and left == 3
        assert {answer.status_code for answer in answers[1:]} <= {202, 404, 409}


async def test_who_has_left_a_project_is_not_answered_again_what_they_made(api: Api, jo: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "once"}
    body = {"name": "mine"}
    made_once = await jo.post("/v1/projects", json=body, headers=headers)
    assert (await jo.post("/v1/projects", json=body, headers=headers)).json()["data"] == made_once.json()["data"]
    api.db.rows("DELETE FROM bindings WHERE project_id = %s", made_once.json()["data"]["id"])
    assert code(await jo.post("/v1/projects", json=body, headers=headers)) == (404, "not_found")
