"""Invitations by mail, what they prove, and how long they are good for."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr

from model.mail import Letter
from model.rates import Rate
from tests.api.conftest import Api
from tests.api.people import bearing, logged_in, login, nobody, register
from tests.api.test_members import Team, team
from tests.api.test_projects import code, of
from tests.services import eventually

__all__ = ["team"]
ACCEPT = "/v1/invitations/accept"


@pytest.fixture
def mailed(api: Api, monkeypatch: pytest.MonkeyPatch) -> list[Letter]:
    """What an API with a server for mails sends."""
    sent: list[Letter] = []
    monkeypatch.setattr("api.mails.send", lambda _, letter: sent.append(letter))
    settings = api.app.state.settings
    url = {"smtp_url": SecretStr("smtp://127.0.0.1:1"), "mailer": "smtp"}
    api.app.state.settings = api.app.state.mails._settings = settings.model_copy(update=url)
    return sent


async def invite(api: Api, email: str) -> httpx.Response:
    body = {"email": email, "role_name": "viewer"}
    return await api.http.post(f"/v1/projects/{api.db.project_id}/invitations", json=body)


def token_of(letter: Letter) -> dict[str, str]:
    return {"token": letter.link.partition("#")[2]}


async def test_token_goes_to_whom_it_is_for_and_to_nobody_else(api: Api, mailed: list[Letter]) -> None:
    granted = await logged_in(api, "invited")
    answer = await invite(api, "Invited@example.org")
    assert answer.status_code == 201 and answer.json()["data"]["token"] is None
    assert await eventually(lambda: mailed and not api.db.rows("SELECT 1 FROM mails"))
    (letter,) = mailed
    assert letter.to == "invited@example.org" and "/accept-invitation#cairn_invite_" in letter.link
    (row,) = api.db.rows("SELECT i::text AS told FROM invitations i")
    assert token_of(letter)["token"] not in row["told"]
    async with bearing(api, granted["access_token"]) as http:
        assert (await http.post(ACCEPT, json=token_of(letter))).status_code == 200
    user = (await api.http.get(f"/v1/users/{granted['user']['id']}")).json()["data"]
    assert user["verified"], "who has the mail has the address"


async def test_mail_that_is_sent_again_voids_the_one_before(api: Api, mailed: list[Letter]) -> None:
    granted = await logged_in(api, "twice")
    await invite(api, "twice@example.org")
    assert await eventually(lambda: mailed and not api.db.rows("SELECT 1 FROM mails"))
    about = api.db.one("SELECT jsonb_build_object('project_id', project_id, 'invitation_id', id) AS a FROM invitations")
    row = (uuid4(), about["a"]["project_id"], about["a"]["invitation_id"])
    api.db.rows(
        "INSERT INTO mails (id, kind, recipient, about) VALUES (%s, 'invitation', 'twice@example.org',"
        " jsonb_build_object('project_id', %s::text, 'invitation_id', %s::text))",
        *row,
    )
    api.app.state.mails.ring()
    assert await eventually(lambda: len(mailed) > 1)
    async with bearing(api, granted["access_token"]) as http:
        assert code(await http.post(ACCEPT, json=token_of(mailed[0]))) == (404, "not_found")
        assert (await http.post(ACCEPT, json=token_of(mailed[1]))).status_code == 200


async def test_invitation_that_was_taken_back_sends_no_mail(api: Api, mailed: list[Letter]) -> None:
    with api.db.connect() as connection, connection.transaction():
        connection.execute("LOCK mails IN EXCLUSIVE MODE")
        asked = asyncio.ensure_future(invite(api, "late@example.org"))
        await asyncio.sleep(0.1)
    made = (await asked).json()["data"]
    assert await eventually(lambda: not api.db.rows("SELECT 1 FROM mails"))
    mailed.clear()
    await api.http.delete(f"/v1/projects/{api.db.project_id}/invitations/{made['id']}")
    api.db.rows(
        "INSERT INTO mails (id, kind, recipient, about) VALUES (%s, 'invitation', 'late@example.org',"
        " jsonb_build_object('project_id', %s::text, 'invitation_id', %s::text))",
        *(uuid4(), str(api.db.project_id), made["id"]),
    )
    api.app.state.mails.ring()
    assert await eventually(lambda: not api.db.rows("SELECT 1 FROM mails"))
    assert mailed == []


async def test_mails_to_others_are_limited_and_say_nothing_of_who_asked(api: Api, mailed: list[Letter]) -> None:
    api.db.rows("UPDATE projects SET name = 'Look at https://evil.example.org'")
    for _ in range(60):
        last = await invite(api, "victim@example.org")
        if last.status_code == 429:
            break
    else:
        last = await invite(api, "victim@example.org")
    assert code(last) == (429, "rate_limited")
    assert await eventually(lambda: mailed)
    assert "evil" not in str(mailed)


async def test_mail_of_a_newer_release_is_left_to_it(api: Api, mailed: list[Letter]) -> None:
    api.db.rows("INSERT INTO mails (id, kind, recipient) VALUES (%s, 'of tomorrow', 'x@example.org')", uuid4())
    await invite(api, "now@example.org")
    assert await eventually(lambda: mailed)
    assert [row["kind"] for row in api.db.rows("SELECT kind FROM mails WHERE attempts = 0")] == ["of tomorrow"]


async def test_who_registered_as_somebody_else_waits_in_vain(api: Api, mailed: list[Letter]) -> None:
    user = await register(api, "ceo")
    for identifier in ("ceo@example.org", user["id"]):
        body = {"role_name": "owner", "user_identifier": identifier}
        assert code(await api.http.post("/v1/rbac/bindings", json=body)) == (409, "address_unproved")
    member = f"/v1/projects/{api.db.project_id}/members/{user['id']}"
    refused = await api.http.put(member, json={"roles": ["owner"]})
    assert code(refused) == (409, "address_unproved")
    assert refused.json()["error"]["details"]["invite"] == "ceo@example.org"
    assert (await api.http.patch(f"/v1/users/{user['id']}", json={"verified": True})).status_code == 200
    assert (await api.http.put(member, json={"roles": ["viewer"]})).status_code == 200


async def test_first_mail_that_proves_an_address_leaves_its_squatter_nothing(api: Api, mailed: list[Letter]) -> None:
    granted = await logged_in(api, "taken")
    api.db.user(api.db.project_id, "friend")
    async with bearing(api, granted["access_token"]) as http:
        key = (await http.post("/v1/auth/keys", json={"name": "back-door"})).json()["data"]["key"]
        account = (await http.post("/v1/service-accounts", json={"name": "side-door"})).json()["data"]["id"]
        bound = {"role_name": "owner", "user_identifier": account}
        assert (await http.post("/v1/rbac/bindings", json=bound)).status_code == 201
        side = (await http.post(f"/v1/service-accounts/{account}/keys", json={"name": "k"})).json()["data"]["key"]
        friend = {"role_name": "owner", "user_identifier": "friend@example.org"}
        assert (await http.post("/v1/rbac/bindings", json=friend)).status_code == 201
        job = {"name": "bomb", "schedule": "@daily", "target": {"http": {"url": "https://1.1.1.1/"}}}
        assert (await http.post("/v1/cron/jobs", json=job)).status_code == 201
    async with api.as_(side) as http:
        assert (await http.get("/v1/instances")).status_code == 200
    async with nobody(api) as http:
        await http.post("/v1/auth/forgot-password", json={"email": "taken@example.org"})
        assert await eventually(lambda: mailed)
        body = token_of(mailed[0]) | {"password": "another fine password"}
        assert (await http.post("/v1/auth/reset-password", json=body)).status_code == 204
    for door in (key, side):
        async with api.as_(door) as http:
            assert (await http.get("/v1/instances")).status_code == 401
    again = (await login(api, "taken", "another fine password")).json()["data"]
    async with bearing(api, again["access_token"]) as http:
        members = (await http.get(f"/v1/projects/{again['user']['default_project_id']}/members")).json()["data"]
        assert [member["email"] for member in members] == ["taken@example.org"]
        assert [one["paused"] for one in (await http.get("/v1/cron/jobs")).json()["data"]] == [True]
    assert (await api.http.get(f"/v1/users/{granted['user']['id']}")).json()["data"]["verified"]


async def test_token_that_is_handed_over_proves_no_address(api: Api, mailed: list[Letter]) -> None:
    """Without a server for mails who invites has it too, and may have invited an address of their own."""
    off = {"smtp_url": None, "mailer": "smtp"}
    api.app.state.settings = api.app.state.settings.model_copy(update=off)
    granted = await logged_in(api, "handed")
    token = {"token": (await invite(api, "handed@example.org")).json()["data"]["token"]}
    async with bearing(api, granted["access_token"]) as http:
        assert (await http.post(ACCEPT, json=token)).status_code == 200
    assert not (await api.http.get(f"/v1/users/{granted['user']['id']}")).json()["data"]["verified"]
    member = f"/v1/projects/{api.db.project_id}/members/{granted['user']['id']}"
    assert (await api.http.put(member, json={"roles": ["operator"]})).status_code == 200, "who is a member is one"


async def test_without_mails_a_forgotten_password_is_said_to_stay_so(api: Api) -> None:
    api.app.state.settings = api.app.state.settings.model_copy(update={"mailer": "smtp"})
    async with nobody(api) as http:
        for name in ("admin", "stranger"):
            answer = await http.post("/v1/auth/forgot-password", json={"email": f"{name}@example.org"})
            assert code(answer) == (403, "mails_off")
    assert api.db.rows("SELECT 1 FROM mails") == []


@pytest.mark.parametrize("lost", ["removed", "demoted", "deactivated", "role lessened"])
async def test_invitation_is_void_once_who_invited_may_not_any_more(team: Team, lost: str) -> None:
    db, admin = team.api.db, team.id("admin")
    if lost == "role lessened":
        role = {"name": "inviter", "permissions": ["members:write", "members:read"]}
        assert (await team["owner"].post("/v1/rbac/roles", json=role)).status_code == 201
        small = {"name": "nothing", "permissions": []}
        assert (await team["owner"].post("/v1/rbac/roles", json=small)).status_code == 201
        await team["owner"].put(f"{team.path}/members/{admin}", json={"roles": ["inviter"]})
    body: dict[str, Any] = {"email": team.email("stranger")}
    body["role_name"] = "nothing" if lost == "role lessened" else "viewer"
    invitation = (await team["admin"].post(f"{team.path}/invitations", json=body)).json()["data"]
    if lost == "removed":
        await team["owner"].delete(f"{team.path}/members/{admin}")
    elif lost == "demoted":
        await team["owner"].put(f"{team.path}/members/{admin}", json={"roles": ["developer"]})
    elif lost == "deactivated":
        db.rows("UPDATE users SET deactivated_at = now() WHERE id = %s", admin)
    else:
        await team["owner"].patch("/v1/rbac/roles/inviter", json={"permissions": ["members:read"]})
    answer = await team["stranger"].post(ACCEPT, json={"token": invitation["token"]}, headers=of(team.other))
    assert code(answer) == (404, "not_found")
    assert db.one("SELECT accepted_at FROM invitations WHERE id = %s", invitation["id"])["accepted_at"] is None


async def test_nobody_takes_from_a_role_what_they_do_not_have(team: Team) -> None:
    role = {"name": "ender", "permissions": ["project:delete", "instances:read"]}
    assert (await team["owner"].post("/v1/rbac/roles", json=role)).status_code == 201
    path = "/v1/rbac/roles/ender"
    for left in ([], ["instances:read"]):
        assert code(await team["admin"].patch(path, json={"permissions": left})) == (403, "forbidden")
    kept = {"permissions": ["project:delete"]}
    assert (await team["admin"].patch(path, json=kept)).status_code == 200, "what stays is not given"


async def test_who_changes_members_holds_the_project_before_anything_in_it(team: Team) -> None:
    """Else two of them wait for each other, and one is told 503."""
    project, waiting = team.project["id"], "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    put = {"roles": ["operator"]}
    with team.api.db.connect() as first, team.api.db.connect() as second:
        with first.transaction():
            first.execute("SELECT FROM projects WHERE id = %s FOR UPDATE", [project])
            asked = [
                asyncio.ensure_future(team["owner"].put(f"{team.path}/members/{team.id('viewer')}", json=put)),
                asyncio.ensure_future(team["owner"].delete(f"{team.path}/members/{team.id('admin')}")),
            ]
            assert await eventually(lambda: len(team.api.db.rows(waiting)) > 1)
            second.execute("SELECT FROM bindings WHERE project_id = %s FOR UPDATE NOWAIT", [project])
        assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200, 204]


async def test_an_address_is_one_recipient(api: Api, mailed: list[Letter]) -> None:
    for email in ("root,jo@example.org", "<root>,jo@example.org", "all:jo@example.org", "jo@example.org,root"):
        assert (await invite(api, email)).status_code == 422
    assert (await invite(api, " jo@example.org ")).status_code == 201


async def test_service_accounts_of_a_project_have_one_limit_of_mails(api: Api, mailed: list[Letter]) -> None:
    api.app.state.limits.rates["mails"] = Rate(2, 3600)
    statuses = []
    for name in ("one", "two", "three"):
        account = (await api.http.post("/v1/service-accounts", json={"name": name})).json()["data"]
        bound = {"role_name": "admin", "user_identifier": account["id"]}
        assert (await api.http.post("/v1/rbac/bindings", json=bound)).status_code == 201
        key = (await api.http.post(f"/v1/service-accounts/{account['id']}/keys", json={"name": "k"})).json()["data"]
        async with api.as_(key["key"]) as http:
            body = {"email": f"{name}@example.org", "role_name": "viewer"}
            answer = await http.post(f"/v1/projects/{api.db.project_id}/invitations", json=body)
            statuses.append(answer.status_code)
    assert statuses == [201, 201, 429]
