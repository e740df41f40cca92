"""API keys: whose they are, what they open, and when they end."""

from __future__ import annotations

import datetime as dt
from uuid import UUID

import httpx
import pytest

from api.key_use import FLUSH_SECONDS
from model.secrets import api_key_of, is_damaged, new_key
from tests.api.conftest import Api, served
from tests.api.people import Json, bearing, logged_in
from tests.services import Database, TemporalServer


async def made(http: httpx.AsyncClient, name: str = "ci", **more: object) -> Json:
    answer = await http.post("/v1/auth/keys", json={"name": name, **more})
    assert answer.status_code == 201, answer.text
    found: Json = answer.json()["data"]
    return found


async def test_key_opens_its_project_is_shown_once_and_kept_as_a_digest_only(shared_api: Api) -> None:
    """Regression: API keys stored in plain text."""
    granted = await logged_in(shared_api, "keys")
    async with bearing(shared_api, granted["access_token"]) as http:
        key = await made(http)
        assert key["project_id"] == granted["user"]["default_project_id"]
        shown = (await http.get(f"/v1/auth/keys/{key['id']}")).json()["data"]
        assert shown == {name: value for name, value in key.items() if name != "key"}
        assert (await http.get("/v1/auth/keys", params={"name": "ci"})).json()["data"] == [shown]
    async with shared_api.as_(key["key"]) as http:
        assert (await http.get("/v1/auth/me")).json()["data"]["key_id"] == key["id"]
        assert (await http.get("/v1/instances")).status_code == 200
    row = shared_api.db.one("SELECT * FROM api_keys WHERE id = %s", UUID(key["id"]))
    assert key["key"] not in repr(row)
    assert key["key"].rpartition("_")[2] not in repr(row)


def test_what_is_not_whole_is_known_without_the_database() -> None:
    key = api_key_of(UUID(int=2**128 - 1), b"\xff" * 32)
    assert len(key) == len(api_key_of(UUID(int=0), bytes(32))) == 78
    assert not is_damaged(key)
    assert not is_damaged(new_key())
    assert not is_damaged("cairn_test")
    whole = range(len("cairn_") + 23, len(key))
    assert {length for length in whole if not is_damaged(key[:length])} == {len("cairn_") + 43}, "as long as older ones"
    for place in range(len("cairn_") + 23, len(key)):
        other = "a" if key[place] != "a" else "b"
        assert is_damaged(key[:place] + other + key[place + 1 :])
    assert is_damaged(key + "0")


async def test_truncated_and_changed_keys_are_401(shared_api: Api) -> None:
    key = (await made(shared_api.http))["key"]
    for bad in (
        key[:-1],
        key[:40],
        key[:49],
        key[:10],
        key + "x",
        key[:-1] + ("1" if key[-1] != "1" else "2"),
        "cairn_",
    ):
        async with shared_api.as_(bad) as http:
            assert (await http.get("/v1/instances")).status_code == 401, bad


async def test_keys_of_before_go_on_working(shared_api: Api) -> None:
    assert (await shared_api.http.get("/v1/auth/me")).json()["data"]["user"]["is_admin"]


