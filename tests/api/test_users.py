"""Users, as administrators of the platform see and change them."""

from __future__ import annotations

import asyncio

import pytest

from api.lockout import ALLOWED
from model.secrets import digest
from tests.api.conftest import BODY, Api, served
from tests.api.people import bearing, logged_in, login, register
from tests.services import Database, TemporalServer, eventually
from worker.api import main

MAILED = "a token that a mail once brought"


async def test_administrators_alone_see_users(shared_api: Api) -> None:
    granted = await logged_in(shared_api, "seen")
    path = f"/v1/users/{granted['user']['id']}"
    found = (await shared_api.http.get("/v1/users", params={"email": "SEEN@example.org"})).json()["data"]
    assert [user["id"] for user in found] == [granted["user"]["id"]]
    assert "password" not in (await shared_api.http.get(path)).text
    async with bearing(shared_api, granted["access_token"]) as http:
        assert (await http.get("/v1/users")).status_code == 403
        assert (await http.get(path)).status_code == 403
        assert (await http.patch(path, json={"is_admin": True})).status_code == 403


async def test_administrator_makes_a_user_who_logs_in_though_nobody_can_register(shared_api: Api) -> None:
    body = {"email": "Made@example.org", "name": "Made", "password": "a long way to the cairn"}
    key = {"Idempotency-Key": "made-once"}
    made = await shared_api.http.post("/v1/users", json=body, headers=key)
    assert made.status_code == 201, made.text
    user = made.json()["data"]
    assert (user["email"], user["verified"], user["is_admin"]) == ("made@example.org", True, False)
    assert (await shared_api.http.post("/v1/users", json=body, headers=key)).json()["data"] == user
    again = await shared_api.http.post("/v1/users", json=body)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "name_taken")
    assert "log in" not in again.json()["error"]["message"], "it is told to an administrator"
    weak = await shared_api.http.post("/v1/users", json=body | {"email": "weak@example.org", "password": "password"})
    assert weak.status_code == 422
    granted = await shared_api.http.post("/v1/auth/login", json={"email": body["email"], "password": body["password"]})
    assert granted.json()["data"]["user"]["default_project_id"] == user["default_project_id"]
    async with bearing(shared_api, granted.json()["data"]["access_token"]) as http:
        assert (await http.post("/v1/users", json=body | {"email": "other@example.org"})).status_code == 403
    rows = (await shared_api.http.get("/v1/audit", params={"resource_id": user["id"]})).json()["data"]
    assert [row["after"] for row in rows] == [{"email": "made@example.org", "name": "Made"}]


async def test_deactivated_user_is_refused_on_the_next_request_on_every_process(
    database: Database, temporal_server: TemporalServer
) -> None:
    temporal = await temporal_server.client()
    async with served(database, temporal) as one, served(database, temporal) as two:
        two.app.state.settings = one.app.state.settings
        granted = await logged_in(one, "away")
        path = f"/v1/users/{granted['user']['id']}"
        async with bearing(two, granted["access_token"]) as there:
            key = (await there.post("/v1/auth/keys", json={"name": "ci"})).json()["data"]["key"]
            async with two.as_(key) as keyed:
                assert (await keyed.get("/v1/auth/me")).status_code == 200
                answer = await one.http.patch(path, json={"active": False})
                assert answer.json()["data"]["active"] is False
                assert {(await http.get("/v1/auth/me")).status_code for http in (there, keyed)} == {401}
                assert (await login(two, "away")).status_code == 401
                await one.http.patch(path, json={"active": True})
                assert (await there.get("/v1/auth/me")).status_code == 401, "its session has ended"
                assert (await keyed.get("/v1/auth/me")).status_code == 200
        assert (await login(one, "away")).status_code == 200


