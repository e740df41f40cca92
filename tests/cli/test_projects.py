"""Projects, roles, service accounts and quotas on the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cli import config
from cli.errors import Exit
from tests.cli.fake import WHEN, WORKFLOW, Answer, FakeApi, cairn, workflow

ID, OTHER = "0199b3f0-0000-7000-8000-0000000000aa", "0199b3f0-0000-7000-8000-0000000000bb"
PROJECT: dict[str, Any] = {
    "id": ID,
    "name": "Payments",
    "unix_name": "payments",
    "description": "",
    "personal": False,
    "active": True,
    "deleting": False,
    "drift_policy": "report",
    "version": 1,
    "created_at": WHEN,
}
TWIN = PROJECT | {"id": OTHER, "unix_name": "payments-x"}


def test_projects_are_made_listed_and_found_by_their_names(api: FakeApi) -> None:
    api.on("POST /projects", Answer(201, PROJECT))
    assert "payments" in cairn("project", "create", "Payments", "--unix-name", "payments").stdout
    assert api.seen("POST /projects")[0].body == {"name": "Payments", "description": "", "unix_name": "payments"}
    api.on("GET /projects", Answer(200, [PROJECT, TWIN]))
    assert "payments-x" in cairn("project", "list").stdout
    assert json.loads(cairn("project", "show", "payments", "-o", "json").stdout)["id"] == ID
    # A name that two have is nobody's.
    assert cairn("project", "show", "Payments").exit_code == Exit.REFUSED
    assert cairn("project", "show", "nothing").exit_code == Exit.NOT_FOUND


def test_a_key_says_that_it_works_in_its_own_project_alone(api: FakeApi) -> None:
    api.on("POST /projects", Answer(201, TWIN))
    api.on("GET /auth/me", Answer(200, {"project": PROJECT}))
    made = cairn("project", "create", "Payments")
    assert made.exit_code == Exit.OK
    assert "works in project Payments alone" in made.stderr and "cairn project use payments-x" in made.stderr
    api.on("GET /projects", Answer(200, [PROJECT]))
    missing = cairn("project", "show", "payments-x")
    assert missing.exit_code == Exit.NOT_FOUND and "cairn login" in missing.stderr


def test_project_that_is_chosen_is_that_of_the_context(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.on("GET /projects", Answer(200, [PROJECT, TWIN]))
    assert cairn("project", "use", "payments").exit_code == Exit.USAGE, "there is no context"
    with config.changing() as document:
        document["contexts"] = {"prod": {"url": api.url, "key": "k"}}
        document["current"] = "prod"
    monkeypatch.delenv("CAIRN_API_URL")
    monkeypatch.delenv("CAIRN_API_KEY")
    assert cairn("project", "use", "payments").exit_code == 0
    assert config.read().contexts["prod"].project == ID


GONE = Answer(404, error={"code": "not_found", "message": "there is no such project"})


@pytest.fixture
def in_use(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    """A project is in use, by a context."""
    with config.changing() as document:
        document["contexts"] = {"prod": {"url": api.url, "key": "k", "project": OTHER}}
        document["current"] = "prod"
    monkeypatch.delenv("CAIRN_API_URL")
    monkeypatch.delenv("CAIRN_API_KEY")
    return api


def test_project_in_use_is_not_named_beside_another_nor_where_one_asks_about_oneself(in_use: FakeApi) -> None:
    """Regression: the path named one project and the header another, which is a 404."""
    in_use.on("GET /projects", Answer(200, [PROJECT]))
    in_use.on(f"GET /projects/{ID}/members", Answer(200, []))
    in_use.on(f"GET /projects/{ID}/quotas", Answer(200, {}))
    in_use.on(f"DELETE /projects/{ID}", Answer(204))
    in_use.on("GET /instances", Answer(200, []))
    for words in (("project", "members"), ("quota", "show"), ("project", "rm")):
        assert cairn(*words, "payments").exit_code == 0
    asked = [request for request in in_use.requests if request.path.startswith("/projects")]
    assert len(asked) > 5 and not [request.path for request in asked if "x-project-id" in request.headers]
    cairn("api", "GET", "/v1/projects")
    assert "x-project-id" not in in_use.requests[-1].headers
    cairn("api", "GET", "/projects", "-H", f"X-Project-ID: {ID}")
    assert in_use.requests[-1].headers["x-project-id"] == ID
    cairn("instance", "list")
    assert in_use.requests[-1].headers["x-project-id"] == OTHER


def test_project_in_use_that_is_gone_is_told_and_another_can_be_used(in_use: FakeApi) -> None:
    """Regression: after the project in use was removed every command failed."""
    in_use.on("GET /projects", Answer(200, [PROJECT]))
    in_use.on("GET /instances", GONE)
    in_use.on("GET /auth/me", GONE)
    told = cairn("instance", "list")
    assert told.exit_code == Exit.NOT_FOUND
    assert "the project in use is deleted" in told.stderr and "cairn project use NAME" in told.stderr
    assert cairn("project", "list").exit_code == 0
    assert cairn("project", "use", "payments").exit_code == 0
    assert config.read().contexts["prod"].project == ID
    in_use.on(f"DELETE /projects/{ID}", Answer(204))
    assert cairn("project", "rm", "payments").exit_code == 0
    assert config.read().contexts["prod"].project is None


def test_members_invitations_and_the_end(api: FakeApi) -> None:
    api.on("GET /projects", Answer(200, [PROJECT]))
    member = {"id": OTHER, "email": "jo@example.org", "name": "Jo", "roles": ["viewer", "admin"], "created_at": WHEN}
    api.on(f"GET /projects/{ID}/members", Answer(200, [member]))
    assert "admin, viewer" in cairn("project", "members").stdout
    made = {"email": "jo@example.org", "role_name": "developer", "expires_at": WHEN, "token": "cairn_invite_x"}
    api.on(f"POST /projects/{ID}/invitations", Answer(201, made))
    assert "cairn_invite_x" in cairn("project", "invite", "jo@example.org", "--role", "developer").stdout
    api.on("POST /invitations/accept", Answer(200, {"project_id": ID, "project_name": "Payments"}))
    assert cairn("project", "join", "cairn_invite_x").exit_code == 0
    invitation = made | {"id": OTHER, "invited_by": "user:a@x.org", "accepted_at": None, "created_at": WHEN}
    api.on(f"GET /projects/{ID}/invitations", Answer(200, [invitation]))
    assert "void" in cairn("project", "invitations").stdout
    api.on(f"DELETE /projects/{ID}/invitations/{OTHER}", Answer(204))
    assert cairn("project", "uninvite", "Jo@example.org").exit_code == 0
    assert len(api.seen(f"DELETE /projects/{ID}/invitations/{OTHER}")) == 1
    assert cairn("project", "uninvite", "someone@example.org").exit_code == Exit.NOT_FOUND


def test_project_that_is_deleted_with_its_workflow_is_deleted(api: FakeApi) -> None:
    api.on("GET /projects", Answer(200, [PROJECT]))
    api.on(f"DELETE /projects/{ID}", Answer(202, PROJECT, meta={"workflow_id": WORKFLOW}))
    begun = cairn("project", "rm", "payments", "--cascade", "--no-wait")
    assert begun.exit_code == 0 and WORKFLOW in begun.stderr
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow("running")), GONE)
    api.on(f"GET /projects/{ID}", GONE)
    ended = cairn("project", "rm", "payments", "--cascade")
    assert ended.exit_code == 0 and "Payments is deleted" in ended.stderr
    assert {one.headers["x-project-id"] for one in api.seen(f"GET /workflows/{WORKFLOW}")} == {ID}
    api.scripts[f"GET /workflows/{WORKFLOW}"].clear()
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow("failed")))
    assert cairn("project", "rm", "payments", "--cascade").exit_code == Exit.FAILED


def test_roles_and_bindings(api: FakeApi) -> None:
    role = {"name": "releaser", "description": "", "permissions": ["images:read"], "built_in": False}
    api.on("GET /rbac/roles", Answer(200, [role]))
    assert "releaser" in cairn("role", "list").stdout
    api.on("POST /rbac/roles", Answer(201, role))
    assert cairn("role", "create", "releaser", "images:read").exit_code == 0
    assert api.requests[-1].body == {"name": "releaser", "permissions": ["images:read"]}
    user = {"id": OTHER, "email": "jo@example.org", "name": "Jo"}
    binding = {"id": ID, "role_name": "releaser", "user": user, "service_account": None, "created_at": WHEN}
    api.on("GET /rbac/bindings", Answer(200, [binding]))
    assert "jo@example.org" in cairn("role", "bindings").stdout
    api.on(f"DELETE /rbac/bindings/{ID}", Answer(204, None))
    assert cairn("role", "unbind", "releaser", "Jo@example.org").exit_code == 0
    assert cairn("role", "unbind", "viewer", "jo@example.org").exit_code == Exit.NOT_FOUND


def test_key_of_a_service_account_is_all_that_is_printed(api: FakeApi) -> None:
    account = {"id": ID, "name": "ci", "description": "", "created_at": WHEN}
    api.on("GET /service-accounts", Answer(200, [account]))
    api.on(f"POST /service-accounts/{ID}/keys", Answer(201, {"id": OTHER, "name": "one", "key": "cairn_secret"}))
    result = cairn("service-account", "key", "ci", "one", "--scope", "instances:*")
    assert result.stdout == "cairn_secret\n"
    assert api.requests[-1].body == {"name": "one", "scopes": ["instances:*"]}


def test_quotas_are_shown_and_set(api: FakeApi) -> None:
    quotas = {"instances": {"limit": None, "used": 1, "reserved": 0}}
    api.on("GET /projects", Answer(200, [PROJECT]))
    api.on(f"GET /projects/{ID}/quotas", Answer(200, quotas))
    assert "none" in cairn("quota", "show").stdout
    api.on(f"PATCH /projects/{ID}/quotas", Answer(200, quotas))
    assert cairn("quota", "set", "payments", "instances=5", "vcpus=none").exit_code == 0
    assert api.requests[-1].body == {"instances": 5, "vcpus": None}
    assert cairn("quota", "set", "payments", "instances=many").exit_code == Exit.USAGE


def test_of_several_projects_commands_take_the_one_that_the_api_takes(api: FakeApi) -> None:
    api.on("GET /projects", Answer(200, [PROJECT, TWIN]))
    api.on("GET /auth/me", Answer(200, {"project": {"id": ID, "name": "Payments"}}))
    api.on(f"GET /projects/{ID}", Answer(200, PROJECT))
    api.on(f"GET /projects/{ID}/members", Answer(200, []))
    api.on(f"GET /projects/{ID}/quotas", Answer(200, {}))
    api.on(f"PATCH /projects/{ID}", Answer(200, PROJECT))
    for words in ("project show", "project members", "project set --name x", "quota show"):
        assert cairn(*words.split()).exit_code == Exit.OK, words
