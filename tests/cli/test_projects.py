"""Projects, roles, service accounts and quotas on the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cli import config
from cli.errors import Exit
from tests.cli.fake import WHEN, Answer, FakeApi, cairn

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
    assert api.requests[-1].body == {"name": "Payments", "description": "", "unix_name": "payments"}
    api.on("GET /projects", Answer(200, [PROJECT, TWIN]))
    assert "payments-x" in cairn("project", "list").stdout
    assert json.loads(cairn("project", "show", "payments", "-o", "json").stdout)["id"] == ID
    # A name that two have is nobody's.
    assert cairn("project", "show", "Payments").exit_code == Exit.USAGE
    assert cairn("project", "show", "nothing").exit_code == Exit.NOT_FOUND


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
    api.on(f"DELETE /projects/{ID}", Answer(202, PROJECT))
    assert cairn("project", "rm", "payments", "--cascade").exit_code == 0


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
    api.on(f"POST /service-accounts/{ID}/keys", Answer(201, {"name": "one", "key": "cairn_secret"}))
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
