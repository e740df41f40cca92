"""Logging in from the command line: what is kept, how it is renewed, and by whom where two do it at once."""

from __future__ import annotations

import stat
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cli import config
from cli.client import Client
from cli.given import given
from tests.cli.fake import WHEN, WORKFLOW, Answer, FakeApi, Request, cairn, workflow

PASSWORD = "correct horse battery staple"
ME = {
    "user": {"id": "u", "email": "jo@x.org", "name": "Jo", "is_admin": False, "default_project_id": "p"},
    "service_account": None,
    "project": {"id": "p", "name": "Jo", "unix_name": "jo", "roles": ["owner"]},
    "permissions": ["account:read"],
    "scopes": None,
    "key_id": None,
    "projects": [{"id": "p", "name": "Jo", "unix_name": "jo", "roles": ["owner"]}],
}


def granted(number: int, seconds: int = 900) -> dict[str, Any]:
    user = {"id": "u", "email": "jo@x.org", "name": "Jo", "default_project_id": "p"}
    tokens = {"access_token": f"access-{number}", "refresh_token": f"refresh-{number}"}
    return {**tokens, "expires_in": seconds, "user": user}


@pytest.fixture
def here(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    """Without the key that the environment has."""
    monkeypatch.delenv("CAIRN_API_KEY")
    monkeypatch.setenv("CAIRN_PASSWORD", PASSWORD)
    api.on("POST /auth/login", Answer(200, granted(1)))
    api.on("GET /auth/me", Answer(200, ME))
    return api


def kept() -> dict[str, Any]:
    file = config.path()
    assert file
    (found,) = tomllib.loads(file.read_text())["contexts"].values()
    return dict(found)


def sent(api: FakeApi, path: str) -> list[Request]:
    return [request for request in api.requests if request.path == path]


def test_login_is_kept_for_its_owner_alone_used_and_ended(here: FakeApi) -> None:
    result = cairn("login", "--email", "jo@x.org")
    assert result.exit_code == 0, result.stderr
    assert PASSWORD not in result.stdout + result.stderr
    file = config.path()
    assert file and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert kept()["refresh_token"] == "refresh-1"
    assert PASSWORD not in file.read_text()
    assert "jo@x.org" in cairn("whoami").stdout
    assert sent(here, "/auth/me")[0].headers["authorization"] == "Bearer access-1"
    assert "access-1" not in cairn("context", "list").stdout
    here.on("POST /auth/logout", Answer(204))
    assert cairn("logout").exit_code == 0
    assert sent(here, "/auth/logout")[0].headers["authorization"] == "Bearer access-1"
    assert set(kept()) == {"url"}
    assert cairn("logout").exit_code == 2
    here.scripts["GET /auth/me"].clear()
    here.on("GET /auth/me", Answer(401, error={"code": "unauthenticated", "message": "no"}))
    assert "hint: cairn login" in cairn("whoami").stderr


def test_logout_chooses_again_what_was_chosen_before_the_login(here: FakeApi) -> None:
    here.on("POST /auth/logout", Answer(204))
    cairn("login", "--email", "jo@x.org", "--into", "jo")
    assert config.read().current == "jo"
    assert "context jo is not chosen any more" in cairn("logout").stderr
    assert config.read().current is None
    cairn("context", "use", "jo")
    cairn("login", "--email", "jo@x.org", "--into", "mo")
    assert "context jo is chosen again" in cairn("logout").stderr
    cairn("login", "--email", "jo@x.org", "--into", "mo")
    cairn("context", "use", "mo")
    cairn("logout")
    assert config.read().current == "mo"


def test_registering_sends_the_name_and_logs_in(here: FakeApi) -> None:
    here.on("POST /auth/register", Answer(201, granted(1)["user"]))
    assert cairn("login", "--register", "--email", "jo@x.org", "--name", "Jo").exit_code == 0
    (request,) = sent(here, "/auth/register")
    assert request.body == {"email": "jo@x.org", "password": PASSWORD, "name": "Jo"}
    assert kept()["access_token"] == "access-1"


def test_password_is_a_line_of_stdin_where_there_is_no_terminal(here: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAIRN_PASSWORD")
    assert cairn("login", "--email", "jo@x.org", stdin="another one\n").exit_code == 0
    assert sent(here, "/auth/login")[0].body["password"] == "another one"
    assert cairn("login", "--email", "jo@x.org", stdin="").exit_code == 2


def test_wrong_login_keeps_what_there_is(here: FakeApi) -> None:
    here.scripts["POST /auth/login"].clear()
    here.on("POST /auth/login", Answer(401, error={"code": "unauthenticated", "message": "no"}))
    refused = cairn("login", "--email", "jo@x.org")
    assert refused.exit_code == 5 and "cairn login --reset" in refused.stderr
    assert config.read().contexts == {}


def test_password_is_changed_with_the_old_one(here: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    cairn("login", "--email", "jo@x.org")
    here.on("PATCH /auth/me", Answer(200, ME))
    monkeypatch.delenv("CAIRN_PASSWORD")
    done = cairn("passwd", stdin=f"{PASSWORD}\nanother one\n")
    assert done.exit_code == 0, done.stderr
    (request,) = (request for request in here.requests if request.method == "PATCH")
    assert request.body == {"password": "another one", "old_password": PASSWORD}
    assert PASSWORD not in done.output and "another one" not in done.output
    assert cairn("passwd", stdin=f"{PASSWORD}\n").exit_code == 2


def test_key_of_the_environment_is_stronger_than_a_login(here: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    cairn("login", "--email", "jo@x.org")
    monkeypatch.setenv("CAIRN_API_KEY", "given")
    cairn("whoami")
    assert "authorization" not in sent(here, "/auth/me")[-1].headers
    assert sent(here, "/auth/me")[-1].headers["x-api-key"] == "given"


def test_tokens_go_to_no_other_address(here: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    cairn("login", "--email", "jo@x.org")
    other = FakeApi()
    monkeypatch.setenv("CAIRN_API_URL", other.url)
    cairn("whoami")
    assert other.requests and all("authorization" not in request.headers for request in other.requests)
    other.server.shutdown()
    other.server.server_close()


def test_token_that_ends_soon_is_renewed_before_and_one_that_is_refused_once(here: FakeApi) -> None:
    here.scripts["POST /auth/login"].clear()
    here.on("POST /auth/login", Answer(200, granted(1, seconds=5)))
    here.on("POST /auth/refresh", Answer(200, granted(2)), Answer(200, granted(3)))
    cairn("login", "--email", "jo@x.org")
    cairn("whoami")
    assert [request.headers["authorization"] for request in sent(here, "/auth/me")] == ["Bearer access-2"]
    here.scripts["GET /auth/me"].clear()
    here.on("GET /auth/me", Answer(401, error={"code": "unauthenticated", "message": "no"}), Answer(200, ME))
    assert cairn("whoami").exit_code == 0
    assert [request.body["refresh_token"] for request in sent(here, "/auth/refresh")] == ["refresh-1", "refresh-2"]
    assert kept()["refresh_token"] == "refresh-3"


def test_session_that_has_ended_says_to_log_in_and_is_forgotten(here: FakeApi) -> None:
    cairn("login", "--email", "jo@x.org")
    refused = Answer(401, error={"code": "unauthenticated", "message": "no"})
    here.scripts["GET /auth/me"].clear()
    here.on("GET /auth/me", refused)
    here.on("POST /auth/refresh", refused)
    result = cairn("whoami")
    assert result.exit_code == 5
    assert "cairn login" in result.stderr
    assert set(kept()) == {"url", "chosen_over"}
    assert "cairn context use --none" in cairn("logout").stderr
    assert len(sent(here, "/auth/refresh")) == 1


def test_of_many_that_renew_at_once_one_does_and_all_go_on(here: FakeApi) -> None:
    """A refresh token that is used twice ends the session: the file's lock keeps the second one from it."""
    here.scripts["POST /auth/login"].clear()
    here.on("POST /auth/login", Answer(200, granted(1, seconds=1)))
    cairn("login", "--email", "jo@x.org")
    here.on("POST /auth/refresh", Answer(200, granted(2)), Answer(401, error={"code": "unauthenticated"}))
    ready = threading.Barrier(6)

    def ask() -> Any:
        with Client() as client:
            ready.wait()
            return client.get("/auth/me")

    given.forget()
    with ThreadPoolExecutor(6) as pool:
        found = [future.result() for future in [pool.submit(ask) for _ in range(6)]]
    assert found == [ME] * 6
    assert len(sent(here, "/auth/refresh")) == 1
    assert float(kept()["expires_at"]) > time.time() + 600


def test_key_commands_print_a_key_once(here: FakeApi) -> None:
    cairn("login", "--email", "jo@x.org")
    key = {"id": "k", "project_id": "p", "name": "ci", "scopes": ["instances:*"], "created_at": "2026-01-01T12:00:00Z"}
    key |= {"expires_at": None, "last_used_at": None, "revoked_at": None}
    here.on("POST /auth/keys", Answer(201, key | {"key": "cairn_secret"}))
    result = cairn("key", "create", "ci", "--scope", "instances:*", "--expires", "90d")
    assert result.stdout == "cairn_secret\n"
    (request,) = sent(here, "/auth/keys")
    assert request.body["scopes"] == ["instances:*"]
    here.on("GET /auth/keys", Answer(200, [key]))
    assert "instances:*" in cairn("key", "list").stdout
    here.on("POST /auth/keys/k/rotate", Answer(201, key | {"key": "cairn_next"}))
    assert cairn("key", "rotate", "ci", "--overlap", "1d").stdout == "cairn_next\n"
    assert sent(here, "/auth/keys/k/rotate")[0].body == {"overlap_seconds": 86400}
    here.on("POST /auth/keys/k/revoke", Answer(200, key))
    assert cairn("key", "revoke", "ci").exit_code == 0


def test_revoking_by_name_ends_the_rotated_key_too_and_by_id_just_that_one(here: FakeApi) -> None:
    """Regression: the old key opened things for the rest of its overlap."""
    new, old, void = (f"0199b3f0-0000-7000-8000-00000000000{number}" for number in (1, 2, 3))
    key = {
        "project_id": "p",
        "name": "ci",
        "scopes": None,
        "created_at": WHEN,
        "expires_at": None,
        "last_used_at": None,
    }
    ends = {new: None, old: "2999-01-01T00:00:00Z", void: "2020-01-01T00:00:00Z"}
    rows = [key | {"id": id, "revoked_at": end} for id, end in ends.items()]
    # The key that asks is the newest: ended first, it could not end the others.
    here.scripts["GET /auth/me"].clear()
    here.on("GET /auth/me", Answer(200, ME | {"key_id": new}))
    here.on("GET /auth/keys", Answer(200, rows))
    here.on("GET /service-accounts", Answer(200, [{"id": "s", "name": "bot"}]))
    here.on("GET /service-accounts/s/keys", Answer(200, rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAIRN_API_KEY", "its own")
        for words, path in ((("key",), "/auth/keys"), (("service-account",), "/service-accounts/s/keys")):
            for row in rows:
                after = row | {"revoked_at": min(row["revoked_at"] or WHEN, WHEN)}
                here.on(f"POST {path}/{row['id']}/revoke", Answer(200, after))
                here.on(f"GET {path}/{row['id']}", Answer(200, row))
                here.on(f"DELETE {path}/{row['id']}", Answer(204))
            account = ["bot"] if words == ("service-account",) else []
            ended = cairn(*words, "revoke", *account, "ci")
            assert ended.exit_code == 0, ended.stderr
            assert "2 keys were named ci" in ended.stderr
            assert old in ended.stderr and new in ended.stderr and void not in ended.stderr
            sent_to = [one.path.split("/")[-2] for one in here.requests if one.path.endswith("/revoke")]
            assert sent_to == [old, void, new]
            here.requests.clear()
            assert cairn(*words, "revoke", *account, new).exit_code == 0
            assert [one.path.split("/")[-2] for one in here.requests if one.path.endswith("/revoke")] == [new]
            here.requests.clear()
        assert cairn("key", "rm", "ci").exit_code == 0
        assert [one.path.split("/")[-1] for one in here.requests if one.method == "DELETE"] == [old, void, new]
        shown = cairn("key", "list").stdout
    assert [word in shown for word in ("STATE", "live", " left", "void")] == [True] * 4


def test_users_are_found_by_address(here: FakeApi) -> None:
    cairn("login", "--email", "jo@x.org")
    user = {"id": "u", "email": "jo@x.org", "name": "Jo", "is_admin": False, "active": True, "default_project_id": "p"}
    user |= {"version": 1, "created_at": "2026-01-01T12:00:00Z", "updated_at": "2026-01-01T12:00:00Z"}
    here.on("GET /users", Answer(200, [user]))
    here.on("PATCH /users/u", Answer(200, user | {"active": False}))
    here.on("DELETE /users/u", Answer(204))
    assert "jo@x.org" in cairn("user", "list").stdout
    assert cairn("user", "deactivate", "jo@x.org").exit_code == 0
    assert sent(here, "/users/u")[0].body == {"active": False}
    assert cairn("user", "set", "jo@x.org").exit_code == 2
    assert cairn("user", "set", "jo@x.org", "--password").exit_code == 0
    assert here.requests[-1].body == {"password": PASSWORD}
    assert cairn("user", "rm", "jo@x.org").exit_code == 0
    here.scripts["DELETE /users/u"].clear()
    here.on("DELETE /users/u", Answer(202, user, meta={"workflow_id": WORKFLOW}))
    here.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow()))
    begun = cairn("user", "rm", "jo@x.org", "--cascade", "--no-wait")
    assert f"cairn workflow wait {WORKFLOW}" in begun.stderr and not sent(here, f"/workflows/{WORKFLOW}")
    ended = cairn("user", "rm", "jo@x.org", "--cascade")
    assert ended.exit_code == 0 and "user jo@x.org is deleted" in ended.stderr
