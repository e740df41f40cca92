"""Launch, read, list, start, stop, delete: the contract of ``/v1/instances``."""

from __future__ import annotations

import asyncio
import datetime as dt
from uuid import UUID, uuid4

import pytest

from model.instances import Status
from tests.api.conftest import BODY, Api
from tests.services import eventually


async def test_launch_is_202_with_the_resource_and_its_workflow(api: Api) -> None:
    answer = await api.http.post(
        "/v1/instances", json=BODY | {"env": ["A=1=2", "B="], "ports": "8080:80, 53/udp", "labels": {"tier": "web"}}
    )
    assert answer.status_code == 202
    body = answer.json()
    data, workflow_id = body["data"], body["meta"]["workflow_id"]
    assert body["error"] is None
    assert answer.headers["location"] == f"/v1/workflows/{workflow_id}"
    assert answer.headers["etag"] == '"1"'
    assert data["status"] == "pending"
    assert data["workflow_id"] == workflow_id
    assert UUID(data["id"]).version == UUID(workflow_id).version == 7
    assert dt.datetime.fromisoformat(data["created_at"]).tzinfo is not None
    assert data["env"] == {"A": "1=2", "B": ""}
    assert data["ports"] == [
        {"host_port": 8080, "container_port": 80, "protocol": "tcp"},
        {"host_port": None, "container_port": 53, "protocol": "udp"},
    ]
    assert (data["vcpus"], data["memory_mb"], data["instance_type"]) == (1, 512, "basic-1")
    workflow = (await api.http.get(answer.headers["location"])).json()["data"]
    assert (workflow["kind"], workflow["state"], workflow["resource_id"]) == (
        "ProvisionInstance",
        "accepted",
        data["id"],
    )
    assert workflow["actor"] == "key:admin"
    assert workflow["temporal_url"].endswith(workflow_id)
    assert api.db.counts() == {
        "instances": 1,
        "workflows": 1,
        "events": 1,
        "idempotency_keys": 0,
        "host_ports": 0,
    }
    quota = api.db.quota()
    assert (quota["instances_reserved"], quota["vcpus_reserved"], quota["memory_mb_reserved"]) == (1, 1, 512)
    assert quota["instances_used"] == 0


async def test_accepted_run_is_started_with_its_order(api: Api) -> None:
    body = await api.launch()
    handle = api.app.state.temporal.get_workflow_handle(body["meta"]["workflow_id"])

    async def started() -> bool:
        try:
            return (await handle.describe()).workflow_type == "ProvisionInstance"
        except Exception:
            return False

    assert await eventually(started)


@pytest.mark.parametrize(
    ("cmd", "expected"),
    [("sleep 10", ["sleep", "10"]), (["a b", "c"], ["a b", "c"]), ("sh -c 'a b'", ["sh", "-c", "a b"]), (None, None)],
)
async def test_cmd_is_a_list_or_split_as_a_shell_would(api: Api, cmd: object, expected: object) -> None:
    assert (await api.launch(cmd=cmd))["data"]["cmd"] == expected


async def test_list_is_newest_first_and_pages_by_cursor(api: Api) -> None:
    made = [(await api.launch(f"web-{number}"))["data"]["id"] for number in range(7)]
    seen, cursor = [], None
    for expected in (3, 3, 1):
        parameters = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = (await api.http.get("/v1/instances", params=parameters)).json()
        assert len(page["data"]) == expected
        seen += [item["id"] for item in page["data"]]
        cursor = page["meta"].get("next_cursor")
        assert bool(cursor) == (len(seen) < 7)
        # What comes meanwhile does not move later pages.
        await api.launch(f"late-{len(seen)}")
    assert seen == made[::-1]


async def test_exact_page_has_no_next(api: Api) -> None:
    for number in range(2):
        await api.launch(f"web-{number}")
    assert "next_cursor" not in (await api.http.get("/v1/instances?limit=2")).json()["meta"]


