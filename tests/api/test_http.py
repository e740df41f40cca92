"""What holds for every route: authentication first, one envelope, request ids, media types."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio

from api.http import Http
from model import tracing
from tests.api.conftest import BODY, Api
from tests.services import Database


def check_error(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"data", "error", "meta"}
    assert body["data"] is None
    assert set(body["error"]) == {"code", "message", "details"}
    assert body["error"]["message"]
    assert body["meta"]["request_id"] == answer.headers["x-request-id"]
    if code:
        assert body["error"]["code"] == code
    error: dict[str, object] = body["error"]
    return error


@pytest_asyncio.fixture
async def api(shared_api: Api) -> Api:
    shared_api.db.rows("UPDATE instances SET status = 'deleted', deleted_at = now() WHERE status <> 'deleted'")
    return shared_api


STRANGE = [
    ("GET", "/v1/instances", None),
    ("GET", "/v1/instances/not-a-uuid", None),
    ("GET", f"/v1/instances/{UUID(int=0)}", None),
    ("GET", "/v1/nowhere", None),
    ("PUT", "/v1/instances", None),
    ("PATCH", f"/v1/workflows/{UUID(int=0)}", b"{}"),
    ("POST", "/v1/instances", b"{not json"),
    ("POST", "/v1/instances", b'{"name": 1}'),
    ("POST", "/v1/instances", b"x" * 2_000_000),
    ("POST", f"/v1/instances/{UUID(int=0)}/start", b"[" * 1000),
    ("GET", "/v1/instances?limit=0", None),
    ("GET", "/v1/workflows?state=garbage", None),
    ("GET", "/v1/events", None),
    ("GET", f"/v1/workflows/{UUID(int=0)}/events", None),
]


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}, {"X-API-Key": ""}])
async def test_stranger_gets_401_whatever_he_asks(api: Api, headers: dict[str, str]) -> None:
    async with httpx.AsyncClient(base_url=api.url, timeout=30) as stranger:
        for method, path, content in STRANGE:
            more = {"content-type": "application/json", "X-Project-ID": "garbage", "Last-Event-ID": "garbage"}
            try:
                answer = await stranger.request(method, path, content=content, headers=headers | more)
            except httpx.WriteError:
                continue  # refused before all of a large body was read
            check_error(answer, 401, "unauthenticated")


async def test_revoked_key_is_no_key(api: Api, request: pytest.FixtureRequest) -> None:
    request.addfinalizer(lambda: api.db.rows("UPDATE api_keys SET revoked_at = NULL"))
    assert (await api.http.get("/v1/instances")).status_code == 200
    api.db.rows("UPDATE api_keys SET revoked_at = now()")
    check_error(await api.http.get("/v1/instances"), 401, "unauthenticated")


async def test_key_may_come_as_bearer(api: Api) -> None:
    async with httpx.AsyncClient(base_url=api.url) as http:
        answer = await http.get("/v1/instances", headers={"Authorization": f"Bearer {api.db.api_key}"})
        assert answer.status_code == 200


async def test_key_is_stored_as_a_digest_only(database: Database) -> None:
    (row,) = database.rows("SELECT * FROM api_keys")
    assert database.api_key not in repr(row)
    assert len(row["digest"]) == 32


async def test_health_and_docs_need_no_key(api: Api) -> None:
    async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:
        for path in ("/health/live", "/health/ready", "/openapi.json", "/docs"):
            assert (await http.get(path)).status_code == 200, path
        ready = (await http.get("/health/ready")).json()["data"]
        assert ready == {"status": "ok", "checks": {"database": "ok", "temporal": "ok"}}
        document = (await http.get("/openapi.json")).json()
        assert document["openapi"].startswith("3.1")
        assert {"/v1/instances", "/v1/workflows/{workflow_id}/wait", "/v1/events"} <= set(document["paths"])


async def test_api_that_is_about_to_end_is_not_ready_answers_on_and_keeps_no_connection(api: Api) -> None:
    assert "connection" not in (await api.http.get("/v1/instances")).headers
    api.app.state.leaving.set()
    ready = await api.http.get("/health/ready")
    assert (ready.status_code, ready.json()["error"]["details"]["status"]) == (503, "leaving")
    assert ready.headers["retry-after"] == "1"
    assert (await api.http.get("/health/live")).status_code == 200
    launched = await api.http.post("/v1/instances", json=BODY | {"name": "late"})
    assert (launched.status_code, launched.headers["connection"]) == (202, "close")


async def test_request_id_is_the_callers_if_well_formed(api: Api) -> None:
    assert (await api.http.get("/v1/instances", headers={"X-Request-ID": "a-b.C_9"})).headers[
        "x-request-id"
    ] == "a-b.C_9"
    for bad in ("", "a b", "x" * 129, "a\u00e9".encode("latin-1"), b"a;b"):
        answer = await api.http.get("/v1/nowhere", headers={"X-Request-ID": bad})
        assert UUID(answer.headers["x-request-id"]).version == 7
        check_error(answer, 404, "not_found")
    answers = [
        await api.http.get("/v1/instances"),
        await api.http.put("/v1/instances"),
        await api.http.get("/health/live"),
        await api.http.get("/nowhere"),
    ]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 4


async def test_project_header(api: Api) -> None:
    other = api.db.project("other")
    project_id = str(api.db.one("SELECT id FROM projects WHERE name = 'other'")["id"])
    check_error(await api.http.get("/v1/instances", headers={"X-Project-ID": "garbage"}), 422, "validation_failed")
    for absent in (str(uuid4()), str(UUID(int=0))):
        check_error(await api.http.get("/v1/instances", headers={"X-Project-ID": absent}), 404, "not_found")
    check_error(await api.http.get("/v1/instances", headers={"X-Project-ID": project_id}), 404, "not_found")
    async with api.as_(other) as http:
        made = await http.post("/v1/instances", json=BODY, headers={"X-Project-ID": project_id})
        assert (made.status_code, made.json()["data"]["project_id"]) == (202, project_id)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("GET", "/v1/nowhere", 404, "not_found"),
        ("GET", "/v1/instances/../../etc/passwd", 404, "not_found"),
        ("GET", "/v1/instances/%2e%2e%2fetc", 404, None),
        ("GET", "/v1/instances//", 404, "not_found"),
        ("PUT", "/v1/instances", 405, "method_not_allowed"),
        ("DELETE", "/v1/instances", 405, "method_not_allowed"),
        ("PUT", f"/v1/instances/{UUID(int=0)}", 405, "method_not_allowed"),
        ("GET", f"/v1/instances/{UUID(int=0)}/start", 405, "method_not_allowed"),
        ("POST", "/v1/hosts", 405, "method_not_allowed"),
        ("POST", "/v1/events", 405, "method_not_allowed"),
        ("POST", "/health/live", 405, "method_not_allowed"),
        ("TRACE", "/v1/instances", 405, "method_not_allowed"),
        ("BREW", "/v1/instances", 405, "method_not_allowed"),
    ],
)
async def test_wrong_place_and_wrong_method(api: Api, method: str, path: str, status: int, code: str | None) -> None:
    answer = await api.http.request(method, path)
    if method == "BREW" and not answer.headers.get("x-request-id"):
        assert answer.status_code == 400  # the server's parser knows no such method
        return
    check_error(answer, status, code)
    if status == 405:
        assert answer.headers.get("allow")


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/xml", "application/x-www-form-urlencoded", ""])
async def test_wrong_media_type(api: Api, media_type: str | None) -> None:
    headers = {"content-type": media_type} if media_type is not None else {}
    before = api.db.counts()
    answer = await api.http.post("/v1/instances", content=b'{"name": "web", "image": "x"}', headers=headers)
    check_error(answer, 415, "unsupported_media_type")
    instance = f"/v1/instances/{UUID(int=0)}/stop"
    check_error(await api.http.post(instance, content=b"x=1", headers=headers), 415, "unsupported_media_type")
    assert api.db.counts() == before


async def test_json_type_with_empty_body_is_no_body(api: Api) -> None:
    instance = (await api.launch())["data"]
    api.put(instance, "running")
    headers = {"content-type": "application/json"}
    answer = await api.http.post(f"/v1/instances/{instance['id']}/stop", content=b"", headers=headers)
    assert answer.status_code == 202
    check_error(await api.http.post("/v1/instances", content=b"", headers=headers), 422, "validation_failed")


async def test_message_names_what_was_asked(api: Api) -> None:
    error = check_error(await api.http.put("/v1/instances"), 405)
    assert re.search(r"PUT /v1/instances", str(error["message"]))


class Noted:
    """A tracer that knows one span, and whether that failed."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    @contextmanager
    def serve(self, method: str, headers: Mapping[str, str]) -> Iterator[Any]:
        yield self

    def note(self, **attributes: str | int) -> None: ...

    def rename(self, name: str) -> None: ...

    def failed(self, code: str) -> None:
        self.failures.append(code)

    def traceparent(self) -> None: ...


