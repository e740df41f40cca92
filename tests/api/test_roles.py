"""Who may do what: every operation of the OpenAPI document, tried in every role, and by everybody who is not meant to
use it. What is expected follows from the permission that the operation declares, and from what roles have.

What is foreign and what is absent are told apart by nobody: not by status, body or headers, nor by what changes. An
operation that is new is tried without being named here; one with a new kind of id fails until ``THINGS`` knows one.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from fastapi.routing import APIRoute, APIWebSocketRoute, iter_route_contexts
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from api.app import create_app
from model import permissions
from model.base import Base, new_id
from model.permissions import PLATFORM, ROLES, effective
from model.secrets import digest
from model.settings import Settings
from tests.api.conftest import BODY, Api
from tests.api.test_balancers import balancer, target
from tests.api.test_cache_volumes import cache
from tests.api.test_chats import agent
from tests.api.test_cron import make as nightly
from tests.api.test_cron import running
from tests.api.test_pools import pool
from tests.api.test_restores import restore
from tests.api.test_ssh_keys import KEY
from tests.api.test_streams import placed
from tests.api.test_webhooks import deliver, make
from tests.api.test_work_sessions import create as session_of
from tests.api.test_work_sessions import workspace
from tests.api.test_workspaces import credential

Json = dict[str, Any]
#: Without a key: probes, and who joins, who shows a token instead.
OPEN = {"GET /health/live", "GET /health/ready", "POST /v1/hosts/register"} | {
    f"POST /v1/auth/{route}" for route in ("register", "login", "refresh", "forgot-password", "reset-password")
}
#: Served and not documented: the figures of a process, which have a token of their own.
HIDDEN = {"/metrics"}
#: What is the platform's own: changed by operators alone; of these, not even seen by others.
PLATFORMS, OPERATIONS = re.compile(r"/v1/(hosts|instance-types|operations|users)\b"), "/v1/operations/"
#: What all projects see: the fleet, the sizes.
SHARED = {"host_id", "type_name", "user_id", "number", "path", "key"}
#: What in a path is part of a thing, and none.
PARTS = {"number", "path", "key"}
#: What an agent answers, which no test here has.
FILES = re.compile(r"/v1/sessions/{session_id}/(files|archive|watch|diff)\b")
#: An id that nothing has: one for all, as it is in the names of tests.
NOBODYS = "0199b3f0-0000-7000-8000-00000000dead"
#: Of these, each answer has its own.
EACH_ITS_OWN = {"x-request-id", "date", "ratelimit-remaining", "ratelimit-reset"}
SOCKETS = (
    *("/v1/ws/logs/{instance_id}", "/v1/ws/stats/{instance_id}", "/v1/ws/terminal/{instance_id}"),
    *("/v1/sessions/{session_id}/terminal", "/v1/sessions/{session_id}/forward/8080"),
)
#: Of the caller's one project, with tests of its own; and that of every path that has none.
OTHER_SOCKETS = ("/v1/ws/events", "/{path:path}")
#: What tells of processes that live, and of requests themselves, also of those that are refused.
BESIDE = {"pulses", "rate_limits", "audit", "audit_links", "audit_heads"}


class Operation:
    """One of the document, and a request of it that is as it should be."""

    def __init__(self, document: Json, method: str, path: str, found: Json) -> None:
        self.name = f"{method.upper()} {path}"
        self.method, self.path = method.upper(), path
        security = found.get("security") or [{}]
        schemes = {scheme for one in security for scheme in one}
        self.of_agents = schemes == {"HostCredential"}
        self.of_projects = schemes == {"ApiKey", "Bearer"}
        declared = {scope for one in security for scopes in one.values() for scope in scopes}
        #: None: it is open, or its credential is a host's.
        self.permission = declared.pop() if len(declared) == 1 else None
        self.of_operators = self.permission in PLATFORM
        self.of_agent = "streams" in found.get("tags", []) or FILES.match(path) is not None
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
        request = http.build_request(self.method, path, params=self.query, headers=headers, **body)
        answer = await http.send(request, stream=True)
        # Of those without an end, the head says it all.
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            await answer.aread()
        await answer.aclose()
        assert answer.status_code < 500 or answer.json()["error"]["code"] == "restored", f"{self.name}: {answer.text}"
        return answer


def operations() -> Iterator[Operation]:
    document = create_app(Settings(), None, None, None).openapi()  # type: ignore[arg-type]
    for path, item in document["paths"].items():
        for method, found in item.items():
            yield Operation(document, method, path, found)


ALL = {one.name: one for one in operations()}
#: Everybody who has a key of a project: in the built-in roles, in one that may do nothing, and who manages the platform
#: and has that role.
NOTHING, ADMINISTRATOR = "nothing", "administrator"
EVERYBODY = (*ROLES, NOTHING, ADMINISTRATOR)
OPERATORS = [one for one in ALL.values() if one.of_operators]
ABOUT = [one for one in ALL.values() if one.of_projects and not one.of_operators and set(one.ids) - SHARED]


class World:
    """The platform's own project with one of everything, and a stranger with a project of his own."""

    def __init__(self, api: Api, things: Json, stranger: httpx.AsyncClient) -> None:
        self.api = api
        self.things = things
        self.stranger = stranger

    def ids(self, **more: str) -> Json:
        shared = {
            "user_id": str(uuid4()),
            "host_id": str(self.api.db.hosts["one"]),
            "type_name": "basic-1",
            "digest": "sha256:" + "0" * 64,
            "number": "1",
            "path": "src/app.py",
            "key": "theme",
        }
        return shared | self.things | more

    def written(self) -> Json:
        """All rows that there are."""
        with self.api.db.connect() as connection:
            return {
                table: connection.execute(
                    f"SELECT (to_jsonb(t) - 'last_used_at')::text FROM {table} t ORDER BY 1"
                ).fetchall()  # type: ignore[arg-type]
                for table in Base.metadata.tables.keys() - BESIDE
            }