async def test_administrator_sets_the_password_of_another_whose_sessions_end(shared_api: Api) -> None:
    granted = await logged_in(shared_api, "locked-out")
    path = f"/v1/users/{granted['user']['id']}"
    new = "another horse battery staple"
    weak = await shared_api.http.patch(path, json={"password": "password"})
    assert weak.status_code == 422
    for _ in range(ALLOWED):
        assert (await login(shared_api, "locked-out", "wrong password")).status_code == 401
    assert (await login(shared_api, "locked-out")).status_code == 401, "it is locked"
    sent = shared_api.db.rows(
        "INSERT INTO password_resets (digest, user_id, expires_at) VALUES (%s, %s, now() + interval '1 hour')"
        " RETURNING user_id",
        *(digest(MAILED), granted["user"]["id"]),
    )
    assert sent
    changed = await shared_api.http.patch(path, json={"password": new, "name": "Found"})
    assert (changed.status_code, changed.json()["data"]["name"]) == (200, "Found")
    assert new not in changed.text and "hash" not in changed.text
    async with bearing(shared_api, granted["access_token"]) as http:
        assert (await http.get("/v1/auth/me")).status_code == 401
    assert (await login(shared_api, "locked-out")).status_code == 401
    again = await login(shared_api, "locked-out", new)
    assert again.status_code == 200
    mailed = {"token": MAILED, "password": "yet another horse"}
    assert (await shared_api.http.post("/v1/auth/reset-password", json=mailed)).status_code != 204
    about = {"resource_id": granted["user"]["id"], "platform": "true"}
    rows = (await shared_api.http.get("/v1/audit", params=about)).json()["data"]
    assert [set(row["after"]) for row in rows if row["after"]] == [{"name", "password"}]
    assert new not in repr(rows)
    async with bearing(shared_api, again.json()["data"]["access_token"]) as http:
        assert (await http.patch(path, json={"password": new})).status_code == 403
    me = (await shared_api.http.get("/v1/auth/me")).json()["data"]["user"]["id"]
    assert (await shared_api.http.patch(f"/v1/users/{me}", json={"password": new})).status_code == 403


async def test_last_administrator_stays_one(api: Api) -> None:
    me = (await api.http.get("/v1/auth/me")).json()["data"]["user"]["id"]
    for answer in (
        await api.http.patch(f"/v1/users/{me}", json={"active": False}),
        await api.http.patch(f"/v1/users/{me}", json={"is_admin": False}),
        await api.http.delete(f"/v1/users/{me}"),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "invalid_state")
    other = (await register(api, "second"))["id"]
    await api.http.patch(f"/v1/users/{other}", json={"is_admin": True})
    # Each takes the right from the other at once: one of them keeps it.
    answers = await asyncio.gather(
        *(api.http.patch(f"/v1/users/{user}", json={"is_admin": False}) for user in (me, other))
    )
    assert api.db.one("SELECT count(*) FROM users WHERE is_admin")["count"] == 1, [one.text for one in answers]


async def test_user_is_changed_at_the_version_that_was_seen(shared_api: Api) -> None:
    user = await register(shared_api, "versions")
    path = f"/v1/users/{user['id']}"
    seen = await shared_api.http.get(path)
    changed = await shared_api.http.patch(path, json={"name": "Other"}, headers={"If-Match": seen.headers["ETag"]})
    assert changed.json()["data"]["name"] == "Other"
    late = await shared_api.http.patch(path, json={"name": "Late"}, headers={"If-Match": seen.headers["ETag"]})
    assert late.status_code == 412


