"""What one project has, another never gets: events, streams, rows of which a filter was forgotten; and what was taken
from somebody is gone at once, in every process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import select
from websockets.asyncio.client import connect

import api.roles
import api.service_accounts
import api.ssh_keys
import api.work_agents
from api.paging import page_of
from model.base import new_id
from model.chat import WorkAgent
from model.ssh_keys import SshKey
from model.users import Role, ServiceAccount
from tests.api.conftest import Api, served
from tests.api.test_projects import code
from tests.api.test_ssh_keys import KEY
from tests.services import TemporalServer, eventually

Json = dict[str, Any]


@pytest_asyncio.fixture
async def both(shared_api: Api, temporal_server: TemporalServer) -> AsyncIterator[tuple[Api, Api]]:
    """Two API processes on one database."""
    async with served(shared_api.db, await temporal_server.client()) as other:
        yield shared_api, other


def a_project(api: Api) -> tuple[UUID, str]:
    """Another project, and the key of its owner."""
    key = api.db.project(f"t{uuid4().hex[:8]}")
    return api.db.one("SELECT project_id FROM api_keys WHERE name = %s", key.removeprefix("cairn_"))["project_id"], key


def write_event(api: Api, project: UUID, name: str) -> None:
    api.db.rows(
        "INSERT INTO events (project_id, type, resource_type, resource_id, data)"
        " VALUES (%s, 'test.happened', 'test', %s, jsonb_build_object('name', %s::text))",
        *(project, new_id(), name),
    )
    api.db.rows("NOTIFY cairn, ''")


async def heard(lines: AsyncIterator[str], word: str) -> str:
    """All that came until a line has the word."""
    told = ""
    async with asyncio.timeout(60):
        async for line in lines:
            told += line
            if word in line:
                return told
    raise AssertionError(f"the stream ended: {told}")


async def test_event_hub_tells_nobody_of_another_project(both: tuple[Api, Api]) -> None:
    api, _ = both
    mine, theirs = a_project(api), a_project(api)
    async with api.as_(mine[1]) as http, http.stream("GET", "/v1/events") as stream:
        url = api.url.replace("http", "ws", 1) + "/v1/ws/events"
        async with connect(url, additional_headers={"X-API-Key": mine[1]}, proxy=None) as socket:
            # One hub reads for both projects, one row after the other.
            async with api.as_(theirs[1]) as other, other.stream("GET", "/v1/events") as of_others:
                for number in range(3):
                    write_event(api, theirs[0], f"secret-{number}")
                write_event(api, mine[0], "the-last")
                write_event(api, theirs[0], "their-last")
                assert "secret" not in await heard(stream.aiter_lines(), "the-last")
                assert "the-last" not in await heard(of_others.aiter_lines(), "their-last")
            async with asyncio.timeout(60):
                first = await socket.recv()
            assert "the-last" in str(first)


@pytest.mark.parametrize("taken", ["binding", "project", "user", "key"])
async def test_what_was_taken_is_gone_with_the_next_request_in_every_process(both: tuple[Api, Api], taken: str) -> None:
    one, other = both
    project, key = a_project(one)
    async with one.as_(key) as here, other.as_(key) as there:
        assert (await here.get("/v1/instances")).status_code == (await there.get("/v1/instances")).status_code == 200
        async with there.stream("GET", "/v1/events") as stream:
            lines = stream.aiter_lines()
            write_event(one, project, "before")
            await heard(lines, "before")
            await take(one, project, taken)
            expected = {"binding": 404, "project": 403, "user": 401, "key": 401}[taken]
            for http in (here, there):
                assert (await http.get("/v1/instances")).status_code == expected
            # Open streams are looked at every few seconds.
            await other.app.state.open_streams.look()
            assert await eventually(lambda: other.app.state.open_streams.count == 0)
            async with asyncio.timeout(60):
                async for _ in lines:
                    pass


async def take(api: Api, project: UUID, what: str) -> None:
    if what == "project":
        assert (await api.http.post(f"/v1/projects/{project}/deactivate")).status_code == 200
        return
    of_project = {
        "binding": "DELETE FROM bindings WHERE project_id = %s",
        "user": "UPDATE users SET deactivated_at = now() WHERE default_project_id = %s",
        "key": "UPDATE api_keys SET revoked_at = now() WHERE project_id = %s",
    }
    api.db.rows(of_project[what], project)


@pytest.mark.parametrize(
    ("module", "path", "kind"),
    [
        (api.ssh_keys, "/v1/ssh-keys", SshKey),
        (api.service_accounts, "/v1/service-accounts", ServiceAccount),
        (api.roles, "/v1/rbac/roles", Role),
        (api.work_agents, "/v1/agents", WorkAgent),
    ],
)
async def test_route_that_forgot_its_filter_shows_nothing_of_another_project(
    shared_api: Api, monkeypatch: pytest.MonkeyPatch, module: Any, path: str, kind: Any
) -> None:
    body: Json = {"name": f"x{uuid4().hex[:8]}"}
    body |= {"public_key": KEY} if kind is SshKey else {"permissions": []} if kind is Role else {}
    _, key = a_project(shared_api)
    async with shared_api.as_(a_project(shared_api)[1]) as other:
        assert (await other.post(path, json=body)).status_code == 201

    async def forgotten(request: Any, caller: Any, _query: Any, *rest: Any, **more: Any) -> Any:
        return await page_of(request, caller, select(kind.__table__), *rest, **more)

    monkeypatch.setattr(module, "page_of", forgotten)
    async with shared_api.as_(key) as http:
        assert body["name"] not in (await http.get(path)).text
    async with shared_api.as_(key) as http:
        own = body | {"name": "own"}
        assert (await http.post(path, json=own)).status_code == 201
        rows = (await http.get(path)).json()["data"]
    assert [row["name"] for row in rows if not row.get("built_in")] == ["own"]


async def test_who_tries_again_may_also_ask_for_it(shared_api: Api) -> None:
    api = shared_api
    project, owner = a_project(api)
    async with api.as_(owner) as http:
        body = {"name": "web", "image": "cairn/base:latest"}
        launched = (await http.post("/v1/instances", json=body)).json()
    api.db.rows("UPDATE instances SET status = 'error', quota = 'none' WHERE id = %s", launched["data"]["id"])
    workflow = launched["meta"]["workflow_id"]
    api.db.rows("UPDATE workflows SET state = 'failed', finished_at = now() WHERE id = %s", workflow)
    for role, expected in (("operator", (403, "forbidden")), ("developer", (202, None))):
        async with api.as_(api.db.key(project, f"{role}{uuid4().hex[:8]}", role)) as http:
            assert code(await http.post(f"/v1/workflows/{workflow}/retry")) == expected


async def test_token_of_nobody_in_a_project_opens_it_nowhere(shared_api: Api) -> None:
    project, _ = a_project(shared_api)
    user = shared_api.db.user(shared_api.db.project_id, f"u{uuid4().hex[:8]}", "owner")
    async with await shared_api.signed_in(user) as http:
        for path in ("/v1/instances", "/v1/events", "/v1/rbac/bindings", "/v1/projects"):
            answer: httpx.Response = await http.get(path, headers={"X-Project-ID": str(project)})
            assert code(answer) == (404, "not_found")
