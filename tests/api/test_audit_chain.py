"""That nobody changed the audit log: whoever does it is found out, and where."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio
from pydantic import SecretStr
from sqlalchemy import Engine
from temporalio.testing import ActivityEnvironment

from activities.audit import AuditRecords
from api import audit
from model.base import new_id
from model.keyring import Keyring, new_master_key
from tests.api.conftest import Api
from tests.services import Database, worker_engine
from worker.database import connect

__all__ = ["worker_engine"]

Json = dict[str, Any]
WRITERS, EACH = 64, 157
WRITE = (
    "INSERT INTO audit (project_id, id, actor, action, operation, outcome, after, request_id)"
    " VALUES (%s, %s, 'key:test', 'instances:create', 'POST /', 'allowed', '{\"n\": 1.50}', %s)"
)
#: Position 3 of 8: its row, and that of the next.
ROW = "project_id = %(p)s AND id = (SELECT audit_id FROM audit_links WHERE project_id = %(p)s AND position = {})"
CONTENT = "(epoch, xid, at, actor, action, operation, outcome, after, request_id)"


def ring(api: Api) -> Keyring:
    return Keyring(api.app.state.settings.master_keys.get_secret_value())


def seal(api: Api, engine: Engine) -> int:
    api.db.settle()
    links = 0
    while True:
        done = ActivityEnvironment().run(AuditRecords(engine, ring(api)).seal)
        links += done.links
        if not done.more:
            return links


def write(db: Database, count: int, project: UUID | None = None) -> list[UUID]:
    ids = [new_id() for _ in range(count)]
    with db.connect() as connection:
        for id in ids:
            connection.execute(WRITE, (project or db.project_id, id, f"r-{id}"))
    return ids


async def verified(api: Api, key: str | None = None, **body: Any) -> Json:
    answer = await api.http.post(
        "/v1/audit/verify", json=body, timeout=120, headers={"X-API-Key": key or api.db.api_key}
    )
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["data"])


def tamper(api: Api, *statements: str, project: UUID | None = None) -> None:
    """As somebody who may do everything to the database, and has no master key."""
    with api.db.connect() as connection, connection.transaction():
        for statement in statements:
            assert connection.execute(statement, {"p": project or api.db.project_id}).rowcount, statement


def _swapped(columns: str) -> list[str]:
    one, other = ROW.format(3), ROW.format(6)
    names = columns.strip("()")
    return [
        f"CREATE TEMP TABLE a ON COMMIT DROP AS SELECT {names} FROM audit WHERE {one}",
        f"UPDATE audit SET {columns} = (SELECT {names} FROM audit b WHERE b.{other.replace(' AND id', ' AND b.id')})"
        f" WHERE {one}",
        f"UPDATE audit SET {columns} = (SELECT {names} FROM a) WHERE {other}",
    ]


LINK = "project_id = %(p)s AND position"
CASES: dict[str, tuple[list[str], Json]] = {
    "a field": ([f"UPDATE audit SET actor = 'key:other' WHERE {ROW.format(3)}"], {"position": 3, "what": "changed"}),
    "the last row": ([f"UPDATE audit SET at = now() WHERE {ROW.format(8)}"], {"position": 8, "what": "changed"}),
    "a row is gone": ([f"DELETE FROM audit WHERE {ROW.format(3)}"], {"position": 3, "what": "missing"}),
    "a row is another project's": (
        [f"UPDATE audit SET project_id = gen_random_uuid() WHERE {ROW.format(3)}"],
        {"position": 3, "what": "missing"},
    ),
    "two rows have changed places": (_swapped(CONTENT), {"position": 3, "what": "swapped"}),
    "two rows have each other's words": (_swapped("(request_id, at)"), {"position": 3, "what": "changed"}),
    "two links have changed places": (
        [
            f"CREATE TEMP TABLE l ON COMMIT DROP AS SELECT * FROM audit_links WHERE {LINK} IN (3, 6)",
            f"DELETE FROM audit_links WHERE {LINK} IN (3, 6)",
            "INSERT INTO audit_links SELECT project_id, 9 - position, audit_id, hash FROM l",
        ],
        {"position": 3, "what": "swapped"},
    ),
    "a link is gone": ([f"DELETE FROM audit_links WHERE {LINK} = 3"], {"position": 3, "what": "missing"}),
    "the last links are gone": ([f"DELETE FROM audit_links WHERE {LINK} > 5"], {"position": 6, "what": "missing"}),
    "the end is cut off": (
        [
            f"DELETE FROM audit WHERE project_id = %(p)s AND id IN (SELECT audit_id FROM audit_links WHERE {LINK} > 5)",
            f"DELETE FROM audit_links WHERE {LINK} > 5",
            "UPDATE audit_heads SET position = 5, hash = l.hash, audit_id = l.audit_id FROM audit_links l"
            " WHERE l.project_id = %(p)s AND l.position = 5 AND audit_heads.project_id = %(p)s",
        ],
        {"position": 5, "what": "head"},
    ),
    "the head is gone": (["DELETE FROM audit_heads WHERE project_id = %(p)s"], {"position": 1, "what": "head"}),
    "a link is made up": (
        [f"INSERT INTO audit_links SELECT project_id, 9, gen_random_uuid(), hash FROM audit_links WHERE {LINK} = 8"],
        {"position": 9, "what": "head"},
    ),
    "a row is put in": (
        [
            "INSERT INTO audit (project_id, id, epoch, xid, actor, action, operation, outcome, request_id)"
            f" SELECT project_id, gen_random_uuid(), epoch, xid - 1, 'key:x', 'x', 'x', 'allowed', 'x' FROM audit"
            f" WHERE {ROW.format(3)}"
        ],
        {"position": None, "what": "unsealed_order"},
    ),
}


@pytest_asyncio.fixture(scope="module")
async def shared_engine(shared_api: Api) -> AsyncIterator[Engine]:
    engine = connect(shared_api.db.url("cairn_worker"), 2)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("case", CASES)
async def test_what_was_changed_is_located(shared_api: Api, shared_engine: Engine, case: str) -> None:
    api = shared_api
    name = f"p-{list(CASES).index(case)}"
    key = api.db.project(name)
    project = api.db.one("SELECT id FROM projects WHERE name = %s", name)["id"]
    ids = write(api.db, 8, project)
    assert seal(api, shared_engine) == 8
    before = await verified(api, key)
    assert (before["verified"], before["entries"], before["sealed"]) == (True, 8, 8)
    statements, expected = CASES[case]
    tamper(api, *statements, project=project)
    found = await verified(api, key)
    assert found["verified"] is False
    assert {name: found["broken"][name] for name in expected} == expected
    if expected["what"] in ("changed", "swapped") and "links" not in case:
        assert found["broken"]["audit_id"] == str(ids[expected["position"] - 1])


async def test_a_log_that_was_made_anew_is_found_by_who_remembers_its_head(api: Api, worker_engine: Engine) -> None:
    write(api.db, 8)
    seal(api, worker_engine)
    head = (await verified(api))["head"]
    assert (await verified(api, remembered=head))["verified"]
    write(api.db, 3)
    seal(api, worker_engine)
    assert (await verified(api, remembered=head))["verified"], "it has grown since"
    # As if with an old copy of all three tables.
    tamper(api, *(f"DELETE FROM {table} WHERE project_id = %(p)s" for table in ("audit", "audit_links", "audit_heads")))
    assert (await verified(api))["verified"], "by itself nothing tells that there was something"
    gone = await verified(api, remembered=head)
    assert gone["broken"] == {"position": 1, "audit_id": None, "what": "missing"}
    write(api.db, 9)
    seal(api, worker_engine)
    assert (await verified(api, remembered=head))["broken"]["what"] == "head"


async def test_ten_thousand_writes_at_once_are_one_chain(
    api: Api, worker_engine: Engine, record_property: Callable[[str, object], None]
) -> None:
    async def write_some() -> None:
        connection = await psycopg.AsyncConnection.connect(api.db.url("cairn_api"), autocommit=True)
        async with connection:
            await connection.execute("SELECT set_config('cairn.project', %s, false)", [str(api.db.project_id)])
            for _ in range(EACH):
                await connection.execute(WRITE, (api.db.project_id, new_id(), "r"))

    writing = asyncio.gather(*(write_some() for _ in range(WRITERS)))
    while not writing.done():
        await asyncio.to_thread(seal, api, worker_engine)
        await asyncio.sleep(0.1)
    await writing
    await asyncio.to_thread(seal, api, worker_engine)
    began = time.perf_counter()
    found = await verified(api)
    record_property("verify_seconds", time.perf_counter() - began)
    assert (found["verified"], found["entries"], found["sealed"]) == (True, WRITERS * EACH, WRITERS * EACH)
    tamper(api, f"UPDATE audit SET actor = 'key:other' WHERE {ROW.format(7777)}")
    assert (await verified(api))["broken"]["position"] == 7777


async def test_an_export_can_be_checked_without_cairn(api: Api, worker_engine: Engine) -> None:
    for name in ("one", "two"):
        await api.launch(name, labels={"team": "größe"})
    seal(api, worker_engine)
    await api.launch("three")
    answer = await api.http.get("/v1/audit/export")
    assert answer.headers["content-type"] == "application/x-ndjson"
    *lines, end = [json.loads(line) for line in answer.text.splitlines()]
    assert end["end"]["entries"] == len(lines) == 3
    digest = hashlib.sha256(f"cairn audit {api.db.project_id}".encode()).digest()
    for line in lines[:2]:
        entry = json.dumps(line["entry"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        digest = hashlib.sha256(digest + entry.encode()).digest()
        assert line["hash"] == digest.hex()
    assert end["end"]["head"]["hash"] == digest.hex()
    assert (lines[2]["hash"], lines[2]["entry"]["after"]["name"]) == (None, "three")


async def test_reading_the_log(api: Api, worker_engine: Engine) -> None:
    for name in ("one", "two"):
        await api.launch(name)
    await api.http.post("/v1/hosts/tokens", json={"name": "rack"})

    async def ask(**params: Any) -> list[Json]:
        answer = await api.http.get("/v1/audit", params=params)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"])

    newest, oldest = await ask()
    assert (newest["after"]["name"], oldest["after"]["name"]) == ("two", "one")
    assert await ask(resource_id=oldest["resource_id"]) == [oldest]
    assert await ask(until=newest["at"]) == [oldest]
    assert await ask(since=newest["at"], action="instances:create") == [newest]
    assert await ask(outcome="denied") == await ask(actor="key:x") == await ask(resource_type="host") == []
    (of_platform,) = await ask(platform=True)
    assert (of_platform["action"], of_platform["project_id"]) == ("hosts:manage", None)
    page = (await api.http.get("/v1/audit?limit=1")).json()
    assert page["data"] == [newest]
    assert await ask(cursor=page["meta"]["next_cursor"]) == [oldest]
    async with api.as_(api.db.project("other")) as other:
        assert (await other.get("/v1/audit")).json()["data"] == []
        for path in ("/v1/audit", "/v1/audit/export"):
            assert (await other.get(path, params={"platform": True})).status_code == 403
    key = api.db.key(api.db.project_id, "looker", "viewer")
    async with api.as_(key) as viewer:
        assert (await viewer.get("/v1/audit")).status_code == 403
    assert (await verified_platform(api))["entries"] >= 1


async def verified_platform(api: Api) -> Json:
    return dict((await api.http.post("/v1/audit/verify?platform=true")).json()["data"])


async def test_chain_whose_key_is_gone_says_so(api: Api, worker_engine: Engine) -> None:
    write(api.db, 3)
    seal(api, worker_engine)
    other = api.app.state.settings.model_copy(update={"master_keys": SecretStr(new_master_key("other"))})
    api.app.state.settings = other
    verdict = await verified(api)
    assert not verdict["verified"] and verdict["broken"]["what"] == "key"


async def test_one_project_goes_through_its_log_once_at_a_time(api: Api) -> None:
    release = audit._place(SimpleNamespace(app=api.app), api.db.project_id)  # type: ignore[arg-type]
    assert (await api.http.get("/v1/audit/export")).status_code == 429
    async with api.as_(api.db.project("other")) as other:
        assert (await other.get("/v1/audit/export")).status_code == 200
    release()
    assert (await api.http.get("/v1/audit/export")).status_code == 200