@pytest.mark.parametrize(("code", "failures"), [(1000, []), (4004, []), (1011, ["1011"])])
async def test_a_websocket_that_closes_as_it_should_is_no_failure_in_its_trace(code: int, failures: list[str]) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": code})

    async def nothing(*_: Any) -> Any: ...

    noted = Noted()
    tracing.use(noted)  # type: ignore[arg-type]
    try:
        scope = {"type": "websocket", "path": "/v1/x", "headers": [], "scheme": "ws"}
        await Http(app, nothing, asyncio.Event())(scope, nothing, nothing)
    finally:
        tracing.use(None)
    assert noted.failures == failures


async def test_method_that_no_project_has_is_none_in_one_that_is_not_theirs(api: Api) -> None:
    headers = {"X-Project-ID": str(uuid4())}
    for method, path in (("DELETE", "/v1/auth/logout"), ("PUT", "/v1/instances")):
        check_error(await api.http.request(method, path, headers=headers), 405)
    check_error(await api.http.get("/v1/instances", headers=headers), 404)


async def test_path_that_would_be_an_id_has_its_own_methods(api: Api) -> None:
    for path, method in (("/v1/hosts/lease", "POST"), ("/v1/hosts/workspaces", "POST"), ("/v1/hosts/samples", "POST")):
        answer = await api.http.get(path)
        check_error(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == method
    check_error(await api.http.get("/v1/hosts/nonsense"), 422, "validation_failed")
    check_error(await api.http.get("/v1/hosts/lease", headers={"X-API-Key": "wrong"}), 401)
