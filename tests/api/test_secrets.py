"""Secrets: kept, renewed, destroyed, named by instances; in no answer, and in clear in no row."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg
import pytest

from model.base import new_id
from model.keyring import new_master_key
from model.settings import Settings
from tests.api.conftest import Api
from tests.api.test_lifetimes import agent

VALUE = "planted-7fK2qP9sV4xT"


async def add(api: Api, name: str = "db", value: str = VALUE, status: int = 201, **headers: str) -> dict[str, Any]:
    answer = await api.http.post("/v1/secrets", json={"name": name, "value": value}, headers=headers)
    assert answer.status_code == status, answer.text
    assert VALUE not in answer.text
    body: dict[str, Any] = answer.json()
    return body["data"] or body["error"]


async def ask(api: Api, method: str, path: str, status: int = 200, **more: Any) -> Any:
    answer = await api.http.request(method, f"/v1/secrets{path}", **more)
    assert answer.status_code == status, answer.text
    assert VALUE not in answer.text
    if not answer.content:
        return None
    body = answer.json()
    return body["error"] or body["data"]


async def launch(api: Api, env: Any, status: int = 202, **more: Any) -> dict[str, Any]:
    answer = await api.http.post("/v1/instances", json={"name": "web", "image": "a", "env": env} | more)
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    return body["data"] or body["error"]


async def test_life_of_a_secret(api: Api) -> None:
    made = await add(api)
    assert (made["name"], made["current_version"], made["description"]) == ("db", 1, "")
    assert await ask(api, "GET", "/db") == await ask(api, "GET", f"/{made['id']}") == made
    other = await add(api, "other")
    assert await ask(api, "GET", "") == [other, made]
    assert await ask(api, "GET", "", params={"name": "db"}) == [made]
    described = await ask(api, "PATCH", "/db", json={"description": "of the shop"})
    assert (described["description"], described["version"]) == ("of the shop", 2)
    assert (await ask(api, "PUT", "/db", json={"description": ""}))["version"] == 3
    await ask(api, "PATCH", "/db", 412, json={"description": "x"}, headers={"If-Match": '"2"'})
    second = await ask(api, "POST", "/db/versions", 201, json={"value": "another"})
    assert second["version"] == 2
    assert (await ask(api, "POST", f"/{made['id']}/rotate", json={"value": "a third"}))["current_version"] == 3
    assert [one["version"] for one in await ask(api, "GET", "/db/versions")] == [3, 2, 1]
    assert (await ask(api, "DELETE", "/db/versions/3", 409))["code"] == "in_use"
    assert await ask(api, "DELETE", "/db/versions/1", 204) is None
    assert (await ask(api, "DELETE", "/db/versions/1", 404))["code"] == "not_found"
    assert [one["destroyed_at"] is None for one in await ask(api, "GET", "/db/versions")] == [True, True, False]
    assert api.db.one("SELECT * FROM secret_versions WHERE version = 1 AND secret_id = %s", made["id"])["nonce"] is None
    assert await ask(api, "DELETE", "/db", 204) is None
    await ask(api, "GET", "/db", 404)
    assert api.db.one("SELECT count(*) FROM secret_versions")["count"] == 1


async def test_value_is_in_no_row_and_the_api_cannot_select_what_it_wrote(api: Api) -> None:
    await add(api, **{"Idempotency-Key": "a"})
    await ask(api, "POST", "/db/rotate", json={"value": VALUE + "2"}, headers={"Idempotency-Key": "b"})
    tables = [row["tablename"] for row in api.db.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    for table in tables:
        for row in api.db.rows(f"SELECT t::text AS text, row_to_json(t)::text AS json FROM {table} t"):
            for text in row.values():
                assert VALUE not in text
                assert VALUE.encode().hex() not in text
    assert len({bytes(row["ciphertext"]) for row in api.db.rows("SELECT ciphertext FROM secret_versions")}) == 2
    with api.db.connect("cairn_api") as connection:
        for column in ("ciphertext", "nonce", "*"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"SELECT {column} FROM secret_versions")


async def test_a_value_that_is_too_long_is_told_in_bytes(api: Api) -> None:
    for value, size in (("x" * 70_000, 70_000), ("é" * 40_000, 80_000)):
        error = await add(api, value=value, status=422)
        assert error["details"]["fields"] == [{"field": "value", "message": f"it has {size} bytes, and may have 65536"}]


async def test_same_request_again_makes_no_other_and_its_key_tells_nothing_of_the_value(api: Api) -> None:
    made = await add(api, **{"Idempotency-Key": "a"})
    assert await add(api, **{"Idempotency-Key": "a"}) == made
    assert (await add(api, status=409))["code"] == "name_taken"
    assert (await add(api, value="other", status=409, **{"Idempotency-Key": "a"}))["code"] == "idempotency_mismatch"
    key = {"Idempotency-Key": "b"}
    second = await ask(api, "POST", "/db/versions", 201, json={"value": "x"}, headers=key)
    assert await ask(api, "POST", "/db/versions", 201, json={"value": "x"}, headers=key) == second
    assert (await ask(api, "POST", "/db/versions", 409, json={"value": "y"}, headers=key))["code"]
    assert (await ask(api, "GET", "/db"))["current_version"] == 2
    # Also when another master key is the newest by now, as long as that one is there.
    keys = f"{new_master_key('newer')} {api.app.state.settings.master_keys.get_secret_value()}"
    api.app.state.settings = Settings(**(api.app.state.settings.model_dump() | {"master_keys": keys}))
    assert await add(api, **{"Idempotency-Key": "a"}) == made | {"current_version": 2, "version": 2} | {
        "updated_at": (await ask(api, "GET", "/db"))["updated_at"]
    }
    assert await ask(api, "POST", "/db/versions", 201, json={"value": "x"}, headers=key) == second
    assert (await ask(api, "POST", "/db/versions", 409, json={"value": "y"}, headers=key))["code"]
    # Under another master key the same request leaves another fingerprint: it is no plain hash.
    before = bytes(api.db.one("SELECT fingerprint FROM idempotency_keys WHERE key = 'a'")["fingerprint"])
    api.db.rows("DELETE FROM idempotency_keys")
    await ask(api, "DELETE", "/db", 204)

    api.app.state.settings = Settings(**(api.app.state.settings.model_dump() | {"master_keys": new_master_key("x")}))
    await add(api, **{"Idempotency-Key": "a"})
    assert bytes(api.db.one("SELECT fingerprint FROM idempotency_keys WHERE key = 'a'")["fingerprint"]) != before


async def test_many_at_once_make_one_data_key_and_versions_without_gaps(api: Api) -> None:
    await asyncio.gather(*(add(api, f"s{number}") for number in range(8)))
    assert api.db.one("SELECT count(*) FROM data_keys")["count"] == 1
    renewals = (ask(api, "POST", "/s0/versions", 201, json={"value": str(number)}) for number in range(8))
    versions = [one["version"] for one in await asyncio.gather(*renewals)]
    assert sorted(versions) == [2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    "body",
    [
        {"name": "a b", "value": "x"},
        {"name": "a"},
        {"name": "a", "value": ""},
        {"name": "a", "value": VALUE + "\x00"},
        {"name": "a", "value": VALUE + "\ud800"},
        {"name": "a", "value": VALUE * 4000},
        {"name": "a", "value": VALUE + "é" * 33000},
        {"name": "a", "value": [VALUE]},
        {"name": "a", "value": "x", "description": "d" * 2000},
    ],
)
async def test_bad_input_is_refused_without_repeating_it(shared_api: Api, body: dict[str, Any]) -> None:
    answer = await shared_api.http.post(
        "/v1/secrets", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (422, 400), answer.text
    assert VALUE not in answer.text


async def test_secrets_of_another_project_are_not_there(api: Api) -> None:
    made = await add(api)
    async with api.as_(api.db.project("other")) as http:
        assert (await http.get("/v1/secrets")).json()["data"] == []
        for path in ("/db", f"/{made['id']}"):
            for method, rest, body in (
                ("GET", "", None),
                ("GET", "/versions", None),
                ("PATCH", "", {"description": ""}),
                ("POST", "/versions", {"value": "x"}),
                ("POST", "/rotate", {"value": "x"}),
                ("DELETE", "/versions/1", None),
                ("DELETE", "", None),
            ):
                answer = await http.request(method, f"/v1/secrets{path}{rest}", json=body)
                assert answer.status_code == 404, (method, path, rest, answer.text)
        body = {"name": "web", "image": "a", "env": {"K": {"secret": made["id"]}}}
        assert (await http.post("/v1/instances", json=body)).status_code == 422
        assert (await http.post("/v1/secrets", json={"name": "db", "value": "x"})).status_code == 201
    assert api.db.one("SELECT count(*) FROM data_keys")["count"] == 2


async def test_rights(api: Api) -> None:
    await add(api)
    roles = {"viewer": (403, 403, 403), "developer": (200, 403, 202), "admin": (200, 201, 202)}
    for role, (reads, writes, launches) in roles.items():
        async with api.as_(api.db.key(api.db.project_id, role, role)) as http:
            assert (await http.get("/v1/secrets")).status_code == reads
            body: dict[str, Any] = {"name": role, "value": "x"}
            assert (await http.post("/v1/secrets", json=body)).status_code == writes
            body = {"name": role, "image": "a", "env": {"K": {"secret": "db"}}}
            assert (await http.post("/v1/instances", json=body)).status_code == launches
    scoped = api.db.key(api.db.project_id, "scoped", "owner", scopes=["instances:*"])
    async with api.as_(scoped) as http:
        answer = await http.post("/v1/instances", json=body | {"name": "scoped"})
        assert (answer.status_code, answer.json()["error"]["details"]["permission"]) == (403, "secrets:use")
        assert (await http.post("/v1/instances", json=body | {"name": "scoped", "env": {}})).status_code == 202


async def test_instance_names_secrets_and_keeps_them_from_being_deleted(api: Api) -> None:
    made = await add(api)
    await ask(api, "POST", "/db/versions", 201, json={"value": "2"})
    env = {"PLAIN": "p", "K": {"secret": "db"}, "OLD": {"secret": made["id"], "version": 1, "as": "env"}}
    instance = await launch(api, env)
    shown = {"PLAIN": "p", "K": {"secret": "db", "as": "file"}, "OLD": {"secret": "db", "version": 1, "as": "env"}}
    assert instance["env"] == shown
    read = await api.http.get(f"/v1/instances/{instance['id']}")
    assert read.json()["data"]["env"] == shown
    assert api.db.one("SELECT env FROM instances")["env"] == {"PLAIN": "p"}, "as the release before this reads it"
    listed = ["PLAIN=p", {"name": "K", "secret": "db"}, {"name": "OLD", "secret": "db", "version": 1, "as": "env"}]
    assert (await launch(api, listed, name="listed"))["env"] == shown
    api.db.rows("UPDATE instances SET status = 'deleted' WHERE name = 'listed'")
    refused = await ask(api, "DELETE", "/db", 409)
    assert (refused["code"], refused["details"]["instances"]) == ("in_use", ["web"])
    assert (await ask(api, "DELETE", "/db/versions/1", 409))["details"]["instances"] == ["web"]
    api.put(instance, "deleted")
    await ask(api, "DELETE", "/db/versions/1", 204)
    await ask(api, "DELETE", "/db", 204)


async def test_launch_and_delete_at_once_never_leave_an_instance_without_its_secret(api: Api) -> None:
    for number in range(5):
        made = await add(api, f"s{number}")
        body = {"name": f"i{number}", "image": "a", "env": {"K": {"secret": made["id"]}}}
        launched, deleted = await asyncio.gather(
            api.http.post("/v1/instances", json=body), api.http.delete(f"/v1/secrets/{made['id']}")
        )
        assert (launched.status_code, deleted.status_code) in ((202, 409), (422, 204))


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"K": {"secret": "nobody"}}, "env.K"),
        ({"K": {"secret": str(new_id())}}, "env.K"),
        ({"K": {"secret": "db", "version": 7}}, "env.K"),
        ({"K": {"secret": "db", "version": 0}}, "env.K"),
        ({"K": {"secret": "db", "as": "volume"}}, "env.K"),
        ({"K": {"secret": "db", "more": 1}}, "env.K"),
        ({"../K": {"secret": "db"}}, "env"),
        ({"K": {"secret": "db"}, "K_FILE": "x"}, "env"),
        ([{"secret": "db"}], "env"),
        ([{"name": "K", "value": "db"}], "env"),
        ([{"name": 7, "secret": "db"}], "env"),
        ([{"name": "K", "secret": "db", "more": 1}], "env.K"),
        ([{"name": "K", "secret": "nobody"}], "env.K"),
        (["K=V", {"name": "K", "secret": "db"}], "env"),
        ([{"name": "K", "secret": "db"}, "K_FILE=x"], "env"),
    ],
)
async def test_bad_references(shared_api: Api, env: Any, said: str) -> None:
    await shared_api.http.post("/v1/secrets", json={"name": "db", "value": "x"})
    refused = await launch(shared_api, env, 422)
    assert any(field["field"].startswith(said) for field in refused["details"]["fields"]), refused


async def test_api_without_master_keys_keeps_none(api: Api) -> None:

    api.app.state.settings = Settings(**(api.app.state.settings.model_dump() | {"master_keys": None}))
    answer = await api.http.post("/v1/secrets", json={"name": "db", "value": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")


async def test_renewal_of_a_secret_that_was_forgotten_since_is_no_error_of_ours(api: Api) -> None:
    await add(api)
    again: dict[str, Any] = {"json": {"value": "another"}, "headers": {"Idempotency-Key": "renewal"}}
    await ask(api, "POST", "/db/versions", 201, **again)
    await ask(api, "DELETE", "/db", 204)
    await add(api)
    assert (await ask(api, "POST", "/db/versions", 404, **again))["code"] == "not_found"


async def test_agent_gets_what_was_sealed_for_its_own_placement_alone(api: Api) -> None:
    await add(api)
    instance = await launch(api, {"K": {"secret": "db"}})
    path = f"/v1/hosts/secrets/{instance['id']}"
    params: dict[str, Any] = {"project_id": instance["project_id"], "generation": 1}
    async with agent(api) as one, agent(api, "two") as two:
        assert (await one.get(path, params=params)).status_code == 404, "it is on no host yet"
        api.db.rows(
            "UPDATE instances SET host_id = %s, generation = 1, next_host_id = %s, next_generation = 2 WHERE id = %s",
            *(api.db.hosts["one"], api.db.hosts["two"], instance["id"]),
        )
        for generation in (1, 2):
            api.db.rows(
                "INSERT INTO instance_secrets (instance_id, generation, project_id, sealed) VALUES (%s, %s, %s, %s)",
                *(instance["id"], generation, instance["project_id"], f"sealed {generation}"),
            )
        for generation, host, other in ((1, one, two), (2, two, one)):
            asked = params | {"generation": generation}
            assert (await host.get(path, params=asked)).json()["data"] == {"sealed": f"sealed {generation}"}
            assert (await other.get(path, params=asked)).status_code == 404
        assert (await one.get(path, params=params | {"generation": 3})).status_code == 404
        assert (await one.get(path, params=params | {"project_id": str(new_id())})).status_code == 404
        assert (await one.get(path)).status_code == 422
    assert (await api.http.get(path, params=params)).status_code == 401


async def test_operator_sees_how_much_lies_under_which_key(api: Api) -> None:
    await add(api)
    api.db.rows(
        "INSERT INTO data_keys (id, project_id, master_key_id, wrapped) VALUES (%s, %s, 'gone', '')",
        *(new_id(), api.db.project_id),
    )
    found = (await api.http.get("/v1/operations/keys")).json()["data"]
    assert (found["newest"], found["left"]) == ("test", 1)
    told = [(key["id"], key["newest"], key["known"], key["data_keys"], key["secret_versions"]) for key in found["keys"]]
    assert told == [("test", True, True, 1, 1), ("gone", False, False, 1, 0)]
    api.db.rows(
        "INSERT INTO audit_heads (project_id, position, hash, epoch, xid, audit_id, key_id, mac)"
        " VALUES (%s, 1, '', 0, 0, %s, 'older', '')",
        *(new_id(), new_id()),
    )
    found = (await api.http.get("/v1/operations/keys")).json()["data"]
    assert found["left"] == 2, "what it signed is not ours any more once it is taken away"
    assert [key["audit_heads"] for key in found["keys"]] == [0, 0, 1]
    async with api.as_(api.db.project("other")) as http:
        assert (await http.get("/v1/operations/keys")).status_code == 403


async def test_what_is_called_off_before_it_began_forgets_what_was_sealed_for_it(api: Api) -> None:
    made = await api.http.post("/v1/secrets", json={"name": "sealed", "value": "said to nobody"})
    assert made.status_code == 201, made.text
    instance = (await api.launch("calls-off", env={"K": {"secret": "sealed"}}))["data"]
    api.put(instance, "running")
    for asked in (
        api.http.post(f"/v1/instances/{instance['id']}/restart"),
        api.http.delete(f"/v1/instances/{instance['id']}"),
    ):
        accepted = await asked
        assert accepted.status_code == 202, accepted.text
        called_off = await api.http.post(f"/v1/workflows/{accepted.json()['meta']['workflow_id']}/cancel")
        assert (called_off.status_code, called_off.json()["data"]["state"]) == (202, "cancelled"), called_off.text


LOGIN = {"name": "registry", "value": "me:planted-password"}


async def test_login_of_a_registry_is_named_by_images_and_instances_and_kept_for_them(api: Api) -> None:
    secret = (await api.http.post("/v1/secrets", json=LOGIN)).json()["data"]
    source = {"type": "registry", "reference": "registry.example/a:1", "registry_secret": secret["id"]}
    made = await api.http.post("/v1/images", json={"name": "ours", "source": source})
    assert made.status_code == 202, made.text
    image = made.json()["data"]
    assert image["source"]["registry_secret"] == "registry"
    assert (await ask(api, "DELETE", "/registry", 409))["details"] == {"images": ["ours"]}
    api.db.rows("UPDATE images SET status = 'available', digest = 'sha256:ab'")
    by_image = await launch(api, {}, image="ours")
    by_reference = await launch(api, {}, name="two", image="registry.example/b:1", registry_secret="registry")
    assert by_image["registry_secret"] == by_reference["registry_secret"] == "registry"
    assert (await ask(api, "DELETE", "/registry", 409))["details"] == {"images": ["ours"], "instances": ["two", "web"]}
    await ask(api, "POST", "/registry/rotate", json={"value": "me:another"})
    await ask(api, "DELETE", "/registry/versions/1", 204)
    refused = await launch(api, {}, 422, name="three", image="ours", registry_secret="registry")
    assert refused["details"]["fields"][0]["field"] == "registry_secret"
    async with api.as_(api.db.key(api.db.project_id, "scoped", "owner", scopes=["instances:*", "images:*"])) as http:
        body = {"name": "three", "image": "registry.example/b:1", "registry_secret": "registry"}
        assert (await http.post("/v1/instances", json=body)).status_code == 403
        assert (await http.post("/v1/images", json={"name": "three", "source": source})).status_code == 403
        body = {"name": "three", "image": "ours"}
        assert (await http.post("/v1/instances", json=body)).status_code == 202, "as its importer may"
    for wrong in ({"registry_secret": "nobody"}, {"registry_secret": str(new_id())}):
        answer = await api.http.post("/v1/images", json={"name": "no", "source": source | wrong})
        assert (answer.status_code, answer.json()["error"]["details"]["fields"][0]["field"]) == (
            422,
            "source.registry_secret",
        )
    for table, status in (("instances", "deleted"), ("images", "deleted")):
        api.db.rows(f"UPDATE {table} SET status = %s", status)
    await ask(api, "DELETE", "/registry", 204)


async def test_agent_gets_the_login_of_an_import_that_it_was_asked_for_alone(api: Api) -> None:
    await api.http.post("/v1/secrets", json=LOGIN)
    source = {"type": "registry", "reference": "registry.example/a:1", "registry_secret": "registry"}
    image = (await api.http.post("/v1/images", json={"name": "ours", "source": source})).json()["data"]
    path, params = f"/v1/hosts/registry-logins/{image['id']}", {"project_id": image["project_id"]}
    async with agent(api) as one, agent(api, "two") as two:
        assert (await one.get(path, params=params)).status_code == 404
        api.db.rows(
            "INSERT INTO image_logins (image_id, project_id, host_id, sealed) VALUES (%s, %s, %s, 'sealed')",
            *(image["id"], image["project_id"], api.db.hosts["one"]),
        )
        assert (await one.get(path, params=params)).json()["data"] == {"sealed": "sealed"}
        assert (await two.get(path, params=params)).status_code == 404
        assert (await one.get(path, params={"project_id": str(new_id())})).status_code == 404
    assert (await api.http.get(path, params=params)).status_code == 401
    # What is called off before it began is settled by the API.
    accepted = (await api.http.get("/v1/workflows", params={"resource_id": image["id"]})).json()["data"][0]
    called_off = await api.http.post(f"/v1/workflows/{accepted['id']}/cancel")
    assert called_off.json()["data"]["state"] == "cancelled", called_off.text
    assert api.db.rows("SELECT * FROM image_logins") == []