async def test_user_is_deleted_with_keys_and_sessions_where_nothing_is_left_behind(api: Api) -> None:
    granted = await logged_in(api, "leaving")
    path = f"/v1/users/{granted['user']['id']}"
    async with bearing(api, granted["access_token"]) as http:
        launched = (await http.post("/v1/instances", json=BODY)).json()["data"]
        refused = await api.http.delete(path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")
        assert refused.json()["error"]["details"]["instances"] == 1
        api.put(launched, "deleted")
        key = (await http.post("/v1/auth/keys", json={"name": "ci"})).json()["data"]["key"]
        assert (await http.post("/v1/secrets", json={"name": "left", "value": "behind"})).status_code == 201
        account = (await http.post("/v1/service-accounts", json={"name": "left"})).json()["data"]
        assert (await api.http.delete(path)).status_code == 204
        assert api.db.rows("SELECT 1 FROM secrets") == []
        assert api.db.rows("SELECT 1 FROM service_accounts WHERE id = %s", account["id"]) == []
        assert (await http.get("/v1/auth/me")).status_code == 401
    async with api.as_(key) as http:
        assert (await http.get("/v1/auth/me")).status_code == 401
    assert (await api.http.get(path)).status_code == 404
    assert api.db.one("SELECT deleted_at FROM projects WHERE unix_name = 'leaving'")["deleted_at"]
    await register(api, "leaving")  # address and name are free again
    assert (await login(api, "leaving")).status_code == 200


async def test_who_binds_a_user_who_is_being_deleted_is_told_so(api: Api) -> None:
    user = (await register(api, "vanishing"))["id"]
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO bindings%%'"
    with api.db.connect() as connection:
        with connection.transaction():
            connection.execute("UPDATE projects SET personal_of = NULL WHERE personal_of = %s", [user])
            connection.execute("DELETE FROM users WHERE id = %s", [user])
            body = {"user_identifier": user, "role_name": "viewer"}
            binding = asyncio.ensure_future(api.http.post("/v1/rbac/bindings", json=body))
            assert await eventually(lambda: api.db.rows(waits))
        answer = await binding
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "invalid_state")


async def test_what_a_user_kept_secret_goes_with_the_user(api: Api) -> None:
    granted = await logged_in(api, "secretive")
    async with bearing(api, granted["access_token"]) as http:
        assert (await http.post("/v1/secrets", json={"name": "mine", "value": "of nobody else"})).status_code == 201
        account = await http.post("/v1/service-accounts", json={"name": "bot", "role_name": "viewer"})
        path = f"/v1/service-accounts/{account.json()['data']['id']}/keys"
        key = (await http.post(path, json={"name": "ci"})).json()["data"]["key"]
    assert (await api.http.delete(f"/v1/users/{granted['user']['id']}")).status_code == 204
    mine = "WHERE project_id = (SELECT id FROM projects WHERE unix_name = 'secretive')"
    for table in ("secrets", "secret_versions", "data_keys", "service_accounts", "api_keys", "bindings"):
        assert api.db.rows(f"SELECT FROM {table} {mine}") == [], table
    async with api.as_(key) as http:
        assert (await http.get("/v1/auth/me")).status_code == 401


