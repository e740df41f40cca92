"""Cron jobs that scale groups and deployments: what is accepted, what a run does, and what it says where it cannot."""

from __future__ import annotations

from typing import Any

import pytest

from api.cron_acts import Acting, Refused
from tests.api.conftest import Api
from tests.api.test_cron import call, make, running
from tests.api.test_groups import BODY, DEPLOYMENTS, GROUPS, at, settle
from tests.api.test_groups import make as group

Json = dict[str, Any]


def scales(of: Json, **numbers: int) -> Json:
    return {"workflow": {"kind": "ScaleGroup", "resource_id": of["data"]["id"], "parameters": numbers}}


async def deployment(api: Api) -> Json:
    answer = await api.http.post(DEPLOYMENTS, json={"name": "shop", "image": BODY["image"], "replicas": 1})
    assert answer.status_code == 202, answer.text
    made: Json = answer.json()
    return made


async def refused(api: Api, job: Json, run: str) -> Refused:
    with pytest.raises(Refused) as error:
        await Acting(api.app).act(call(job, run))
    return error.value


async def test_numbers_that_cannot_be_are_refused_before_there_is_a_job(api: Api) -> None:
    web, shop = await group(api, min_instances=1), await deployment(api)
    for target, field in (
        (scales(web, desired_count=6), "target.workflow.parameters"),
        (scales(web, desired_count=0), "target.workflow.parameters"),
        (scales(web, min_instances=6), "target.workflow.parameters"),
        (scales(web, desired_count=3, max_instances=2), "target.workflow.parameters"),
        (scales(web, desired_count=2000), "target.workflow.parameters.desired_count"),
        (scales(web), "target.workflow.parameters"),
        (scales(web, replicas=1, desired_count=1), "target.workflow.parameters.desired_count"),
        (scales(web, replicas=1), "target.workflow.resource_id"),
        (scales(shop, desired_count=1), "target.workflow.resource_id"),
        (scales({"data": {"id": api.db.project_id.hex}}, desired_count=1), "target.workflow.resource_id"),
    ):
        body = {"name": "wrong", "schedule": "@hourly", "target": target}
        answer = await api.http.post("/v1/cron/jobs", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_failed"), target
        assert answer.json()["error"]["details"]["fields"][0]["field"] == field, answer.text
    assert api.db.rows("SELECT id FROM cron_jobs") == []


async def test_who_may_not_scale_it_may_not_have_it_scaled(api: Api) -> None:
    web, shop = await group(api), await deployment(api)
    asked = {
        "scale": scales(web, desired_count=1),
        "bounds": scales(web, max_instances=9),
        "shop": scales(shop, replicas=2),
    }
    for scopes, allowed in (
        ([], set()),
        (["groups:scale"], {"scale"}),
        (["groups:scale", "groups:write"], {"scale", "bounds"}),
        (["deployments:scale"], {"shop"}),
    ):
        key = api.db.key(
            api.db.project_id, f"dev-{len(scopes)}-{len(allowed)}-{scopes[:1]}", "developer", scopes=["cron:*", *scopes]
        )
        async with api.as_(key) as http:
            for name, target in asked.items():
                body = {"name": f"{name}-{'-'.join(scopes).replace(':', '.')}", "schedule": "@hourly", "target": target}
                answer = await http.post("/v1/cron/jobs", json=body)
                assert answer.status_code == (201 if name in allowed else 403), (scopes, name, answer.text)


async def test_a_run_scales_once_and_the_group_says_which_job_it_was(api: Api) -> None:
    web = await group(api, desired_count=1)
    settle(api.db, web)
    job = await make(api, "morning", target=scales(web, desired_count=4))
    run, acting = running(api, job), Acting(api.app)
    assert await acting.act(call(job, run))
    assert await acting.act(call(job, run)), "a step that is repeated finds what it started"
    last, *_ = activities = (await api.http.get(f"{at(web)}/activities")).json()["data"]
    assert [row["action"] for row in activities] == ["scale", "create"]
    assert (last["cause"], last["desired_before"], last["desired_after"]) == ("cron:morning", 1, 4)
    assert (await api.http.get(f"/v1/cron/jobs/{job['id']}/runs/{run}")).json()["data"]["workflow_id"] == last[
        "workflow_id"
    ]
    assert (await api.http.get(at(web))).json()["data"]["desired_count"] == 4
    # What is on its way is not begun again by the next time; what is not there, or is called off, is.
    assert not await acting.act(call(job, running(api, job)))
    assert len((await api.http.get(f"{at(web)}/activities")).json()["data"]) == 2
    api.db.rows("UPDATE workflows SET cancel_requested_at = now() WHERE id = %s", last["workflow_id"])
    assert await acting.act(call(job, running(api, job)))
    settle(api.db, web)
    assert await acting.act(call(job, running(api, job)))
    assert len((await api.http.get(f"{at(web)}/activities")).json()["data"]) == 4


async def test_bounds_take_the_number_along_as_far_as_they_must(api: Api) -> None:
    web = await group(api, desired_count=2)
    settle(api.db, web)
    acting = Acting(api.app)
    for numbers, begins, wanted in (
        ({"min_instances": 4}, True, (4, 4, 5)),
        ({"min_instances": 1, "max_instances": 9}, False, (1, 4, 9)),
        ({"max_instances": 3}, True, (1, 3, 3)),
        ({"desired_count": 8, "max_instances": 8}, True, (1, 8, 8)),
    ):
        job = await make(api, f"job-{len(str(numbers))}-{wanted[1]}", target=scales(web, **numbers))
        run = running(api, job)
        for _ in range(2):
            assert await acting.act(call(job, run)) == begins, numbers
        data = (await api.http.get(at(web))).json()["data"]
        assert (data["min_instances"], data["desired_count"], data["max_instances"]) == wanted
        settle(api.db, web)


async def test_deployment_is_scaled_by_its_replicas(api: Api) -> None:
    shop = await deployment(api)
    job = await make(api, "evening", target=scales(shop, replicas=3))
    assert await Acting(api.app).act(call(job, running(api, job)))
    assert (await api.http.get(f"{DEPLOYMENTS}/{shop['data']['id']}")).json()["data"]["replicas"] == 3


async def test_a_run_is_held_to_what_the_group_is_by_then(api: Api) -> None:
    web = await group(api)
    job = await make(api, "morning", target=scales(web, desired_count=5))
    assert (await api.http.patch(at(web), json={"max_instances": 3})).status_code == 200
    error = await refused(api, job, running(api, job))
    assert (error.code, "0 to 3" in error.message) == ("validation_failed", True)
    assert (await api.http.delete(at(web))).status_code == 202
    error = await refused(api, job, running(api, job))
    assert (error.code, error.message) == ("invalid_state", "group web is deleting")
    api.db.rows("UPDATE scaling_groups SET status = 'deleted', deleted_at = now() - interval '2 days'")
    error = await refused(api, job, running(api, job))
    assert (error.code, error.message) == ("not_found", f"there is no group {web['data']['id']}")
    body = {"name": "morning", "schedule": "@daily", "target": job["target"]}
    again = await api.http.put(f"/v1/cron/jobs/{job['id']}", json=body)
    assert again.json()["error"]["details"]["fields"][0]["field"] == "target.workflow.resource_id"


async def test_jobs_are_listed_by_what_they_name(api: Api) -> None:
    web, shop, instance = await group(api), await deployment(api), (await api.launch())["data"]
    await make(api, "morning", target=scales(web, desired_count=4))
    await make(api, "evening", target=scales(web, desired_count=1))
    await make(api, "shop", target=scales(shop, replicas=1))
    await make(api, "backup", target={"exec": {"instance_id": instance["id"], "cmd": "true"}})
    await make(api, "stop", target={"workflow": {"kind": "StopInstance", "resource_id": instance["id"]}})
    await make(api, "hook")
    for id, names in (
        (web["data"]["id"], ["evening", "morning"]),
        (shop["data"]["id"], ["shop"]),
        (instance["id"], ["stop", "backup"]),
        (api.db.project_id, []),
    ):
        found = (await api.http.get(f"/v1/cron/jobs?resource_id={id}")).json()["data"]
        assert [row["name"] for row in found] == names
    assert (await api.http.get("/v1/cron/jobs?resource_id=web")).status_code == 422


async def test_scale_under_one_key_is_one_wish(api: Api) -> None:
    web = await group(api)
    headers = {"Idempotency-Key": "once"}
    first = await api.http.put(f"{at(web)}/scale", json={"desired_count": 3}, headers=headers)
    await api.http.put(f"{at(web)}/scale", json={"desired_count": 1})
    again = await api.http.put(f"{at(web)}/scale", json={"desired_count": 3}, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json()["meta"]["workflow_id"] == first.json()["meta"]["workflow_id"]
    assert (await api.http.get(at(web))).json()["data"]["desired_count"] == 1
    other = await api.http.put(f"{at(web)}/scale", json={"desired_count": 2}, headers=headers)
    assert other.json()["error"]["code"] == "idempotency_mismatch"
    assert (await api.http.put(f"{GROUPS}/{api.db.project_id}/scale", json={"desired_count": 2})).status_code == 404