@pytest_asyncio.fixture(scope="module")
async def world(shared_api: Api) -> AsyncIterator[World]:
    """One for all tests, as none of them changes anything of it unless what it tests is broken."""
    api = shared_api
    instance = await placed(api, "web")
    hook = await make(api)
    image = (await api.http.post("/v1/images", json={"name": "own", "source": {"type": "upload"}})).json()["data"]
    key = await api.http.post("/v1/ssh-keys", json={"name": "mine", "public_key": KEY})
    assert key.status_code == 201, key.text
    secret = (await api.http.post("/v1/secrets", json={"name": "token", "value": "said to nobody"})).json()["data"]
    job = await nightly(api)
    made = {"name": "own", "image": "cairn/base:latest"}
    group = (await api.http.post("/v1/autoscaling/groups", json=made | {"max_instances": 1})).json()["data"]
    deployment = (await api.http.post("/v1/containers/deployments", json=made | {"name": "shop"})).json()["data"]
    wanted = {"name": "cpu", "metric_type": "cpu", "target_value": 50}
    policy = await api.http.post(f"/v1/autoscaling/groups/{group['id']}/policies", json=wanted)
    front = await balancer(api, "front")
    await target(api, front, instance)
    shop = await workspace(api)
    things = await people(api) | {
        "workspace_id": shop,
        "session_id": (await session_of(api, shop, name="work"))["id"],
        "credential_id": (await credential(api))["id"],
        "volume_id": (await cache(api))["id"],
        "pool_id": (await pool(api))["id"],
        "agent_id": (await agent(api, name="coder"))["id"],
        "policy_id": policy.json()["data"]["id"],
        "group_id": group["id"],
        "deployment_id": deployment["id"],
        "balancer_id": front["id"],
        "secret": secret["id"],
        "instance_id": instance["id"],
        "workflow_id": instance["workflow_id"],
        "image_id": image["id"],
        "webhook_id": hook["id"],
        "delivery_id": deliver(api, hook, "dead"),
        "key_id": key.json()["data"]["id"],
        "job_id": job["id"],
        "run_id": running(api, job),
        "api_key_id": str(api.db.one("SELECT id FROM api_keys WHERE name = 'admin'")["id"]),
        "project_id": str(api.db.project_id),
        "resource_id": restore(api),
    }
    api.db.rows("UPDATE restores SET finished_at = now()")
    async with api.as_(api.db.project("stranger")) as stranger:
        yield World(api, things, stranger)


