"""Who may do what: every operation of the OpenAPI document, tried by everybody who is not meant to use it.

What is foreign and what is absent are told apart by nobody: not by status, body or headers, nor by what changes. An
operation that is new is tried without being named here; one with a new kind of id fails until ``THINGS`` knows one.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi.routing import APIRoute
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from api.app import create_app
from model.base import new_id
from model.secrets import digest
from model.settings import Settings
from tests.api.conftest import BODY, Api
from tests.api.test_ssh_keys import KEY
from tests.api.test_streams import placed
from tests.api.test_webhooks import deliver, make

Json = dict[str, Any]
#: Without a key: probes, and who joins, who shows a token instead.
OPEN = {"GET /health/live", "GET /health/ready", "POST /v1/hosts/register"}
WRITTEN = ("instances", "workflows", "events", "images", "ssh_keys", "webhooks", "webhook_deliveries", "projects")
#: What all projects see: the fleet, the sizes.
SHARED = {"host_id", "type_name"}
#: Of these, each answer has its own.
EACH_ITS_OWN = {"x-request-id", "date", "ratelimit-remaining", "ratelimit-reset"}
SOCKETS = ("/v1/ws/logs/{instance_id}", "/v1/ws/stats/{instance_id}", "/v1/ws/terminal/{instance_id}")


class Operation:
    """One of the document, and a request of it that is as it should be."""

    def __init__(self, document: Json, method: str, path: str, found: Json) -> None:
        self.name = f"{method.upper()} {path}"
        self.method, self.path = method.upper(), path
        security = found.get("security") or [{}]
        schemes = {scheme for one in security for scheme in one}
        self.of_agents = schemes == {"HostCredential"}
        self.of_projects = schemes == {"ApiKey", "Bearer"}
        self.of_operators = any("operator" in scopes for one in security for scopes in one.values())
        self.ids = re.findall(r"{(\w+)}", path)
        self.content = found.get("requestBody", {}).get("content", {})
        self.example = self._example(document)
        required = [one for one in found.get("parameters", []) if one.get("in") == "query" and one.get("required")]
        self.query = {one["name"]: str(uuid4()) for one in required}

    def _example(self, document: Json) -> Any:
        schema = self.content.get("application/json", {}).get("schema", {})
        for choice in [schema, *schema.get("anyOf", [])]:
            found = choice
            if "$ref" in choice:
                found = document["components"]["schemas"][choice["$ref"].rsplit("/", 1)[1]]
            for example in found.get("examples", []):
                return example
        return None

    async def ask(self, http: httpx.AsyncClient, ids: Json, **headers: str) -> httpx.Response:
        """The request, about what has these ids."""
        body: Json = {"json": self.example} if self.example is not None else {}
        if "application/octet-stream" in self.content:
            body = {"content": b"a file"}
        path = self.path.format_map(ids)
        answer = await http.request(self.method, path, params=self.query, headers=headers, **body)
        assert answer.status_code < 500, f"{self.name}: {answer.text}"
        return answer


def operations() -> Iterator[Operation]:
    document = create_app(Settings(), None, None, None).openapi()  # type: ignore[arg-type]
    for path, item in document["paths"].items():
        for method, found in item.items():
            yield Operation(document, method, path, found)


ALL = {one.name: one for one in operations()}
ABOUT = [one for one in ALL.values() if one.of_projects and set(one.ids) - SHARED]


class World:
    """The platform's own project with one of everything, and a stranger with a project of his own."""

    def __init__(self, api: Api, things: Json, stranger: httpx.AsyncClient) -> None:
        self.api = api
        self.things = things
        self.stranger = stranger

    def ids(self, **more: str) -> Json:
        shared = {"host_id": str(self.api.db.hosts["one"]), "type_name": "basic-1", "digest": "sha256:" + "0" * 64}
        return shared | self.things | more

    def written(self) -> Json:
        """All rows that belong to a project."""
        return {table: self.api.db.rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in WRITTEN}


@pytest_asyncio.fixture
async def world(api: Api) -> AsyncIterator[World]:
    instance = await placed(api, "web")
    hook = await make(api)
    image = (await api.http.post("/v1/images", json={"name": "own", "source": {"type": "upload"}})).json()["data"]
    key = await api.http.post("/v1/ssh-keys", json={"name": "mine", "public_key": KEY})
    assert key.status_code == 201, key.text
    things = {
        "instance_id": instance["id"],
        "workflow_id": instance["workflow_id"],
        "image_id": image["id"],
        "webhook_id": hook["id"],
        "delivery_id": deliver(api, hook, "dead"),
        "key_id": key.json()["data"]["id"],
        "project_id": str(api.db.project_id),
    }
    async with api.as_(api.db.project("stranger")) as stranger:
        yield World(api, things, stranger)