async def test_same_request_again_shows_the_same_key(shared_api: Api) -> None:
    headers = {"Idempotency-Key": "make-it-once"}
    body = {"name": "again"}
    answers = [await shared_api.http.post("/v1/auth/keys", json=body, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json()["data"] == answers[1].json()["data"]
    path = f"/v1/auth/keys/{answers[0].json()['data']['id']}/rotate"
    turned = [await shared_api.http.post(path, headers={"Idempotency-Key": "turn"}) for _ in range(2)]
    assert turned[0].json()["data"] == turned[1].json()["data"]
    other = await shared_api.http.post("/v1/auth/keys", json={"name": "other"}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_mismatch")


async def test_keys_are_not_revoked_across_tenants_by_id(shared_api: Api) -> None:
    """Regression: whoever knows a key's id revokes, rotates or reads it. Nor a colleague: they are their users'."""
    key = await made(shared_api.http, "mine")
    stranger = await logged_in(shared_api, "revoker")
    colleague = shared_api.db.key(shared_api.db.project_id, "colleague", "owner")
    async with bearing(shared_api, stranger["access_token"]) as one, shared_api.as_(colleague) as two:
        for http in (one, two):
            for method, path in (
                ("GET", ""),
                ("DELETE", ""),
                ("POST", "/revoke"),
                ("POST", "/rotate"),
            ):
                answer = await http.request(method, f"/v1/auth/keys/{key['id']}{path}")
                absent = await http.request(method, f"/v1/auth/keys/{UUID(int=7)}{path}")
                assert answer.status_code == absent.status_code == 404
                said = answer.json()["error"]["message"].replace(key["id"], "")
                assert said == absent.json()["error"]["message"].replace(str(UUID(int=7)), "")
            assert key["id"] not in (await http.get("/v1/auth/keys?limit=500")).text
    async with shared_api.as_(key["key"]) as http:
        assert (await http.get("/v1/instances")).status_code == 200


async def test_revoked_key_is_refused_on_the_next_request_on_every_process(
    database: Database, temporal_server: TemporalServer
) -> None:
    """Regression: keys valid after revoke, through a cache."""
    temporal = await temporal_server.client()
    async with served(database, temporal) as one, served(database, temporal) as two:
        for verb, path in (("POST", "/revoke"), ("DELETE", "")):
            key = await made(one.http)
            async with one.as_(key["key"]) as here, two.as_(key["key"]) as there:
                assert {(await http.get("/v1/instances")).status_code for http in (here, there)} == {200}
                gone = await one.http.request(verb, f"/v1/auth/keys/{key['id']}{path}")
                assert gone.status_code in (200, 204)
                assert {(await http.get("/v1/instances")).status_code for http in (there, here)} == {401}


async def test_rotated_key_goes_on_beside_the_new_one_for_the_overlap(shared_api: Api) -> None:
    old = await made(shared_api.http, scopes=["instances:read"])
    answer = await shared_api.http.post(f"/v1/auth/keys/{old['id']}/rotate", json={"overlap_seconds": 60})
    new = answer.json()["data"]
    assert (new["name"], new["scopes"]) == ("ci", ["instances:read"])
    async with shared_api.as_(old["key"]) as before, shared_api.as_(new["key"]) as after:
        assert {(await http.get("/v1/instances")).status_code for http in (before, after)} == {200}
        again = await shared_api.http.post(f"/v1/auth/keys/{old['id']}/rotate")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "invalid_state")
        await shared_api.http.post(f"/v1/auth/keys/{old['id']}/revoke")
        assert (await before.get("/v1/instances")).status_code == 401
        assert (await after.get("/v1/instances")).status_code == 200
    too_long = await shared_api.http.post(f"/v1/auth/keys/{new['id']}/rotate", json={"overlap_seconds": 604801})
    assert too_long.status_code == 422


async def test_key_that_has_expired_opens_nothing(shared_api: Api) -> None:
    soon = (dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)).isoformat()
    key = await made(shared_api.http, expires_at=soon)
    async with shared_api.as_(key["key"]) as http:
        assert (await http.get("/v1/instances")).status_code == 200
        longer = await http.post("/v1/auth/keys", json={"name": "for ever"})
        assert (longer.status_code, longer.json()["error"]["code"]) == (403, "forbidden")
        shared_api.db.rows("UPDATE api_keys SET expires_at = now() WHERE id = %s", UUID(key["id"]))
        assert (await http.get("/v1/instances")).status_code == 401
    past = await shared_api.http.post("/v1/auth/keys", json={"name": "x", "expires_at": "2020-01-01T00:00:00Z"})
    assert past.status_code == 422


async def test_key_may_what_its_scopes_and_its_users_roles_both_allow(shared_api: Api) -> None:
    viewer = shared_api.db.key(shared_api.db.project_id, "viewer", "viewer")
    async with shared_api.as_(viewer) as http:
        key = await made(http, scopes=["instances:*", "account:read"])
    async with shared_api.as_(key["key"]) as http:
        me = (await http.get("/v1/auth/me")).json()["data"]
        assert me["permissions"] == ["account:read", "instances:read"]
        assert me["scopes"] == ["instances:*", "account:read"]
        assert (await http.get("/v1/images")).status_code == 403
        assert (await http.post("/v1/auth/keys", json={"name": "more"})).status_code == 403


async def test_key_makes_none_that_may_more_than_itself(shared_api: Api) -> None:
    key = await made(shared_api.http, scopes=["account:*", "instances:read", "images:*"])
    full = await made(shared_api.http, "full")
    async with shared_api.as_(key["key"]) as http:
        assert (await made(http))["scopes"] == ["account:*", "instances:read", "images:*"]
        assert (await made(http, scopes=["images:read"]))["scopes"] == ["images:read"]
        for beyond in ("instances:*", "instances:delete", "users:manage"):
            answer = await http.post("/v1/auth/keys", json={"name": "more", "scopes": ["images:read", beyond]})
            assert (beyond, answer.status_code) == (beyond, 403)
        turned = await http.post(f"/v1/auth/keys/{full['id']}/rotate")
        assert turned.status_code == 201, "and what comes of it has no more scopes than what asked"
        assert turned.json()["data"]["scopes"] == ["account:*", "instances:read", "images:*"]


async def test_no_key_opens_what_is_no_project(shared_api: Api) -> None:
    granted = await logged_in(shared_api, "homeless")
    shared_api.db.rows("DELETE FROM bindings WHERE user_id = %s", granted["user"]["id"])
    async with bearing(shared_api, granted["access_token"]) as http:
        for asked, status in ((None, 422), (str(UUID(int=0)), 404)):
            answer = await http.post("/v1/auth/keys", json={"name": "ci", "project": asked})
            assert answer.status_code == status, answer.text


async def test_key_that_was_rotated_makes_none_that_outlasts_it(shared_api: Api) -> None:
    old = await made(shared_api.http, "leaked")
    turned = await shared_api.http.post(f"/v1/auth/keys/{old['id']}/rotate", json={"overlap_seconds": 3600})
    assert turned.status_code == 201
    async with shared_api.as_(old["key"]) as http:
        assert (await http.get("/v1/instances")).status_code == 200, "it goes on"
        assert (await http.post("/v1/auth/keys", json={"name": "another"})).status_code == 403
        soon = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=5)
        await made(http, "short", expires_at=soon.isoformat())


