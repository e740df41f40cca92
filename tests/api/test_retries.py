"""``POST /v1/workflows/{id}/retry``: from where it may begin, once, with its quota."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from model.base import new_id
from tests.api.conftest import Api
from tests.api.test_accept import settle


async def retry(api: Api, workflow_id: str, **headers: str) -> Any:
    return await api.http.post(f"/v1/workflows/{workflow_id}/retry", headers=headers)


async def failed_launch(api: Api, name: str = "web") -> tuple[str, str]:
    """The ids of an instance and of its launch, which failed."""
    launched = await api.launch(name)
    workflow_id = launched["meta"]["workflow_id"]
    await asyncio.to_thread(settle, api.db, workflow_id, "failed", "error")
    api.db.rows("UPDATE instances SET quota = 'none' WHERE id = %s", UUID(launched["data"]["id"]))
    api.db.rows("UPDATE quotas SET instances_reserved = 0, vcpus_reserved = 0, memory_mb_reserved = 0")
    return launched["data"]["id"], workflow_id


def reserved(api: Api) -> int:
    return int(api.db.rows("SELECT instances_reserved FROM quotas")[0]["instances_reserved"])


async def test_a_failed_launch_begins_again_with_its_quota(api: Api) -> None:
    instance_id, workflow_id = await failed_launch(api)
    answer = await retry(api, workflow_id)
    assert answer.status_code == 202, answer.text
    data = answer.json()["data"]
    assert (data["kind"], data["state"], data["retry_of"]) == ("ProvisionInstance", "accepted", workflow_id)
    assert answer.headers["location"] == f"/v1/workflows/{data['id']}"
    assert answer.json()["meta"]["workflow_id"] == data["id"]
    instance = (await api.http.get(f"/v1/instances/{instance_id}")).json()["data"]
    assert (instance["status"], instance["error"], instance["workflow_id"]) == ("pending", None, data["id"])
    assert reserved(api) == 1
    order = api.db.rows('SELECT "order" FROM workflows WHERE id = %s', UUID(data["id"]))[0]["order"]
    assert order["workflow_id"] == data["id"]


async def test_a_launch_that_its_quota_has_no_room_for_any_more_is_refused_whole(api: Api) -> None:
    instance_id, workflow_id = await failed_launch(api)
    api.db.rows("UPDATE quotas SET instances_limit = 0")
    answer = await retry(api, workflow_id)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "quota_exceeded")
    assert (await api.http.get(f"/v1/instances/{instance_id}")).json()["data"]["status"] == "error"
    assert api.db.counts()["workflows"] == 1


async def test_who_may_not_use_secrets_launches_nothing_with_them_again(api: Api) -> None:
    await api.http.post("/v1/secrets", json={"name": "db", "value": "x"})
    _, workflow_id = await failed_launch(api)
    use = {"K": {"secret": "db", "secret_id": str(new_id()), "version": None, "delivery": "file"}}
    api.db.rows("UPDATE instances SET secrets = %s", Jsonb(use))
    scopes = ["workflows:*", "instances:*"]
    async with api.as_(api.db.key(api.db.project_id, "again", "owner", scopes=scopes)) as http:
        answer = await http.post(f"/v1/workflows/{workflow_id}/retry")
    assert (answer.status_code, answer.json()["error"]["details"]) == (403, {"permission": "secrets:use"})
    assert (await retry(api, workflow_id)).status_code == 202


async def test_a_failed_stop_is_another_stop_and_a_failed_delete_another_delete(api: Api) -> None:
    launched = await api.launch()
    instance_id = launched["data"]["id"]
    for verb, before, kind in (("stop", "running", "StopInstance"), ("delete", "error", "DeprovisionInstance")):
        api.put(launched["data"], before)
        path = f"/v1/instances/{instance_id}"
        asked = await (api.http.delete(path) if verb == "delete" else api.http.post(f"{path}/{verb}"))
        workflow_id = asked.json()["meta"]["workflow_id"]
        await asyncio.to_thread(settle, api.db, workflow_id, "failed", before)
        answer = await retry(api, workflow_id)
        assert (answer.status_code, answer.json()["data"]["kind"]) == (202, kind), answer.text
        row = api.db.rows("SELECT prior_status FROM workflows WHERE id = %s", UUID(answer.json()["data"]["id"]))[0]
        assert row["prior_status"] == before


async def test_two_at_once_are_one_and_the_other_learns_which(api: Api) -> None:
    _, workflow_id = await failed_launch(api)
    answers = await asyncio.gather(*(retry(api, workflow_id) for _ in range(10)))
    (won,) = [answer.json()["data"]["id"] for answer in answers if answer.status_code == 202]
    lost = [answer.json()["error"] for answer in answers if answer.status_code != 202]
    assert {(error["code"], error["details"]["workflow_id"]) for error in lost} == {("invalid_state", won)}
    assert reserved(api) == 1


async def test_the_same_key_is_answered_with_the_same_workflow(api: Api) -> None:
    _, workflow_id = await failed_launch(api)
    answers = await asyncio.gather(*(retry(api, workflow_id, **{"Idempotency-Key": "again-1"}) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["data"]["id"] for answer in answers}) == 1


async def test_what_runs_completed_moved_or_is_gone_is_not_retried(api: Api) -> None:
    launched = await api.launch()
    workflow_id = launched["meta"]["workflow_id"]

    async def refused(state: str) -> str:
        answer = await retry(api, workflow_id)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["details"]["state"]) == (409, "invalid_state", state)
        return str(error["message"])

    await refused("accepted")
    api.put(launched["data"], "running")
    await refused("completed")
    api.db.rows("UPDATE workflows SET state = 'failed' WHERE id = %s", UUID(workflow_id))
    await refused("running")
    api.put(launched["data"], "deleted")
    api.db.rows("UPDATE workflows SET state = 'failed' WHERE id = %s", UUID(workflow_id))
    await refused("deleted")
    api.db.rows("UPDATE workflows SET kind = 'HealInstance', actor = 'system' WHERE id = %s", UUID(workflow_id))
    assert "platform" in await refused("failed")
    absent = await retry(api, "0199b3f0-0000-7000-8000-000000000001")
    assert absent.status_code == 404


async def test_a_launch_that_a_failed_delete_came_after_is_not_retried(api: Api) -> None:
    instance_id, workflow_id = await failed_launch(api)
    deleting = (await api.http.delete(f"/v1/instances/{instance_id}")).json()["meta"]["workflow_id"]
    await asyncio.to_thread(settle, api.db, deleting, "failed", "error")
    answer = await retry(api, workflow_id)
    assert (answer.status_code, answer.json()["error"]["details"]["workflow_id"]) == (409, deleting)


async def test_a_cancelled_drain_begins_again(api: Api) -> None:
    (host, *_) = (await api.http.get("/v1/hosts")).json()["data"]
    drain = (await api.http.post(f"/v1/hosts/{host['id']}/drain")).json()["meta"]["workflow_id"]
    assert (await api.http.post(f"/v1/workflows/{drain}/cancel")).json()["data"]["state"] == "cancelled"
    answer = await retry(api, drain)
    assert (answer.status_code, answer.json()["data"]["kind"]) == (202, "DrainHost"), answer.text
    assert (await api.http.get(f"/v1/hosts/{host['id']}")).json()["data"]["state"] == "draining"


async def test_what_is_of_no_such_kind_says_what_to_do_instead(api: Api) -> None:
    _, workflow_id = await failed_launch(api)
    values = "resource_type = %s, kind = %s"
    for kind, of, told in (("ImportImage", "image", "DELETE /v1/images/"), ("ApplySomething", "network", "ask for it")):
        api.db.rows(f"UPDATE workflows SET {values} WHERE id = %s", of, kind, UUID(workflow_id))
        answer = await retry(api, workflow_id)
        assert answer.status_code == 409
        said = answer.json()["error"]["message"]
        assert told in said and f" a {kind}" not in said