async def people(api: Api) -> Json:
    """Members, and what there is about them."""
    user = str(api.db.user(api.db.project_id, "member", "viewer"))
    found = {"user_id": user, "role_name": "helper"}
    for name, path, body in (
        (None, "/v1/rbac/roles", {"name": "helper", "permissions": ["events:read"]}),
        ("binding_id", "/v1/rbac/bindings", {"role_name": "helper", "user_identifier": user}),
        ("invitation_id", f"/v1/projects/{api.db.project_id}/invitations", {"email": "a@b.org", "role_name": "viewer"}),
        ("account_id", "/v1/service-accounts", {"name": "ci"}),
        ("account_key_id", "/v1/service-accounts/{account_id}/keys", {"name": "one"}),
    ):
        answer = await api.http.post(path.format_map(found), json=body)
        assert answer.status_code == 201, answer.text
        if name is not None:
            found[name] = answer.json()["data"]["id"]
    return found


@pytest_asyncio.fixture(scope="module")
async def everybody(world: World) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    """Somebody in each role, in the project that has all the things; by role."""
    db = world.api.db
    db.rows(
        "INSERT INTO roles (id, project_id, name, permissions) VALUES (%s, %s, 'nothing', '{}')",
        *(new_id(), db.project_id),
    )
    async with AsyncExitStack() as stack:
        found = {}
        for name in EVERYBODY:
            key = db.key(db.project_id, f"some-{name}", NOTHING if name == ADMINISTRATOR else name)
            found[name] = await stack.enter_async_context(world.api.as_(key))
        db.rows("UPDATE users SET is_admin = true WHERE name = 'some-administrator'")
        yield found


def has(role: str, permission: str) -> bool:
    """Whether who has the role has the permission."""
    roles = [role] if role in ROLES else []
    return permission in effective(roles, [], is_admin=role == ADMINISTRATOR, scopes=None)


@pytest.mark.parametrize("role", EVERYBODY)
async def test_role_may_do_just_what_its_permissions_say(
    world: World, everybody: dict[str, httpx.AsyncClient], role: str
) -> None:
    """In one's own project: 403 for what the role has not, with nothing changed; else anything but 401 and 403."""
    before, http = world.written(), everybody[role]
    allowed = [one for one in ALL.values() if one.of_projects and has(role, str(one.permission))]
    refused = [one for one in ALL.values() if one.of_projects and one not in allowed]
    for one in refused:
        answer = await one.ask(http, world.ids())
        assert (one.name, answer.status_code) == (one.name, 403)
        assert answer.json()["error"]["details"] == {"permission": one.permission}
    assert world.written() == before
    for one in allowed:
        # Of what changes things, that there is none of these is all that a test wants to hear.
        things = [name for name in one.ids if name not in PARTS and (name != "project_id" or one.of_operators)]
        # The world's key is the first administrator's: of another user's there is nothing to see.
        looks = (
            one.method == "GET"
            and not {"api_key_id", "key"} & {*one.ids}
            and not one.of_agent
            and not one.path.endswith("/wait")
        )
        absent = {} if looks or (one.method == "POST" and not things) else dict.fromkeys(things, NOBODYS)
        answer = await one.ask(http, world.ids(**absent))
        assert answer.status_code not in (401, 403), (one.name, answer.text)
        if absent:
            # There is no restore to decide about.
            assert (one.name, answer.status_code) == (one.name, 409 if one.path.startswith(OPERATIONS) else 404)
        elif looks:
            assert (one.name, answer.status_code) == (one.name, 200)


@pytest.mark.parametrize("role", EVERYBODY)
async def test_no_role_opens_another_project(world: World, role: str) -> None:
    """With a key of one's own project, and another asked for: 404, whatever it is about."""
    db = world.api.db
    strangers = db.one("SELECT id FROM projects WHERE name = 'stranger'")["id"]
    if not db.rows("SELECT 1 FROM roles WHERE project_id = %s", strangers):
        row = (new_id(), strangers)
        db.rows("INSERT INTO roles (id, project_id, name, permissions) VALUES (%s, %s, 'nothing', '{}')", *row)
    key = db.key(strangers, f"strange-{role}", NOTHING if role == ADMINISTRATOR else role)
    before = world.written()
    async with world.api.as_(key) as http:
        for one in ALL.values():
            if not one.of_projects:
                continue
            answer = await one.ask(http, world.ids(), **{"X-Project-ID": world.things["project_id"]})
            assert (one.name, answer.status_code) == (one.name, 404)
            assert answer.json()["error"]["message"] == "there is no such project", one.name
    assert world.written() == before