async def test_last_owner_of_a_project_is_not_deleted(api: Api) -> None:
    user = await register(api, "owner")
    api.db.project("shared")
    api.db.rows(
        "UPDATE bindings SET user_id = %s WHERE user_id = (SELECT id FROM users WHERE name = 'shared')", user["id"]
    )
    project = api.db.one("SELECT id FROM projects WHERE name = 'shared'")["id"]
    api.db.user(project, "asleep", "owner")
    api.db.rows("UPDATE users SET deactivated_at = now() WHERE name = 'asleep'")
    answer = await api.http.delete(f"/v1/users/{user['id']}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "in_use")
    assert "p-shared" in answer.json()["error"]["message"]


async def test_user_with_all_that_nobody_else_owns_is_deleted_by_a_workflow(api: Api) -> None:
    granted = await logged_in(api, "going")
    user, cascade = granted["user"]["id"], {"cascade": "true"}
    async with bearing(api, granted["access_token"]) as http:
        assert (await http.post("/v1/cache-volumes", json={"name": "pip", "path": "/cache"})).status_code == 201
        held = (await api.http.delete(f"/v1/users/{user}")).json()["error"]
        assert (held["code"], held["details"]["cache_volumes"]) == ("in_use", 1)
        assert (await http.post("/v1/instances", json=BODY)).status_code == 202
        assert (await http.post("/v1/projects", json={"name": "of mine alone"})).status_code == 201
        assert (await api.http.delete(f"/v1/users/{user}")).status_code == 409
        accepted, again = [await api.http.delete(f"/v1/users/{user}", params=cascade) for _ in range(2)]
        assert (await http.get("/v1/auth/me")).status_code == 401, "deactivated at once"
    assert accepted.status_code == again.status_code == 202
    assert accepted.json()["meta"]["workflow_id"] == again.json()["meta"]["workflow_id"]
    assert accepted.json()["data"]["active"] is False
    workflow = (await api.http.get(f"/v1/workflows/{accepted.json()['meta']['workflow_id']}")).json()["data"]
    assert (workflow["kind"], workflow["resource_id"]) == ("DeprovisionUser", user)
    written = api.db.one('SELECT "order" FROM workflows WHERE id = %s', workflow["id"])["order"]
    assert "example.org" not in str(written), "who works in the caller's project does not see whose address it was"
    off = await api.http.post(f"/v1/workflows/{workflow['id']}/cancel")
    assert off.status_code == 202
    assert (await api.http.get(f"/v1/users/{user}")).json()["data"]["active"] is False, "stays so"


async def test_project_whose_other_owners_are_asleep_is_not_deleted_with_a_user(api: Api) -> None:
    user = await register(api, "owner")
    api.db.project("shared")
    project = api.db.one("SELECT id FROM projects WHERE name = 'shared'")["id"]
    api.db.rows("UPDATE bindings SET user_id = %s WHERE project_id = %s AND role_name = 'owner'", user["id"], project)
    api.db.user(project, "asleep", "owner")
    api.db.rows("UPDATE users SET deactivated_at = now() WHERE name = 'asleep'")
    refused = await api.http.delete(f"/v1/users/{user['id']}", params={"cascade": "true"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")
    assert "p-shared" in refused.json()["error"]["message"]
    assert (await api.http.get(f"/v1/users/{user['id']}")).json()["data"]["active"]


@pytest.fixture
def anonymous(api: Api) -> Api:
    api.app.state.settings = api.app.state.settings.model_copy(update={"auth": "anonymous"})
    del api.http.headers["X-API-Key"]
    return api


async def test_anonymous_is_the_first_administrator_in_the_first_project(anonymous: Api) -> None:
    me = (await anonymous.http.get("/v1/auth/me")).json()["data"]
    assert me["user"]["is_admin"]
    assert me["project"]["id"] == str(anonymous.db.project_id)
    assert (await anonymous.http.post("/v1/instances", json=BODY)).status_code == 202
    async with anonymous.as_("cairn_wrong") as http:
        assert (await http.get("/v1/auth/me")).status_code == 401, "who shows something wrong is not let in"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example.org"},
        {"Origin": "https://evil.example.org"},
        {"Origin": "null"},
        {"Host": "["},
        {"X-Forwarded-For": "203.0.113.7"},
        {"Forwarded": "for=203.0.113.7"},
        {"Via": "1.1 proxy"},
    ],
)
async def test_pages_of_other_sites_are_not_anonymous(anonymous: Api, headers: dict[str, str]) -> None:
    """DNS rebinding, requests that a browser sends for another site's page, and whoever comes through a proxy."""
    assert (await anonymous.http.get("/v1/auth/me", headers=headers)).status_code in (400, 403)
    assert (await anonymous.http.get("/v1/auth/me", headers={"Origin": "http://127.0.0.1:3000"})).status_code == 200


def test_anonymous_api_does_not_start_where_others_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAIRN_AUTH", "anonymous")
    monkeypatch.setenv("CAIRN_API_HOST", "192.0.2.1")
    with pytest.raises(SystemExit, match="CAIRN_API_HOST=192"):
        main()
