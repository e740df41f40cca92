"""Who did what, or was refused: written with what it tells of, and never changed."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.api.conftest import Api
from tests.api.people import PASSWORD, bearing, logged_in, register
from tests.api.test_streams import placed
from tests.services import eventually

Json = dict[str, Any]
NOWHERE = "00000000-0000-0000-0000-000000000000"


def rows(api: Api, request: httpx.Response | str) -> list[Json]:
    """What the log says of one request."""
    request_id = request if isinstance(request, str) else request.headers["x-request-id"]
    return api.db.rows("SELECT * FROM audit WHERE request_id = %s", request_id)


def row(api: Api, request: httpx.Response) -> Json:
    (found,) = rows(api, request)
    return found


async def test_an_accepted_request_is_one_row_with_all_that_is_known(shared_api: Api) -> None:
    body = {"name": "one", "image": "cairn/base", "env": {"PASSWORD": "hunter2hunter2"}}
    answer = await shared_api.http.post("/v1/instances", json=body, headers={"User-Agent": "browser"})
    assert answer.status_code == 202, answer.text
    found = row(shared_api, answer)
    owner = shared_api.db.one("SELECT user_id, id FROM api_keys WHERE project_id = %s", shared_api.db.project_id)
    expected = {
        "project_id": shared_api.db.project_id,
        "user_id": owner["user_id"],
        "key_id": owner["id"],
        "action": "instances:create",
        "operation": "POST /v1/instances",
        "outcome": "allowed",
        "resource_type": "instance",
        "resource_id": answer.json()["data"]["id"],
        "before": None,
        "address": "127.0.0.1",
        "agent": "browser",
    }
    assert {name: found[name] for name in expected} == expected
    assert str(found["workflow_id"]) == answer.json()["meta"]["workflow_id"]
    assert found["after"]["name"] == "one"
    assert "hunter2" not in str(found)
    event = shared_api.db.one("SELECT xid FROM events WHERE workflow_id = %s", found["workflow_id"])
    assert event["xid"] == found["xid"], "one transaction"


async def test_what_is_not_accepted_is_no_row(shared_api: Api) -> None:
    answer = await shared_api.http.post("/v1/instances", json={"name": "x", "image": "y", "instance_type": "none"})
    assert answer.status_code == 422
    answer_2 = await shared_api.http.post("/v1/instances", json={"name": 1})
    assert rows(shared_api, answer) == rows(shared_api, answer_2) == []


async def test_what_only_reads_is_no_row(shared_api: Api) -> None:
    assert rows(shared_api, await shared_api.http.get("/v1/instances")) == []


async def test_changes_say_what_was_before_and_what_is_after(shared_api: Api) -> None:
    http = shared_api.http
    project = await http.patch(f"/v1/projects/{shared_api.db.project_id}", json={"drift_policy": "heal"})
    assert row(shared_api, project)["before"] == {"drift_policy": "report"}
    assert row(shared_api, project)["after"] == {"drift_policy": "heal"}
    hook = {"name": "hook", "url": "https://93.184.216.34/", "secret": "s" * 20}
    made = await http.post("/v1/webhooks", json=hook)
    assert made.status_code == 201, made.text
    path = f"/v1/webhooks/{made.json()['data']['id']}"
    changed = await http.patch(path, json={"url": "https://93.184.216.35/", "secret": "t" * 20})
    found = row(shared_api, changed)
    assert (found["before"]["url"], found["after"]["url"]) == (hook["url"], "https://93.184.216.35/")
    assert found["after"]["secret"] == "[redacted]"
    assert row(shared_api, made)["after"]["name"] == "hook"
    removed = row(shared_api, await http.delete(path))
    assert (removed["before"]["name"], removed["after"], removed["resource_id"]) == ("hook", None, path[13:])
    size = await http.post("/v1/instance-types", json={"name": "odd", "vcpus": 1, "memory_mb": 64, "disk_gb": 1})
    assert str(row(shared_api, size)["project_id"]) == NOWHERE, "sizes are the platform's"
    patched = row(shared_api, await http.patch("/v1/instance-types/odd", json={"memory_mb": 128}))
    assert (patched["before"], patched["after"]) == ({"memory_mb": 64}, {"memory_mb": 128})


async def test_who_gave_whom_which_right_is_told(shared_api: Api) -> None:
    http, project = shared_api.http, shared_api.db.project_id
    user = await register(shared_api, "gained")
    whom = {"role_name": "viewer", "user_identifier": user["id"]}
    bound = await http.post("/v1/rbac/bindings", json=whom)
    found = row(shared_api, bound)
    assert (found["resource_id"], found["after"]["role_name"]) == (bound.json()["data"]["id"], "viewer")
    assert found["after"]["user_id"] == user["id"]
    taken = row(shared_api, await http.delete(f"/v1/rbac/bindings/{found['resource_id']}"))
    assert (taken["before"]["role_name"], taken["before"]["user_id"]) == ("viewer", user["id"])
    put = row(shared_api, await http.put(f"/v1/projects/{project}/members/{user['id']}", json={"roles": ["admin"]}))
    assert (put["resource_type"], put["resource_id"]) == ("member", user["id"])
    assert (put["before"], put["after"]) == ({"roles": []}, {"roles": ["admin"]})
    await http.post("/v1/rbac/roles", json={"name": "watcher", "permissions": ["instances:read"]})
    more = row(shared_api, await http.patch("/v1/rbac/roles/watcher", json={"permissions": ["secrets:read"]}))
    assert (more["before"], more["after"]) == ({"permissions": ["instances:read"]}, {"permissions": ["secrets:read"]})
    made_admin = row(shared_api, await http.patch(f"/v1/users/{user['id']}", json={"is_admin": True}))
    assert (made_admin["before"]["is_admin"], made_admin["after"]) == (False, {"is_admin": True})
    key = await http.post("/v1/auth/keys", json={"name": "ci"})
    assert row(shared_api, key)["resource_id"] == key.json()["data"]["id"]
    assert key.json()["data"]["key"] not in str(row(shared_api, key))
    secret = await http.post("/v1/secrets", json={"name": "audited", "value": "planted-in-audit"})
    assert row(shared_api, secret)["resource_id"] == secret.json()["data"]["id"]
    renewed = row(shared_api, await http.post("/v1/secrets/audited/versions", json={"value": "planted-in-audit"}))
    assert (renewed["before"]["current_version"], renewed["after"]["current_version"]) == (1, 2)
    gone = row(shared_api, await http.delete("/v1/secrets/audited"))
    assert (gone["resource_id"], gone["before"]["name"]) == (secret.json()["data"]["id"], "audited")
    assert not shared_api.db.rows("SELECT FROM audit a WHERE a::text LIKE '%%planted-in-audit%%'")


async def test_a_request_that_is_repeated_under_its_key_changes_nothing_more(shared_api: Api) -> None:
    body = {"name": "twice", "image": "cairn/base"}
    first, second = [
        await shared_api.http.post("/v1/instances", json=body, headers={"Idempotency-Key": "twice"}) for _ in range(2)
    ]
    assert first.json()["data"]["id"] == second.json()["data"]["id"]
    assert len(rows(shared_api, first)) == 1
    assert row(shared_api, second)["workflow_id"] is None


async def denied(api: Api, answer: httpx.Response) -> Json:
    found = await eventually(lambda: rows(api, answer), 5)
    assert len(found) == 1, answer.text
    assert (found[0]["outcome"], found[0]["status"]) == ("denied", answer.status_code)
    assert found[0]["code"] == answer.json()["error"]["code"]
    return dict(found[0])


async def test_who_may_not_is_written_into_the_own_project(shared_api: Api) -> None:
    key = shared_api.db.key(shared_api.db.project_id, "looker", "viewer")
    async with shared_api.as_(key) as viewer:
        found = await denied(shared_api, await viewer.post("/v1/instances", json={"name": "x", "image": "y"}))
        of_platform = await denied(shared_api, await viewer.post("/v1/hosts/tokens", json={}))
    assert found["project_id"] == shared_api.db.project_id
    assert (found["actor"], found["action"]) == ("key:looker", "instances:create")
    assert str(of_platform["project_id"]) == NOWHERE


async def test_a_key_that_opens_nothing_is_not_written_down(shared_api: Api) -> None:
    async with shared_api.as_("cairn_planted_key") as stranger:
        found = await denied(shared_api, await stranger.get("/v1/instances"))
    assert (str(found["project_id"]), found["actor"]) == (NOWHERE, "unknown")
    assert "planted" not in str(found)
    async with httpx.AsyncClient(base_url=shared_api.url) as nobody:
        answer = await nobody.get("/v1/instances")
    assert answer.status_code == 401
    assert rows(shared_api, answer) == [], "who shows nothing attempts nothing"


@pytest.mark.parametrize("odd", ["%00", "a%00b", "x" * 5000, "\N{SNOWMAN}" * 900], ids=["nul", "nuls", "long", "wide"])
async def test_no_path_keeps_denials_from_the_log(shared_api: Api, odd: str) -> None:
    shared_api.app.state.denials._until = 0.0
    async with shared_api.as_("cairn_odd_path") as stranger:
        found = await denied(shared_api, await stranger.get(f"/v1/secrets/{odd}"))
        assert len(found["resource_id"]) <= 256
        assert await denied(shared_api, await stranger.get("/v1/instances")), "those behind it are written too"


async def test_another_project_is_denied_and_learns_nothing(shared_api: Api) -> None:
    shared_api.db.project("elsewhere")
    other = shared_api.db.one("SELECT id FROM projects WHERE name = 'elsewhere'")["id"]
    for asked in (str(other), str(uuid4())):
        found = await denied(shared_api, await shared_api.http.get("/v1/instances", headers={"X-Project-ID": asked}))
        assert str(found["project_id"]) == NOWHERE, "not into a project in which the caller is not"
        assert (found["resource_type"], found["resource_id"]) == ("project", asked)


@pytest.mark.parametrize("same", [True, False])
async def test_a_flood_of_denials_is_counted(shared_api: Api, same: bool) -> None:
    denials = shared_api.app.state.denials
    denials._until = 0.0
    names = ["none"] * 30 if same else [f"none-{n}" for n in range(30)]
    before = shared_api.db.one("SELECT count(*) FROM audit WHERE outcome = 'denied'")["count"]
    async with shared_api.as_("cairn_flood") as stranger:
        for name in names:
            assert (await stranger.get(f"/v1/instance-types/{name}")).status_code == 401
    await denials.write()
    found = shared_api.db.rows("SELECT * FROM audit WHERE outcome = 'denied' ORDER BY id")[before:]
    counting = found.pop()
    assert len(found) == (1 if same else 20)
    assert (counting["code"], counting["after"]["more"]) == ("repeated", 30 - len(found))


async def test_what_no_database_takes_keeps_no_other_denial_from_the_log(shared_api: Api) -> None:
    """A NUL in a path, of whoever shows anything at all, and what is denied after it."""
    denials = shared_api.app.state.denials
    denials._until = 0.0
    async with shared_api.as_("cairn_nul") as stranger:
        odd, plain = [await stranger.delete(f"/v1/rbac/roles/{name}") for name in ("a%00b", "plain")]
    assert (odd.status_code, plain.status_code) == (401, 401)
    await denials.write()  # or somebody else was about to
    assert await eventually(lambda: len(rows(shared_api, odd) + rows(shared_api, plain)) == 2)
    assert row(shared_api, odd)["resource_id"] == "a\ufffdb"
    assert row(shared_api, plain)["resource_id"] == "plain"
    assert denials._rows == []
    for method in ("GET", "DELETE"):
        assert (await shared_api.http.request(method, "/v1/rbac/roles/a%00b")).status_code == 422


async def test_who_deleted_a_project_is_still_to_be_read(shared_api: Api) -> None:
    http = shared_api.http
    made = (await http.post("/v1/projects", json={"name": "short-lived"})).json()["data"]
    user = shared_api.db.one("SELECT user_id FROM bindings WHERE project_id = %s", made["id"])["user_id"]
    async with await shared_api.signed_in(user) as owner:
        gone = await owner.delete(f"/v1/projects/{made['id']}")
    assert gone.status_code == 204, gone.text
    found = row(shared_api, gone)
    assert (str(found["project_id"]), found["resource_id"]) == (NOWHERE, made["id"])
    listed = await http.get("/v1/audit", params={"platform": "true", "resource_id": made["id"]})
    assert [one["operation"] for one in listed.json()["data"]] == ["DELETE /v1/projects/{project_id}"]


async def test_another_password_is_written_down_where_it_was_set_and_nowhere_else(shared_api: Api) -> None:
    granted = await logged_in(shared_api, "repents")
    async with bearing(shared_api, granted["access_token"]) as http:
        body = {"password": "another long enough one", "old_password": "not the one"}
        refused = await http.patch("/v1/auth/me", json=body)
        assert refused.status_code == 403
        assert [found["outcome"] for found in rows(shared_api, refused)] in ([], ["denied"])
        changed = await http.patch("/v1/auth/me", json=body | {"old_password": PASSWORD})
        assert changed.status_code == 200, changed.text
    found = row(shared_api, changed)
    assert (found["resource_id"], found["outcome"]) == (granted["user"]["id"], "allowed")
    assert "long enough" not in str(found)
    user = shared_api.db.one("SELECT xmin::text::bigint AS xid FROM users WHERE id = %s", found["user_id"])
    assert user["xid"] == found["xid"] % 2**32, "one transaction"


async def test_strangers_do_not_hide_what_others_try(shared_api: Api) -> None:
    denials = shared_api.app.state.denials
    await denials.write()
    for n in range(300):
        nobody = {"project_id": NOWHERE, "actor": "unknown", "address": f"192.0.2.{n}", "operation": "GET /"}
        denials.add(nobody | {"resource_id": None, "code": "unauthenticated"})
    assert len(denials._rows) == 200
    denials._rows.clear()
    async with shared_api.as_(shared_api.db.key(shared_api.db.project_id, "prober", "viewer")) as viewer:
        found = await denied(shared_api, await viewer.post("/v1/instances", json={"name": "x", "image": "y"}))
    assert found["actor"] == "key:prober"
    denials._more.clear()
    denials._until = 0.0


#: What agents say of themselves and their hosts is no change of anybody's.
TELEMETRY = {"/v1/hosts/lease", "/v1/hosts/health", "/v1/hosts/samples", "/v1/hosts/balancers", "/v1/hosts/workspaces"}
#: They write their row themselves, as who asks has no key.
THEMSELVES = {"/v1/hosts/register", "/v1/auth/register", "/v1/auth/login", "/v1/auth/reset-password"}
#: What goes on with a login, and what asks for a mail: neither changes anything that lasts.
NOTHING = {"/v1/auth/refresh", "/v1/auth/forgot-password"}


async def test_every_route_that_changes_something_commits_through_its_caller(shared_api: Api) -> None:
    """Whose ``commit`` writes the row: what asks for an API key has one."""
    changing = {
        path: operation
        for path, item in shared_api.app.openapi()["paths"].items()
        for method, operation in item.items()
        if method != "get"
    }
    assert len(changing) > 25
    without = {
        path
        for path, operation in changing.items()
        if not any("ApiKey" in schemes for schemes in operation.get("security", []))
    }
    assert without == TELEMETRY | THEMSELVES | NOTHING


async def test_who_registers_and_logs_in_is_written_down_and_who_fails_to_too(shared_api: Api) -> None:
    who = {"email": "ann@example.org", "password": "a long enough one"}
    answers = [await shared_api.http.post("/v1/auth/register", json=who | {"name": "Ann"})]
    answers.append(await shared_api.http.post("/v1/auth/login", json=who))
    assert [answer.status_code for answer in answers] == [201, 200]
    for answer in answers:
        found = row(shared_api, answer)
        assert (found["actor"], found["outcome"]) == ("user:ann@example.org", "allowed")
        assert "long enough" not in str(found)
    refused = await shared_api.http.post("/v1/auth/login", json=who | {"password": "another one"})
    assert refused.status_code == 401
    assert await eventually(lambda: rows(shared_api, refused.headers["x-request-id"]))
    (found,) = rows(shared_api, refused.headers["x-request-id"])
    assert (found["outcome"], found["status"]) == ("denied", 401)


async def test_a_password_that_was_not_changed_is_not_allowed(shared_api: Api) -> None:
    granted = await logged_in(shared_api, "forgetful")
    path, another = "/v1/auth/me", {"password": "a rather long other one"}
    async with bearing(shared_api, granted["access_token"]) as http:
        wrong = await http.patch(path, json=another | {"old_password": "not that one"})
        assert (await denied(shared_api, wrong))["operation"] == "PATCH /v1/auth/me"
        changed = await http.patch(path, json=another | {"old_password": PASSWORD})
        assert changed.status_code == 200, changed.text
    found = row(shared_api, changed)
    assert (found["outcome"], found["resource_id"]) == ("allowed", granted["user"]["id"])
    assert "rather long" not in str(found)


async def test_a_terminal_and_a_command_are_written_down_before_they_begin(shared_api: Api) -> None:
    instance = await placed(shared_api, "shelled")
    url = f"/v1/instances/{instance['id']}/exec"
    answer = await shared_api.http.post(url, json={"cmd": ["cat", "/etc/token-of-mine"]})
    assert answer.status_code == 503, "there is no agent"
    found = row(shared_api, answer)
    assert (found["action"], found["resource_id"], found["after"]["name"]) == (
        *("instances:exec", instance["id"], "shelled"),
    )
    assert "token-of-mine" not in str(found)
    socket_url = shared_api.url.replace("http", "ws", 1) + f"/v1/ws/terminal/{instance['id']}?command=sh"
    with pytest.raises(InvalidStatus) as refused:
        await connect(socket_url, additional_headers={"X-API-Key": shared_api.db.api_key}, proxy=None)
    (of_terminal,) = rows(shared_api, refused.value.response.headers["x-request-id"])
    assert (of_terminal["operation"], of_terminal["outcome"]) == (
        *("WEBSOCKET /v1/ws/terminal/{instance_id}", "allowed"),
    )


async def test_a_terminal_that_is_refused_is_denied(shared_api: Api) -> None:
    instance = await placed(shared_api, "closed")
    key = shared_api.db.key(shared_api.db.project_id, "onlooker", "viewer")
    url = shared_api.url.replace("http", "ws", 1) + f"/v1/ws/terminal/{instance['id']}"
    for more in ({"additional_headers": {"X-API-Key": key}}, {"subprotocols": ["cairn", f"key.{key}"]}):
        before = shared_api.db.one("SELECT count(*) FROM audit WHERE actor = 'key:onlooker'")["count"]
        shared_api.app.state.denials._until = 0.0
        with pytest.raises((InvalidStatus, ConnectionClosed)):
            async with connect(url, proxy=None, **more) as socket:
                await socket.recv()
        assert await eventually(
            lambda before=before: (
                shared_api.db.one("SELECT count(*) FROM audit WHERE actor = 'key:onlooker'")["count"] == before + 1
            ),
            5,
        )


async def test_a_key_is_in_the_log_of_the_project_that_it_opens(shared_api: Api) -> None:
    made = await shared_api.http.post("/v1/auth/keys", json={"name": "told"})
    assert row(shared_api, made)["project_id"] == shared_api.db.project_id