def told(answer: httpx.Response, ids: list[str]) -> tuple[int, str, Json]:
    """All that an answer tells, but for what was asked about."""
    headers = {name: value for name, value in answer.headers.items() if name not in EACH_ITS_OWN}
    body = answer.text.replace(answer.headers["x-request-id"], "")
    for one in ids:
        body = body.replace(one, "")
    return answer.status_code, body, headers


def test_every_operation_says_who_may_use_it() -> None:
    assert {one.name for one in ALL.values() if not (one.of_agents or one.of_projects)} == OPEN
    # Without a permission of its own a route is not served at all.
    for one in ALL.values():
        assert (one.permission in permissions.ALL) == one.of_projects, one.name
    assert len(ABOUT) > 25
    assert len(OPERATORS) > 10
    # Whatever a route says of itself.
    platforms = [one for one in ALL.values() if one.of_projects and PLATFORMS.match(one.path)]
    theirs = {one.name for one in platforms if one.method != "GET" or one.path.startswith((OPERATIONS, "/v1/users"))}
    assert theirs == {one.name for one in OPERATORS if not one.path.startswith("/v1/projects/")}
    # What is served and not documented is the documentation, and what no path has.
    app = create_app(Settings(), None, None, None)  # type: ignore[arg-type]
    served = list(iter_route_contexts(app.routes))
    routes = [one for one in served if isinstance(one.original_route, APIRoute)]
    assert len(routes) >= len(ALL)
    assert {one.path for one in routes if not one.include_in_schema} == HIDDEN
    sockets = {one.path for one in served if isinstance(one.original_route, APIWebSocketRoute)}
    assert {path.replace("{port}", "8080") for path in sockets} == {*SOCKETS, *OTHER_SOCKETS}


@pytest.mark.parametrize("key", [{}, {"X-API-Key": "cairn_wrong"}, {"Authorization": "Bearer cairn_host_wrong"}])
async def test_who_shows_no_key_or_a_wrong_one_gets_401_everywhere(world: World, key: dict[str, str]) -> None:
    before = world.written()
    async with httpx.AsyncClient(base_url=world.api.url, headers=key) as nobody:
        for one in ALL.values():
            if one.name in OPEN and "/auth/" in one.name:
                continue  # tests/api/test_auth.py
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


async def test_another_projects_key_manages_nothing_of_the_platforms(world: World) -> None:
    before = world.written()
    for one in OPERATORS:
        assert (one.name, await _refused(world, one)) == (one.name, 404 if "project_id" in one.ids else 403)
    assert world.written() == before


async def test_another_projects_key_decides_nothing_about_a_restore(world: World) -> None:
    world.api.db.rows("UPDATE restores SET finished_at = NULL")
    try:
        before = world.written()
        for one in OPERATORS:
            assert (one.name, await _refused(world, one)) == (one.name, 404 if "project_id" in one.ids else 403)
        assert world.written() == before
    finally:
        world.api.db.rows("UPDATE restores SET finished_at = now()")


async def _refused(world: World, one: Operation) -> int:
    """How a stranger is refused: as if there were nothing that he asks about."""
    absent = world.ids(host_id=NOBODYS, resource_id=NOBODYS, type_name="none")
    answer = await one.ask(world.stranger, world.ids())
    assert told(await one.ask(world.stranger, absent), []) == told(answer, []), one.name
    return answer.status_code


async def test_foreign_and_absent_are_told_apart_by_nothing(world: World) -> None:
    before = world.written()
    for one in ABOUT:
        for headers in ({}, {"Idempotency-Key": "once"}, {"If-Match": '"1"'}, {"Prefer": "wait=1"}):
            ids = [what for what in one.ids if what not in PARTS]
            known = [world.things[what] for what in ids]
            absent = {what: "absent" if what == "role_name" else str(uuid4()) for what in ids}
            theirs = told(await one.ask(world.stranger, world.ids(), **headers), known)
            nobodys = told(await one.ask(world.stranger, world.ids(**absent), **headers), list(absent.values()))
            assert (one.name, headers, nobodys[0]) == (one.name, headers, 404)
            assert (one.name, headers, theirs) == (one.name, headers, nobodys)
    assert world.written() == before


