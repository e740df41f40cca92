"""Who is in a project: members, invitations, roles, bindings and service accounts; and nobody gives what is not
theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest_asyncio

from model.secrets import is_damaged
from tests.api.conftest import Api
from tests.api.test_projects import code, made, of

Json = dict[str, Any]


class Team:
    """A project with somebody in each of some roles, signed in; by their names."""

    def __init__(self, api: Api, project: Json, people: dict[str, tuple[UUID, httpx.AsyncClient]]) -> None:
        self.api, self.project, self._people = api, project, people
        #: The stranger's.
        self.other: Json = {}

    def __getitem__(self, name: str) -> httpx.AsyncClient:
        return self._people[name][1]

    def id(self, name: str) -> str:
        return str(self._people[name][0])

    def email(self, name: str) -> str:
        found: str = self.api.db.one("SELECT email FROM users WHERE id = %s", self.id(name))["email"]
        return found

    @property
    def path(self) -> str:
        return f"/v1/projects/{self.project['id']}"


@pytest_asyncio.fixture
async def team(shared_api: Api) -> AsyncIterator[Team]:
    api, mark = shared_api, uuid4().hex[:8]
    async with AsyncExitStack() as stack:
        people = {}
        for name in ("owner", "admin", "viewer", "stranger"):
            user = api.db.user(api.db.project_id, f"{name}-{mark}")
            people[name] = (user, await stack.enter_async_context(await api.signed_in(user)))
        project, other = await made(people["owner"][1]), await made(people["stranger"][1])
        for name, (user, http) in people.items():
            http.headers.update(of(project))
            if name in ("admin", "viewer"):
                bound = {"role_name": name, "user_identifier": str(user)}
                assert (await people["owner"][1].post("/v1/rbac/bindings", json=bound)).status_code == 201
        found = Team(api, project, people)
        found.other = other
        yield found


async def test_binding_gives_and_takes_with_the_next_request(team: Team) -> None:
    assert code(await team["stranger"].get("/v1/instances")) == (404, "not_found")
    body = {"role_name": "viewer", "user_identifier": team.email("stranger").upper()}
    first, again = [await team["owner"].post("/v1/rbac/bindings", json=body) for _ in range(2)]
    assert first.status_code == 201 and first.json()["data"] == again.json()["data"]
    assert first.json()["data"]["user"]["email"] == team.email("stranger")
    assert (await team["stranger"].get("/v1/instances")).status_code == 200
    path = f"/v1/rbac/bindings/{first.json()['data']['id']}"
    assert (await team["owner"].get(path)).json()["data"] == first.json()["data"]
    assert (await team["owner"].delete(path)).status_code == 204
    assert code(await team["stranger"].get("/v1/instances")) == (404, "not_found")


async def test_unknown_people_and_roles(team: Team) -> None:
    for unknown in ("nobody@example.org", str(uuid4())):
        body = {"role_name": "viewer", "user_identifier": unknown}
        assert code(await team["owner"].post("/v1/rbac/bindings", json=body)) == (404, "not_found")
        # Who may not bind is told nothing.
        assert code(await team["viewer"].post("/v1/rbac/bindings", json=body)) == (403, "forbidden")
    body = {"role_name": "wizard", "user_identifier": team.id("viewer")}
    assert code(await team["owner"].post("/v1/rbac/bindings", json=body)) == (422, "validation_failed")


async def test_members_roles_are_set_and_removed(team: Team) -> None:
    path = f"{team.path}/members/{team.id('viewer')}"
    put = await team["owner"].put(path, json={"roles": ["developer", "operator"]})
    assert sorted(put.json()["data"]["roles"]) == ["developer", "operator"]
    listed = (await team["admin"].get(f"{team.path}/members")).json()["data"]
    assert {one["id"]: sorted(one["roles"]) for one in listed}[team.id("viewer")] == ["developer", "operator"]
    assert (await team["admin"].delete(path)).status_code == 204
    assert code(await team["viewer"].get(team.path)) == (404, "not_found")
    assert code(await team["admin"].get(path)) == (404, "not_found")
    assert code(await team["admin"].delete(path)) == (404, "not_found")


async def test_nobody_gives_or_takes_more_than_they_have(team: Team) -> None:
    viewer, owner = team.id("viewer"), team.id("owner")
    make_owner = {"role_name": "owner", "user_identifier": viewer}
    assert code(await team["admin"].post("/v1/rbac/bindings", json=make_owner)) == (403, "forbidden")
    for path, roles in ((f"members/{viewer}", ["owner"]), (f"members/{owner}", ["viewer"])):
        assert code(await team["admin"].put(f"{team.path}/{path}", json={"roles": roles})) == (403, "forbidden")
    assert code(await team["admin"].delete(f"{team.path}/members/{owner}")) == (403, "forbidden")
    invited = {"email": "x@example.org", "role_name": "owner"}
    assert code(await team["admin"].post(f"{team.path}/invitations", json=invited)) == (403, "forbidden")
    role = {"name": "more", "permissions": ["project:delete"]}
    assert code(await team["admin"].post("/v1/rbac/roles", json=role)) == (403, "forbidden")
    assert (await team["owner"].post("/v1/rbac/roles", json=role)).status_code == 201
    bound = {"role_name": "more", "user_identifier": team.id("admin")}
    assert code(await team["admin"].post("/v1/rbac/bindings", json=bound)) == (403, "forbidden")
    # A service account with more is a way around all this, and so is its key.
    account = (await team["owner"].post("/v1/service-accounts", json={"name": "ci", "role_name": "owner"})).json()
    keys = f"/v1/service-accounts/{account['data']['id']}/keys"
    assert code(await team["admin"].post(keys, json={"name": "k"})) == (403, "forbidden")
    less = {"name": "k", "scopes": ["instances:read"]}
    assert (await team["admin"].post(keys, json=less)).status_code == 201
    key = (await team["owner"].post(keys, json={"name": "k"})).json()["data"]
    assert code(await team["admin"].post(f"{keys}/{key['id']}/rotate")) == (403, "forbidden")


async def test_scopes_of_a_key_bound_what_its_owner_gives(team: Team) -> None:
    api = team.api
    key = api.db.key(UUID(team.project["id"]), f"k{uuid4().hex[:8]}", "owner", scopes=["members:*", "roles:*"])
    async with api.as_(key) as http:
        body = {"role_name": "viewer", "user_identifier": team.id("stranger")}
        assert code(await http.post("/v1/rbac/bindings", json=body)) == (403, "forbidden")
        role = {"name": "lister", "permissions": ["members:read"]}
        assert (await http.post("/v1/rbac/roles", json=role)).status_code == 201


async def test_owner_of_one_project_edits_no_shared_role(team: Team) -> None:
    for name in ("owner", "admin", "operator", "developer", "viewer"):
        path = f"/v1/rbac/roles/{name}"
        assert code(await team["owner"].patch(path, json={"permissions": []})) == (403, "forbidden")
        assert code(await team["owner"].delete(path)) == (403, "forbidden")
        body = {"name": name, "permissions": []}
        assert code(await team["owner"].post("/v1/rbac/roles", json=body)) == (409, "name_taken")
    # Nor those of others, who may have one of the same name.
    mine = {"name": "helper", "permissions": ["events:read"]}
    assert (await team["owner"].post("/v1/rbac/roles", json=mine)).status_code == 201
    theirs = mine | {"permissions": ["images:read"]}
    assert (await team["stranger"].post("/v1/rbac/roles", json=theirs, headers=of(team.other))).status_code == 201
    assert (await team["owner"].patch("/v1/rbac/roles/helper", json={"permissions": []})).status_code == 200
    found = await team["stranger"].get("/v1/rbac/roles/helper", headers=of(team.other))
    assert found.json()["data"]["permissions"] == ["images:read"]


async def test_role_edit_acts_on_the_next_request(team: Team) -> None:
    path = "/v1/rbac/roles/looker"
    role = {"name": "looker", "permissions": ["instances:read"]}
    made_role = await team["owner"].post("/v1/rbac/roles", json=role)
    bound = {"role_name": "looker", "user_identifier": team.id("stranger")}
    binding = (await team["owner"].post("/v1/rbac/bindings", json=bound)).json()["data"]
    assert (await team["stranger"].get("/v1/instances")).status_code == 200
    changed = await team["owner"].patch(
        path, json={"permissions": ["images:read"]}, headers={"If-Match": made_role.headers["etag"]}
    )
    assert changed.json()["data"]["version"] == 2
    assert code(await team["stranger"].get("/v1/instances")) == (403, "forbidden")
    assert (await team["stranger"].get("/v1/images")).status_code == 200
    assert code(await team["owner"].delete(path)) == (409, "in_use")
    await team["owner"].delete(f"/v1/rbac/bindings/{binding['id']}")
    assert (await team["owner"].delete(path)).status_code == 204
    assert code(await team["owner"].get(path)) == (404, "not_found")


async def test_custom_roles_have_permissions_of_projects_only(team: Team) -> None:
    for wrong in ("hosts:manage", "account:write", "instances:*", "nothing:read"):
        body = {"name": "wrong", "permissions": [wrong]}
        assert code(await team["owner"].post("/v1/rbac/roles", json=body)) == (422, "validation_failed")
    listed = (await team["viewer"].get("/v1/rbac/roles")).json()["data"]
    assert [one["name"] for one in listed if one["built_in"]] == ["viewer", "operator", "developer", "admin", "owner"]


async def test_last_owner_stays(team: Team) -> None:
    mine = f"{team.path}/members/{team.id('owner')}"
    assert code(await team["owner"].delete(mine)) == (409, "last_owner")
    assert code(await team["owner"].put(mine, json={"roles": ["admin"]})) == (409, "last_owner")
    bindings = (await team["owner"].get("/v1/rbac/bindings")).json()["data"]
    (binding,) = (one["id"] for one in bindings if one["role_name"] == "owner")
    assert code(await team["owner"].delete(f"/v1/rbac/bindings/{binding}")) == (409, "last_owner")
    # A service account, or somebody who cannot log in, is no owner to rely on.
    await team["owner"].post("/v1/service-accounts", json={"name": "ci", "role_name": "owner"})
    await team["owner"].put(f"{team.path}/members/{team.id('viewer')}", json={"roles": ["owner"]})
    team.api.db.rows("UPDATE users SET deactivated_at = now() WHERE id = %s", team.id("viewer"))
    assert code(await team["owner"].delete(mine)) == (409, "last_owner")


async def test_two_owners_who_remove_each_other_at_once_leave_one(team: Team) -> None:
    for _ in range(4):
        for name in ("owner", "viewer"):
            team.api.db.rows(
                "DELETE FROM bindings WHERE project_id = %s AND user_id = %s", team.project["id"], team.id(name)
            )
            row = (uuid4(), team.project["id"], team.id(name))
            team.api.db.rows(
                "INSERT INTO bindings (id, project_id, user_id, role_name) VALUES (%s, %s, %s, 'owner')", *row
            )
        answers = await asyncio.gather(
            team["owner"].delete(f"{team.path}/members/{team.id('viewer')}"),
            team["viewer"].delete(f"{team.path}/members/{team.id('owner')}"),
        )
        assert sorted(answer.status_code for answer in answers) in ([204, 404], [204, 409])
        left = "SELECT count(*) AS n FROM bindings WHERE project_id = %s AND role_name = 'owner'"
        assert team.api.db.one(left, team.project["id"])["n"] == 1


async def test_invitation_is_accepted_once_and_by_who_was_invited(team: Team) -> None:
    path = f"{team.path}/invitations"
    body = {"email": team.email("stranger").upper(), "role_name": "viewer"}
    headers = {"Idempotency-Key": str(uuid4())}
    invitation = (await team["owner"].post(path, json=body, headers=headers)).json()["data"]
    again = (await team["owner"].post(path, json=body, headers=headers)).json()["data"]
    assert again == invitation | {"token": None}
    assert invitation["email"] == team.email("stranger")
    (row,) = team.api.db.rows("SELECT i::text AS told FROM invitations i WHERE id = %s", invitation["id"])
    assert invitation["token"] not in row["told"]
    token = {"token": invitation["token"]}
    own = of(team.other)
    accept = "/v1/invitations/accept"
    # Another's address, and a token that is wrong: the same.
    foreign = await team["viewer"].post(accept, json=token)
    wrong = await team["stranger"].post(accept, json={"token": invitation["token"][:-1] + "!"}, headers=own)
    assert code(foreign) == code(wrong) == (404, "not_found")
    assert foreign.json()["error"] == wrong.json()["error"]
    own["Idempotency-Key"] = str(uuid4())
    accepted = await team["stranger"].post(accept, json=token, headers=own)
    assert accepted.json()["data"] == {"project_id": team.project["id"], "project_name": team.project["name"]}
    # The answer was lost: the same again. Otherwise once.
    assert (await team["stranger"].post(accept, json=token, headers=own)).json()["data"] == accepted.json()["data"]
    assert (await team["stranger"].get(team.path)).status_code == 200
    del own["Idempotency-Key"]
    assert code(await team["stranger"].post(accept, json=token, headers=own)) == (404, "not_found")
    (listed,) = (await team["admin"].get(path)).json()["data"]
    assert listed["accepted_at"] is not None and "token" not in listed


async def test_void_invitations(team: Team) -> None:
    path, own = f"{team.path}/invitations", of(team.other)
    body = {"email": team.email("stranger"), "role_name": "viewer"}
    old = (await team["owner"].post(path, json=body)).json()["data"]
    team.api.db.rows("UPDATE invitations SET expires_at = now() WHERE id = %s", old["id"])
    taken_back = (await team["owner"].post(path, json=body)).json()["data"]
    assert (await team["owner"].delete(f"{path}/{taken_back['id']}")).status_code == 204
    for token in (old["token"], taken_back["token"], "x", "cairn_invite_"):
        answer = await team["stranger"].post("/v1/invitations/accept", json={"token": token}, headers=own)
        assert code(answer) == (404, "not_found")
    assert code(await team["stranger"].get(team.path)) == (404, "not_found")
    # Whether somebody has an account shows in no answer.
    known, unknown = [
        (await team["owner"].post(path, json=body | {"email": email})).json()["data"]
        for email in (team.email("stranger"), "nobody@example.org")
    ]
    assert known.keys() == unknown.keys()


async def test_service_account_works_with_its_keys(team: Team) -> None:
    owner = team["owner"]
    account = (await owner.post("/v1/service-accounts", json={"name": "ci", "role_name": "developer"})).json()["data"]
    keys = f"/v1/service-accounts/{account['id']}/keys"
    asked = {"name": "one", "scopes": ["instances:*", "images:read"]}
    headers = {"Idempotency-Key": str(uuid4())}
    one, again = [(await owner.post(keys, json=asked, headers=headers)).json()["data"] for _ in range(2)]
    assert one == again, "one format, and one way to show it again"
    assert one["key"].count("_") == 2 and not is_damaged(one["key"]) and is_damaged(one["key"][:-1])
    assert code(await owner.post(keys, json={"name": "x", "scopes": ["what:*"]})) == (422, "validation_failed")
    (binding,) = (
        each for each in (await owner.get("/v1/rbac/bindings")).json()["data"] if each["service_account"] is not None
    )
    assert binding["service_account"]["name"] == "ci" and binding["user"] is None
    async with team.api.as_(one["key"]) as http:
        assert (await http.get("/v1/instances")).status_code == 200
        assert code(await http.get("/v1/ssh-keys")) == (403, "forbidden")
        assert code(await http.post("/v1/projects", json={"name": "x"})) == (403, "forbidden")
        two = (await owner.post(f"{keys}/{one['id']}/rotate", json={"overlap_seconds": 60})).json()["data"]
        assert two["scopes"] == one["scopes"]
        assert code(await owner.post(f"{keys}/{one['id']}/rotate")) == (409, "invalid_state")
        assert (await http.get("/v1/instances")).status_code == 200
        assert (await owner.post(f"{keys}/{one['id']}/revoke")).status_code == 200
        assert code(await http.get("/v1/instances")) == (401, "unauthenticated")
    listed = (await owner.get(keys)).json()["data"]
    assert [each["id"] for each in listed] == [two["id"], one["id"]] and all("key" not in each for each in listed)
    path = f"/v1/service-accounts/{account['id']}"
    assert (await owner.patch(path, json={"name": "ci2"})).json()["data"]["version"] == 2
    async with team.api.as_(two["key"]) as http:
        assert (await http.get("/v1/instances")).status_code == 200
        assert (await owner.delete(path)).status_code == 204
        assert code(await http.get("/v1/instances")) == (401, "unauthenticated")


async def test_removed_binding_closes_the_keys_of_a_service_account_too(team: Team) -> None:
    owner = team["owner"]
    account = (await owner.post("/v1/service-accounts", json={"name": "ci", "role_name": "viewer"})).json()["data"]
    key = (await owner.post(f"/v1/service-accounts/{account['id']}/keys", json={"name": "k"})).json()["data"]["key"]
    (binding,) = (
        each["id"] for each in (await owner.get("/v1/rbac/bindings")).json()["data"] if each["service_account"]
    )
    async with team.api.as_(key) as http:
        assert (await http.get("/v1/instances")).status_code == 200
        await owner.delete(f"/v1/rbac/bindings/{binding}")
        assert code(await http.get("/v1/instances")) == (403, "forbidden")