def told(answer: httpx.Response, ids: list[str]) -> tuple[int, str, Json]:
    """All that an answer tells, but for what was asked about."""
    headers = {name: value for name, value in answer.headers.items() if name not in EACH_ITS_OWN}
    body = answer.text.replace(answer.headers["x-request-id"], "")
    for one in ids:
        body = body.replace(one, "")
    return answer.status_code, body, headers


def test_every_operation_says_who_may_use_it() -> None:
    assert {one.name for one in ALL.values() if not (one.of_agents or one.of_projects)} == OPEN
    assert len(ABOUT) > 25
    # What all projects share is changed by operators alone, whatever a route says of itself.
    shared = [one for one in ALL.values() if one.of_projects and re.match(r"/v1/(hosts|instance-types)\b", one.path)]
    assert {one.name for one in shared if one.method != "GET"} == {one.name for one in ALL.values() if one.of_operators}
    # What is served and not documented is the documentation, and what no path has.
    app = create_app(Settings(), None, None, None)  # type: ignore[arg-type]
    hidden = {route.path for route in app.routes if isinstance(route, APIRoute) and not route.include_in_schema}
    assert not hidden


@pytest.mark.parametrize("key", [{}, {"X-API-Key": "cairn_wrong"}, {"Authorization": "Bearer cairn_host_wrong"}])
async def test_who_shows_no_key_or_a_wrong_one_gets_401_everywhere(world: World, key: dict[str, str]) -> None:
    before = world.written()
    async with httpx.AsyncClient(base_url=world.api.url, headers=key) as nobody:
        for one in ALL.values():
            answer = await one.ask(nobody, world.ids())
            if one.name.startswith("GET /health"):
                assert answer.status_code == 200, one.name
            else:  # that of who joins is the example's token
                assert (one.name, answer.status_code) == (one.name, 401)
                assert answer.json()["error"]["code"] == "unauthenticated"
    assert world.written() == before


async def test_hosts_credential_opens_what_agents_ask_for_and_nothing_else(world: World) -> None:
    before = world.written()
    async with httpx.AsyncClient(base_url=world.api.url, headers={"X-API-Key": "agent-one"}) as agent:
        for one in ALL.values():
            if one.of_projects:
                answer = await one.ask(agent, world.ids())
                assert (one.name, answer.status_code) == (one.name, 401)
    assert world.written() == before


async def test_projects_key_is_no_hosts_credential(world: World) -> None:
    agents_own = [one for one in ALL.values() if one.of_agents]
    assert len(agents_own) > 4
    for one in agents_own:
        answer = await one.ask(world.api.http, world.ids())
        assert (one.name, answer.status_code) == (one.name, 401)


async def test_another_projects_key_manages_no_hosts_and_no_sizes(world: World) -> None:
    operators = [one for one in ALL.values() if one.of_operators]
    assert len(operators) > 6
    before = world.written()
    for one in operators:
        answer = await one.ask(world.stranger, world.ids())
        assert (one.name, answer.status_code) == (one.name, 403)
        absent = world.ids(host_id=str(uuid4()), type_name="none")
        assert told(await one.ask(world.stranger, absent), []) == told(answer, []), one.name
    assert world.written() == before


async def test_foreign_and_absent_are_told_apart_by_nothing(world: World) -> None:
    before = world.written()
    for one in ABOUT:
        for headers in ({}, {"Idempotency-Key": "once"}, {"If-Match": '"1"'}, {"Prefer": "wait=1"}):
            known = [world.things[what] for what in one.ids]
            absent = {what: str(uuid4()) for what in one.ids}
            theirs = told(await one.ask(world.stranger, world.ids(), **headers), known)
            nobodys = told(await one.ask(world.stranger, world.ids(**absent), **headers), list(absent.values()))
            assert (one.name, headers, nobodys[0]) == (one.name, headers, 404)
            assert (one.name, headers, theirs) == (one.name, headers, nobodys)
        assert world.written() == before, one.name


