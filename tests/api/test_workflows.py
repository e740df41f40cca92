"""``/v1/workflows``: reading, waiting, cancelling."""

from __future__ import annotations

import asyncio
import time
from typing import get_args, get_type_hints
from uuid import UUID, uuid4

from model.workflows import Kind, Order
from tests.api.conftest import Api
from tests.api.test_accept import settle
from tests.api.test_balancers import balancer, running
from tests.services import eventually
from workflows.plans import PLANS


async def test_list_filters_and_pages(api: Api) -> None:
    first = await api.launch("a")
    second = await api.launch("b")
    api.put(first["data"], "running")
    stop = (await api.http.post(f"/v1/instances/{first['data']['id']}/stop")).json()

    async def found(**parameters: object) -> list[str]:
        answer = await api.http.get("/v1/workflows", params=parameters)
        assert answer.status_code == 200, answer.text
        return [row["id"] for row in answer.json()["data"]]

    ids = [body["meta"]["workflow_id"] for body in (stop, second, first)]
    assert await found() == ids
    assert await found(state="completed") == [ids[2]]
    assert await found(kind="StopInstance") == [ids[0]]
    assert await found(resource_id=first["data"]["id"]) == [ids[0], ids[2]]
    assert await found(resource_id=uuid4()) == []
    listed = (await api.http.get("/v1/workflows")).json()["data"]
    assert [row["resource_name"] for row in listed] == ["a", "b", "a"]
    for name, known in (("kind", "StopInstance"), ("state", "cancelled"), ("resource_type", "host")):
        refused = await api.http.get("/v1/workflows", params={name: "nah"})
        assert refused.status_code == 422
        assert known in refused.json()["error"]["details"]["fields"][0]["message"]
    page = (await api.http.get("/v1/workflows", params={"limit": 2})).json()
    assert await found(limit=2, cursor=page["meta"]["next_cursor"]) == [ids[2]]


async def test_parts_of_a_workflow_are_found_by_it(api: Api) -> None:
    whole, *parts = [(await api.launch(f"w-{n}"))["meta"]["workflow_id"] for n in range(3)]
    api.db.rows("UPDATE workflows SET parent_id = %s WHERE id = ANY(%s::uuid[])", whole, parts)
    found = (await api.http.get("/v1/workflows", params={"parent_id": whole})).json()["data"]
    assert [(row["id"], row["parent_id"]) for row in found] == [(id, whole) for id in reversed(parts)]
    assert (await api.http.get(f"/v1/workflows/{whole}")).json()["data"]["parent_id"] is None
    async with api.as_(api.db.project("other")) as http:
        assert (await http.get("/v1/workflows", params={"parent_id": whole})).json()["data"] == []


async def test_wait_returns_at_the_end_or_at_the_timeout(api: Api) -> None:
    workflow_id = (await api.launch())["meta"]["workflow_id"]
    began = time.monotonic()
    answer = await api.http.get(f"/v1/workflows/{workflow_id}/wait", params={"timeout": 0.3})
    assert 0.25 < time.monotonic() - began < 2
    assert (answer.status_code, answer.json()["data"]["state"]) == (200, "accepted")
    waiting = asyncio.create_task(api.http.get(f"/v1/workflows/{workflow_id}/wait", params={"timeout": 20}))
    await asyncio.sleep(0.2)
    await asyncio.to_thread(settle, api.db, workflow_id, "failed", "error")
    data = (await waiting).json()["data"]
    assert data["state"] == "failed"
    assert data["error"]["step"] == "image.ensure"
    assert data["finished_at"] is not None
    assert (await api.http.get(f"/v1/workflows/{workflow_id}/wait")).json()["data"]["state"] == "failed"


async def test_cancel_of_a_running_one_is_asked_for_and_written_down(api: Api) -> None:
    workflow_id = (await api.launch())["meta"]["workflow_id"]
    api.db.rows("UPDATE workflows SET state = 'running' WHERE id = %s", UUID(workflow_id))
    answer = await api.http.post(f"/v1/workflows/{workflow_id}/cancel")
    assert (answer.status_code, answer.json()["data"]["state"]) == (202, "running")
    assert answer.headers["location"] == f"/v1/workflows/{workflow_id}"
    asked = answer.json()["data"]["cancel_requested_at"]
    assert asked is not None
    again = await api.http.post(f"/v1/workflows/{workflow_id}/cancel")
    assert again.json()["data"]["cancel_requested_at"] == asked


async def test_cancel_at_once_by_many_settles_once(api: Api) -> None:
    workflow_id = (await api.launch())["meta"]["workflow_id"]
    answers = await asyncio.gather(*(api.http.post(f"/v1/workflows/{workflow_id}/cancel") for _ in range(10)))
    assert {(answer.status_code, answer.json()["data"]["state"]) for answer in answers} == {(202, "cancelled")}
    assert api.db.quota()["instances_reserved"] == 0
    assert api.db.one("SELECT count(*) AS n FROM events WHERE type = 'workflow.cancelled'")["n"] == 1


async def test_cancel_locks_the_balancer_before_its_workflow(api: Api) -> None:
    front, web = await balancer(api), await running(api)
    added = await api.http.post(f"/v1/lb/{front['id']}/targets", json={"instance_id": web["id"], "port": 80})
    workflow_id = added.json()["meta"]["workflow_id"]
    waits = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with api.db.connect() as run:
        with run.transaction():  # as the steps of its run do
            run.execute("SELECT FROM load_balancers WHERE id = %s FOR UPDATE", [front["id"]])
            asked = asyncio.create_task(api.http.post(f"/v1/workflows/{workflow_id}/cancel"))
            assert await eventually(lambda: api.db.rows(waits))
            run.execute("SELECT FROM workflows WHERE id = %s FOR UPDATE NOWAIT", [workflow_id])
        answer = await asked
    assert (answer.status_code, answer.json()["data"]["state"]) == (202, "cancelled")


async def test_absent_is_404(api: Api) -> None:
    for absent in (uuid4(), UUID(int=0)):
        for method, path in (("GET", ""), ("GET", "/wait"), ("GET", "/events"), ("POST", "/cancel")):
            answer = await api.http.request(method, f"/v1/workflows/{absent}{path}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path


def test_kinds_that_lists_are_filtered_by_are_the_plans_that_rows_are_of() -> None:
    of_rows = {plan.__name__ for plan in PLANS if get_type_hints(plan.run).get("order") is Order}
    assert of_rows == set(get_args(Kind))