async def test_list_filters(api: Api) -> None:
    a = (await api.launch("a", labels={"tier": "web", "odd": "x=y"}))["data"]
    b = (await api.launch("b", labels={"tier": "db"}))["data"]
    c = (await api.launch("c"))["data"]
    api.put(b, "running")
    api.put(c, "deleted")

    async def found(**parameters: str) -> list[str]:
        answer = await api.http.get("/v1/instances", params=parameters)
        assert answer.status_code == 200, answer.text
        return [item["name"] for item in answer.json()["data"]]

    assert await found() == ["b", "a"]
    assert await found(status="running") == ["b"]
    assert await found(status="deleted") == ["c"]
    assert await found(name="a") == ["a"]
    assert await found(name="nobody") == []
    assert await found(label="tier=web") == ["a"]
    assert await found(label="odd=x=y") == ["a"]
    assert await found(label="tier=") == []
    assert a["id"] != b["id"]


async def test_etag_and_if_match(api: Api) -> None:
    instance = (await api.launch())["data"]
    api.put(instance, "running")
    path = f"/v1/instances/{instance['id']}"
    etag = (await api.http.get(path)).headers["etag"]
    refused = await api.http.post(f"{path}/stop", headers={"If-Match": '"99"'})
    assert refused.status_code == 412
    assert refused.json()["error"]["code"] == "precondition_failed"
    assert (await api.http.delete(path, headers={"If-Match": "W/garbage"})).status_code == 412
    assert api.db.counts()["workflows"] == 1
    stopping = await api.http.post(f"{path}/stop", headers={"If-Match": f'"7", {etag}'})
    assert stopping.status_code == 202
    assert stopping.headers["etag"] == '"2"' != etag
    api.put(instance, "stopped")
    for nothing in ("", ","):
        assert (await api.http.delete(path, headers={"If-Match": nothing})).status_code == 412
    assert (await api.http.delete(path, headers={"If-Match": "*"})).status_code == 202
    deleting = (await api.http.get(path)).json()["data"]["version"]
    # The same request again, and one that has seen what there is; nobody else has.
    for version, status in ((deleting - 1, 202), (deleting, 202), (deleting - 2, 412), (deleting + 1, 412)):
        assert (await api.http.delete(path, headers={"If-Match": f'"{version}"'})).status_code == status
    assert api.db.counts()["workflows"] == 3


async def test_start_is_refused_in_any_other_state(api: Api) -> None:
    for status in Status:
        instance = (await api.launch(status))["data"]
        api.put(instance, status)
        before = api.db.counts()
        answer = await api.http.post(f"/v1/instances/{instance['id']}/start")
        if status == Status.STOPPED:
            assert answer.status_code == 202
            assert answer.json()["data"]["status"] == "starting"
            continue
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "invalid_state")
        assert answer.json()["error"]["details"]["state"] == status
        assert api.db.counts() == before


async def test_refusal_names_the_workflow_in_the_way(api: Api) -> None:
    instance = (await api.launch())["data"]
    answer = await api.http.post(f"/v1/instances/{instance['id']}/stop")
    assert answer.status_code == 409
    assert answer.json()["error"]["details"] == {"state": "pending", "workflow_id": instance["workflow_id"]}