async def test_key_is_changed_without_a_gap(api: Api) -> None:
    """As docs/security.md says: the new one beside the old one, then without it."""
    columns = "id, project_id, user_id, name, digest"
    user = api.db.one("SELECT user_id FROM api_keys")["user_id"]
    new = (new_id(), api.db.project_id, user, "new", digest("cairn_new"))
    with api.db.connect("cairn_owner") as owner:
        owner.execute(f"INSERT INTO api_keys ({columns}) VALUES (%s, %s, %s, %s, %s)", new)
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
        ("ssh_key_id", "{key_id}", NOBODYS),
        ("image", "{image_id}", NOBODYS),
        ("image", "own", "owl"),
        ("host", "{instance_id}", NOBODYS),
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
    "/v1/lb": "?name=front",
    "/v1/images": "?name=own",
    "/v1/ssh-keys": "?name=mine",
    "/v1/webhooks": "?name=chat",
    "/v1/cron/jobs": "?name=nightly",
    "/v1/service-accounts": "?name=ci",
    "/v1/auth/keys": "?name=admin",
    "/v1/secrets": "?name=token",
    "/v1/autoscaling/groups": "?name=own",
    "/v1/containers/deployments": "?name=shop",
    "/v1/workspaces": "?name=shop",
    "/v1/sessions": "?name=work",
    "/v1/pools": "?name=warm",
    "/v1/credentials": "?name=gitlab",
    "/v1/cache-volumes": "?name=pip",
    "/v1/agents": "?name=coder",
}
#: Of the fleet; of the caller's one project; counts and events, which have tests of their own.
OTHER = {"/v1/hosts", "/v1/instance-types", "/v1/projects", "/v1/dashboard/summary", "/v1/events"}
#: In which each project has something.
OTHER |= {"/v1/rbac/roles", "/v1/rbac/bindings", "/v1/users", "/v1/auth/me", "/v1/audit", "/v1/audit/export"}
#: Of the caller alone.
OTHER |= {"/v1/preferences"}


async def test_lists_show_nothing_of_a_stranger(world: World) -> None:
    lists = {one.path for one in ALL.values() if one.method == "GET" and not (one.ids or one.of_operators)}
    assert set(LISTS) == lists - OTHER - {path.removeprefix("GET ") for path in OPEN}
    for path, query in LISTS.items():
        asked = path + query.format_map(world.things)
        answer = await world.stranger.get(asked)
        assert (asked, answer.status_code, answer.json()["data"]) == (asked, 200, [])
        assert len((await world.api.http.get(asked)).json()["data"]) == 1, asked
    (project,) = (await world.stranger.get("/v1/projects")).json()["data"]
    assert project["id"] != world.things["project_id"]


async def test_project_of_a_stranger_and_an_absent_one_are_the_same_in_the_header_too(world: World) -> None:
    strangers = await _strangers_project(world)
    for one in ALL.values():
        if not one.of_projects:
            continue
        pair = [
            told(await one.ask(world.api.http, world.ids(), **{"X-Project-ID": project}), [project])
            for project in (strangers, NOBODYS)
        ]
        assert pair[0][0] == 404, one.name
        assert pair[0] == pair[1], one.name


async def _strangers_project(world: World) -> str:
    (project,) = (await world.stranger.get("/v1/projects")).json()["data"]
    return str(project["id"])


@pytest.mark.parametrize("path", SOCKETS)
async def test_sockets_too(world: World, path: str) -> None:
    said = []
    (part,) = re.findall(r"{(\w+)}", path)
    for thing in (world.things[part], str(uuid4())):
        url = world.api.url.replace("http", "ws", 1) + path.format(**{part: thing})
        with pytest.raises(InvalidStatus) as error:
            await connect(url, additional_headers=dict(world.stranger.headers), proxy=None)
        response = error.value.response
        body = response.body.decode().replace(thing, "").replace(response.headers["x-request-id"], "")
        kept = {name: value for name, value in response.headers.items() if name.lower() not in EACH_ITS_OWN}
        said.append((response.status_code, body, kept))
    assert said[0][0] == 404
    assert said[0] == said[1]