async def test_key_is_changed_without_a_gap(api: Api) -> None:
    """As docs/security.md says: the new one beside the old one, then without it."""
    columns = "id, project_id, name, digest"
    new = (new_id(), api.db.project_id, "new", digest("cairn_new"))
    with api.db.connect("cairn_owner") as owner:
        owner.execute(f"INSERT INTO api_keys ({columns}) VALUES (%s, %s, %s, %s)", new)
        async with api.as_("cairn_new") as http:
            assert (await http.get("/v1/hosts")).status_code == (await api.http.get("/v1/hosts")).status_code == 200
            owner.execute("UPDATE api_keys SET revoked_at = now() WHERE name = 'admin'")
            assert (await http.get("/v1/hosts")).status_code == 200
            assert (await api.http.get("/v1/hosts")).status_code == 401


async def test_part_of_ones_own_that_is_a_strangers_is_absent(world: World) -> None:
    mine = await make(world.api, "mine", world.stranger)
    one = ALL["POST /v1/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver"]
    known, absent = world.things["delivery_id"], str(uuid4())
    theirs = await one.ask(world.stranger, world.ids(webhook_id=mine["id"]))
    nobodys = await one.ask(world.stranger, world.ids(webhook_id=mine["id"], delivery_id=absent))
    assert nobodys.status_code == 404
    assert told(theirs, [known]) == told(nobodys, [absent])


@pytest.mark.parametrize(
    ("field", "known", "absent"),
    [
        ("ssh_key_id", "{key_id}", str(uuid4())),
        ("image", "{image_id}", str(uuid4())),
        ("image", "own", "owl"),
        ("host", "{instance_id}", str(uuid4())),
    ],
)
async def test_launch_names_nothing_of_a_stranger(world: World, field: str, known: str, absent: str) -> None:
    """Where a body names a thing: one that is foreign is as unknown as one that is absent."""
    said = []
    for name, value in (("first", known.format_map(world.things)), ("second", absent)):
        answer = await world.stranger.post("/v1/instances", json=BODY | {"name": name, field: value})
        error = answer.json()["error"]
        said.append((answer.status_code, error and (error["code"], error["message"].replace(value, ""))))
    assert said[0] == said[1]


#: Lists of what is a project's, each asked for what is the platform's own.
LISTS = {
    "/v1/instances": "?name=web",
    "/v1/workflows": "?resource_id={instance_id}",
    "/v1/images": "?name=own",
    "/v1/ssh-keys": "?name=mine",
    "/v1/webhooks": "?name=chat",
}
#: Of the fleet; of the caller's one project; counts and events, which have tests of their own.
OTHER = {"/v1/hosts", "/v1/instance-types", "/v1/projects", "/v1/dashboard/summary", "/v1/events"}


async def test_lists_show_nothing_of_a_stranger(world: World) -> None:
    assert set(LISTS) == {one.path for one in ALL.values() if one.name == f"GET {one.path}" and not one.ids} - OTHER - {
        path.removeprefix("GET ") for path in OPEN
    }
    for path, query in LISTS.items():
        asked = path + query.format_map(world.things)
        answer = await world.stranger.get(asked)
        assert (asked, answer.status_code, answer.json()["data"]) == (asked, 200, [])
        assert len((await world.api.http.get(asked)).json()["data"]) == 1, asked
    (project,) = (await world.stranger.get("/v1/projects")).json()["data"]
    assert project["id"] != world.things["project_id"]


async def test_project_of_a_stranger_and_an_absent_one_are_the_same_in_the_header_too(world: World) -> None:
    for one in ALL.values():
        if not one.of_projects:
            continue
        pair = [
            told(await one.ask(world.api.http, world.ids(), **{"X-Project-ID": project}), [project])
            for project in (await _strangers_project(world), str(uuid4()))
        ]
        assert pair[0][0] == 404, one.name
        assert pair[0] == pair[1], one.name


async def _strangers_project(world: World) -> str:
    (project,) = (await world.stranger.get("/v1/projects")).json()["data"]
    return str(project["id"])


@pytest.mark.parametrize("path", SOCKETS)
async def test_sockets_too(world: World, path: str) -> None:
    said = []
    for instance in (world.things["instance_id"], str(uuid4())):
        url = world.api.url.replace("http", "ws", 1) + path.format(instance_id=instance)
        with pytest.raises(InvalidStatus) as error:
            await connect(url, additional_headers=dict(world.stranger.headers), proxy=None)
        response = error.value.response
        body = response.body.decode().replace(instance, "").replace(response.headers["x-request-id"], "")
        kept = {name: value for name, value in response.headers.items() if name.lower() not in EACH_ITS_OWN}
        said.append((response.status_code, body, kept))
    assert said[0][0] == 404
    assert said[0] == said[1]