async def test_two_verbs_at_once_one_wins(api: Api) -> None:
    instance = (await api.launch())["data"]
    api.put(instance, "running")
    answers = await asyncio.gather(*(api.http.post(f"/v1/instances/{instance['id']}/stop") for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 9


async def test_delete_again_while_deleting_is_the_same_workflow(api: Api) -> None:
    instance = (await api.launch())["data"]
    api.put(instance, "running")
    path = f"/v1/instances/{instance['id']}"
    answers = await asyncio.gather(*(api.http.delete(path) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["meta"]["workflow_id"] for answer in answers}) == 1
    assert api.db.one("SELECT count(*) AS n FROM workflows WHERE kind = 'DeprovisionInstance'")["n"] == 1
    forced = await api.http.delete(path, params={"force": "true"})
    assert forced.status_code == 202


async def test_deleted_is_readable_for_a_day_and_its_name_is_free_at_once(api: Api) -> None:
    instance = (await api.launch())["data"]
    api.put(instance, "deleted")
    path = f"/v1/instances/{instance['id']}"
    again = await api.http.delete(path)
    assert again.status_code == 200
    assert "workflow_id" not in again.json()["meta"]
    assert (await api.http.get(path)).json()["data"]["status"] == "deleted"
    await api.launch(instance["name"])
    api.db.rows(
        "UPDATE instances SET deleted_at = now() - interval '24 hours 1 minute' WHERE id = %s", UUID(instance["id"])
    )
    assert (await api.http.get(path)).status_code == 404
    assert (await api.http.delete(path)).status_code == 404
    listed = await api.http.get("/v1/instances", params={"status": "deleted"})
    assert listed.json()["data"] == [], "what GET does not know, a list does not show"


async def test_delete_cancels_what_is_in_the_way(api: Api) -> None:
    first = (await api.launch("accepted"))["data"]
    second = (await api.launch("running"))["data"]
    api.db.rows("UPDATE workflows SET state = 'running' WHERE id = %s", UUID(second["workflow_id"]))
    for instance in (first, second):
        assert (await api.http.delete(f"/v1/instances/{instance['id']}")).status_code == 202
    rows = {str(row["id"]): row for row in api.db.rows("SELECT * FROM workflows")}
    assert rows[first["workflow_id"]]["state"] == "cancelled"
    assert rows[first["workflow_id"]]["error"]["code"] == "cancelled"
    assert rows[second["workflow_id"]]["state"] == "running"
    assert rows[second["workflow_id"]]["cancel_requested_at"] is not None
    told = api.db.rows("SELECT * FROM events WHERE type = 'workflow.cancelled'")
    assert [str(event["workflow_id"]) for event in told] == [first["workflow_id"]]
    assert told[0]["data"]["kind"] == "ProvisionInstance"


async def test_name_taken_among_the_living(api: Api) -> None:
    await api.launch()
    before = api.db.counts()
    answer = await api.http.post("/v1/instances", json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "name_taken")
    assert "in error" not in answer.json()["error"]["message"]
    assert api.db.counts() == before
    assert api.db.quota()["instances_reserved"] == 1
    api.db.rows("UPDATE instances SET status = 'error'")
    error = (await api.http.post("/v1/instances", json=BODY)).json()["error"]
    assert "in error: delete it" in error["message"]
    assert error["details"] == {"name": BODY["name"], "state": "error"}


async def test_one_name_in_parallel_is_one_instance(api: Api) -> None:
    answers = await asyncio.gather(*(api.http.post("/v1/instances", json=BODY) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 19
    assert api.db.quota()["instances_reserved"] == 1


async def test_port_that_every_host_holds_is_taken(api: Api) -> None:
    holder = (await api.launch("holder"))["data"]

    def hold(host: str, protocol: str) -> None:
        api.db.rows(
            "INSERT INTO host_ports (host_id, protocol, port, project_id, instance_id) VALUES (%s, %s, 8080, %s, %s)",
            *(api.db.hosts[host], protocol, api.db.project_id, UUID(holder["id"])),
        )

    hold("one", "tcp")
    await api.launch("free-elsewhere", ports="8080:80")
    refused = await api.http.post("/v1/instances", json=BODY | {"ports": "8080:80", "host": "one"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "port_taken")
    hold("two", "tcp")
    refused = await api.http.post("/v1/instances", json=BODY | {"ports": "8080:80"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "port_taken")
    await api.launch("other-protocol", ports="8080:80/udp")


async def test_no_capacity(api: Api) -> None:
    for more, lacks in (
        ({"host": "nowhere"}, "no host named 'nowhere'"),
        ({"backend": "simulated"}, "engine simulated"),
        ({"host_labels": {"zone": "a"}}, "label zone=a"),
    ):
        answer = await api.http.post("/v1/instances", json=BODY | more)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_capacity"), more
        assert lacks in answer.json()["error"]["message"]
    api.db.rows("UPDATE hosts SET allocated_memory_mb = memory_mb - 500")
    answer = await api.http.post("/v1/instances", json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_capacity")
    api.db.rows("UPDATE hosts SET allocated_memory_mb = 0, state = 'cordoned'")
    assert (await api.http.post("/v1/instances", json=BODY)).status_code == 409
    assert api.db.counts()["instances"] == 0


@pytest.mark.parametrize(("what", "limit"), [("instances", 7), ("vcpus", 7), ("memory_mb", 7 * 512 + 511)])
async def test_quota_lets_exactly_as_many_through(api: Api, what: str, limit: int) -> None:
    api.db.rows(f"UPDATE quotas SET {what}_limit = {limit}")
    answers = await asyncio.gather(
        *(api.http.post("/v1/instances", json=BODY | {"name": f"web-{n}"}) for n in range(50))
    )
    accepted = [answer for answer in answers if answer.status_code == 202]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert (len(accepted), len(refused)) == (7, 43)
    assert all(answer.json()["error"]["code"] == "quota_exceeded" for answer in refused)
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    error = refused[0].json()["error"]
    told = {name: error["details"][name] for name in ("quota", "limit", "used", "reserved", "asked")}
    each = {"instances": 1, "vcpus": 1, "memory_mb": 512}[what]
    assert told == {"quota": what, "limit": limit, "used": 0, "reserved": 7 * each, "asked": each}
    assert f"may have {limit} " in error["message"] and f"asks for {each} more" in error["message"]
    assert api.db.counts() | {"idempotency_keys": 0} == {
        "instances": 7,
        "workflows": 7,
        "events": 7,
        "idempotency_keys": 0,
        "host_ports": 0,
    }
    assert api.db.quota()[f"{what}_reserved"] == {"instances": 7, "vcpus": 7, "memory_mb": 3584}[what]


async def test_absent_instance_is_404_for_every_verb(api: Api) -> None:
    for absent in (uuid4(), UUID(int=0)):
        path = f"/v1/instances/{absent}"
        for method, route in (("GET", path), ("DELETE", path), ("POST", f"{path}/start"), ("POST", f"{path}/stop")):
            answer = await api.http.request(method, route)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), (method, route)


async def test_foreign_and_absent_give_the_same_answer(api: Api) -> None:
    mine = (await api.launch())["data"]
    async with api.as_(api.db.project("stranger")) as stranger:
        for of in ("/v1/instances/{}", "/v1/workflows/{}", "/v1/workflows/{}/wait", "/v1/workflows/{}/events"):
            known = mine["id"] if "instances" in of else mine["workflow_id"]
            absent = str(uuid4())
            answers = [(await stranger.get(of.format(which))) for which in (known, absent)]
            assert [answer.status_code for answer in answers] == [404, 404]
            texts = [
                answer.json()["error"]["message"].replace(w, "")
                for answer, w in zip(answers, (known, absent), strict=True)
            ]
            assert texts[0] == texts[1]
        for method, of in (
            ("DELETE", f"/v1/instances/{mine['id']}"),
            ("POST", f"/v1/instances/{mine['id']}/stop"),
            ("POST", f"/v1/workflows/{mine['workflow_id']}/cancel"),
        ):
            assert (await stranger.request(method, of)).status_code == 404
        assert (await stranger.get("/v1/instances")).json()["data"] == []
        assert (await stranger.get("/v1/workflows")).json()["data"] == []
        # The same name is free there, and the same idempotency key is another one.
        assert (await stranger.post("/v1/instances", json=BODY)).status_code == 202
    assert api.db.quota()["instances_reserved"] == 1


async def test_hosts_types_projects_and_quotas(api: Api) -> None:
    await api.launch()
    hosts = (await api.http.get("/v1/hosts")).json()["data"]
    assert {host["name"] for host in hosts} == {"one", "two"}
    host = (await api.http.get(f"/v1/hosts/{hosts[0]['id']}")).json()["data"]
    assert host["capacity"] == {"vcpus": 64, "memory_mb": 65536}
    assert host["allocated"] == {"vcpus": 0, "memory_mb": 0}
    assert host["ports_held"] == 0
    types = (await api.http.get("/v1/instance-types")).json()["data"]
    assert [kind["name"] for kind in types][:2] == ["basic-1", "basic-2"]
    assert len(types) == 7
    (project,) = (await api.http.get("/v1/projects")).json()["data"]
    quotas = (await api.http.get(f"/v1/projects/{project['id']}/quotas")).json()["data"]
    assert quotas["instances"] == {"limit": None, "used": 0, "reserved": 1}
    for path in (f"/v1/hosts/{uuid4()}", f"/v1/projects/{uuid4()}", f"/v1/projects/{uuid4()}/quotas"):
        assert (await api.http.get(path)).status_code == 404