@pytest.mark.parametrize("scope", ["", "instances", "instances:", "*", "*:*", "instances:fly", "nothing:*", "x" * 200])
async def test_scopes_are_known_permissions(shared_api: Api, scope: str) -> None:
    answer = await shared_api.http.post("/v1/auth/keys", json={"name": "x", "scopes": [scope]})
    assert answer.status_code == 422


async def test_key_of_one_project_neither_makes_nor_shows_keys_of_another(shared_api: Api) -> None:
    granted = await logged_in(shared_api, "twoprojects")
    own = granted["user"]["default_project_id"]
    shared_api.db.rows(
        "INSERT INTO bindings (id, project_id, user_id, role_name) VALUES (gen_random_uuid(), %s, %s, 'viewer')",
        *(shared_api.db.project_id, granted["user"]["id"]),
    )
    async with bearing(shared_api, granted["access_token"]) as http:
        here = await made(http, "here")
        there = await made(http, "there", project=str(shared_api.db.project_id))
        assert (here["project_id"], there["project_id"]) == (own, str(shared_api.db.project_id))
        foreign = await http.post("/v1/auth/keys", json={"name": "x", "project": str(UUID(int=7))})
        assert foreign.status_code == 404
        assert {key["name"] for key in (await http.get("/v1/auth/keys")).json()["data"]} == {"here", "there"}
    async with shared_api.as_(there["key"]) as http:
        assert [key["name"] for key in (await http.get("/v1/auth/keys")).json()["data"]] == ["there"]
        assert (await http.post(f"/v1/auth/keys/{here['id']}/rotate")).status_code == 404
        assert (await http.post("/v1/auth/keys", json={"name": "x", "project": own})).status_code == 404


async def test_last_use_is_written_in_batches(shared_api: Api) -> None:
    key = await made(shared_api.http)
    find = "SELECT last_used_at FROM api_keys WHERE id = %s"
    async with shared_api.as_(key["key"]) as http:
        await http.get("/v1/instances")
    assert FLUSH_SECONDS <= 30
    assert shared_api.db.one(find, UUID(key["id"]))["last_used_at"] is None
    await shared_api.app.state.key_use.flush()
    assert shared_api.db.one(find, UUID(key["id"]))["last_used_at"] is not None
