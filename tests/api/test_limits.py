"""How many requests are allowed: of each key by itself, by all API processes together, and as the answers say."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api import authentication
from api.limits import Limits
from model.rates import Rate
from model.settings import Settings
from tests.api.conftest import Api, no_temporal, served
from tests.services import Database, eventually

OFF = dict.fromkeys([f"rate_limit_{kind}" for kind in ("read", "write", "streams", "user", "address", "auth")], "0")


@asynccontextmanager
async def several(db: Database, number: int, **given: Any) -> AsyncIterator[list[Api]]:
    """API processes on one database."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(served(db, await no_temporal(), **OFF | given)) for _ in range(number)]


async def ask(api: Api, times: int = 1, key: str | None = None, **headers: str) -> list[httpx.Response]:
    client = api.http if key is None else api.as_(key)
    return [await client.get("/v1/instances", headers=headers) for _ in range(times)]


async def test_two_processes_share_a_limit_and_a_key_has_its_own(database: Database) -> None:
    other = database.key(database.project_id, "other", "viewer")
    async with several(database, 2, rate_limit_read="10/minute") as (one, two):
        answers = await ask(one, 6) + await ask(two, 6)
        assert [answer.status_code for answer in answers] == [200] * 10 + [429] * 2
        assert [answer.headers["ratelimit-remaining"] for answer in answers[:10]] == [str(n) for n in range(9, -1, -1)]
        assert {answer.headers["ratelimit-limit"] for answer in answers} == {"10"}
        refused = answers[-1]
        assert refused.json()["error"]["code"] == "rate_limited"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["retry-after"] == refused.headers["ratelimit-reset"]
        assert (await ask(one))[0].status_code == 429
        # The other key's bucket, and the other class, are their own.
        assert {answer.status_code for answer in await ask(two, 10, key=other)} == {200}
        assert (await one.http.delete(f"/v1/instances/{uuid4()}")).status_code == 404
        # Health is not counted, and is asked for without a key.
        assert (await one.http.get("/health/live")).status_code == 200


async def test_many_at_once_get_no_more_than_the_limit_says(database: Database) -> None:
    async with several(database, 2, rate_limit_read="50/minute") as apis:
        began = time.monotonic()
        answers = await asyncio.gather(*(api.http.get("/v1/instances") for _ in range(60) for api in apis))
        came = (time.monotonic() - began) * 50 / 60
    counted = Counter(answer.status_code for answer in answers)
    # What one has taken and did not use, the other does not have; and there are more while it takes so long.
    assert 44 <= counted[200] <= 50 + came, counted
    assert counted[200] + counted[429] == 120


async def test_waiting_as_long_as_said_is_enough(database: Database) -> None:
    async with several(database, 1, rate_limit_read="3/2 seconds") as (api,):
        refused = (await ask(api, 4))[-1]
        assert refused.status_code == 429
        await asyncio.sleep(int(refused.headers["retry-after"]))
        assert (await ask(api))[0].status_code == 200


async def test_who_shows_no_valid_key_is_counted_by_address(database: Database) -> None:
    async with several(database, 1, rate_limit_address="5/minute", trusted_proxies="127.0.0.0/8") as (api,):
        said = [answer.status_code for answer in await ask(api, 7, key="wrong")]
        assert said == [401] * 5 + [429] * 2
        async with httpx.AsyncClient(base_url=api.url) as nobody:
            assert (await nobody.get("/v1/instances")).status_code == 429
            elsewhere = {"X-Forwarded-For": "203.0.113.7"}
            assert (await nobody.get("/v1/instances", headers=elsewhere)).status_code == 401
        # Nobody who is known waits for strangers.
        assert (await ask(api))[0].status_code == 200


async def test_who_shows_no_valid_credential_of_a_host_is_counted_too(database: Database) -> None:
    async with several(database, 1, rate_limit_address="5/minute") as (api,):
        async with api.as_("cairn_host_wrong") as stranger:
            body = {"hosts": [{"id": str(uuid4())}]}
            said = [(await stranger.post("/v1/hosts/lease", json=body)).status_code for _ in range(7)]
        assert said == [401] * 5 + [429] * 2


async def test_all_keys_of_a_user_together_have_a_limit(database: Database) -> None:
    user = database.one("SELECT user_id FROM api_keys WHERE name = 'admin'")["user_id"]
    second = database.key(database.project_id, "second", "viewer")
    database.rows("UPDATE api_keys SET user_id = %s WHERE name = 'second'", user)
    somebody = database.key(database.project_id, "somebody", "viewer")
    async with several(database, 1, rate_limit_user="4/minute") as (api,):
        assert [answer.status_code for answer in await ask(api, 2) + await ask(api, 3, key=second)] == [200] * 4 + [429]
        assert (await ask(api, key=somebody))[0].status_code == 200


async def test_logins_are_counted_by_address_before_anything_is_done(database: Database) -> None:
    async with several(database, 1, rate_limit_auth="3/minute") as (api,):
        body = {"email": "jo@example.org", "password": "wrong"}
        said = [(await api.http.post("/v1/auth/login", json=body)).status_code for _ in range(5)]
        assert said[3:] == [429, 429]
        assert 429 not in said[:3]


async def test_without_the_database_limits_refuse_nothing() -> None:
    limits = Limits(Settings(database_url="postgresql://nobody@127.0.0.1:1/none"))
    began = time.monotonic()
    assert [await limits.take("key:1:read", Rate(1, 60)) for _ in range(100)] == [None] * 100
    assert time.monotonic() - began < 5


async def test_what_is_over_is_forgotten(database: Database) -> None:
    limits = Limits(Settings(database_url=database.url("cairn_api")))
    verdict = await limits.take("key:1:read", Rate(100, 1))
    assert verdict is not None and verdict.left == 99
    # One statement for a twentieth: the other four of five are counted in memory.
    assert database.one("SELECT taken FROM rate_limits")["taken"] == 5
    await asyncio.sleep(1.1)
    limits._forget()
    assert limits._buckets == {}
    database.rows("UPDATE rate_limits SET ends_at = ends_at - interval '2 minutes'")
    await limits.sweep()
    assert database.rows("SELECT * FROM rate_limits") == []
    await limits.close()


@pytest.mark.parametrize(("said", "allowed"), [("600/minute", Rate(600, 60)), ("10 per 2 seconds", Rate(10, 2))])
def test_rates_are_written_as_people_write_them(said: str, allowed: Rate) -> None:
    assert Limits(Settings(rate_limit_read=said)).rates["read"] == allowed


@pytest.mark.parametrize("said", ["", "0"])
def test_none_is_no_limit(said: str) -> None:
    assert Limits(Settings(rate_limit_read=said)).rates["read"] is None


@pytest.mark.parametrize("said", ["many", "0/minute", "-1/minute", "10/fortnight"])
def test_what_is_no_rate_is_refused(said: str) -> None:
    with pytest.raises(ValueError, match="600/minute"):
        Settings(rate_limit_read=said)


async def test_what_is_no_key_is_not_looked_up_from_an_address_that_sends_too_much_of_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[object] = []
    identify = authentication._identify

    async def counted(engine: Any, credential: Any) -> Any:
        looked_up.append(credential)
        return await identify(engine, credential)

    monkeypatch.setattr(authentication, "_identify", counted)
    async with several(database, 1, rate_limit_address="3/minute") as (api,):
        assert (await ask(api))[0].status_code == 200
        answers = [(await ask(api, key=f"wrong-{number}"))[0].status_code for number in range(6)]
        assert answers == [401, 401, 401, 429, 429, 429]
        assert len(looked_up) == 1 + 3


async def test_no_connection_is_held_while_the_counts_are_asked_for(database: Database) -> None:
    async with several(database, 1, rate_limit_read="10/minute") as (api,):
        assert (await ask(api))[0].status_code == 200
        with database.connect() as connection, connection.transaction():
            connection.execute("LOCK rate_limits IN ACCESS EXCLUSIVE MODE")
            asked = [asyncio.ensure_future(api.http.get("/v1/instances")) for _ in range(3)]
            waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'rate_limits'::regclass"
            pool = api.app.state.engine.pool
            assert await eventually(lambda: pool.checkedout() == 0 and database.rows(waits))
        assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}


async def test_agents_hold_no_connection_while_strangers_are_counted(database: Database) -> None:
    async with several(database, 1, rate_limit_address="5/minute") as (api,), api.as_("cairn_host_wrong") as stranger:
        body = {"hosts": [{"id": str(uuid4())}]}
        with database.connect() as connection, connection.transaction():
            connection.execute("LOCK rate_limits IN ACCESS EXCLUSIVE MODE")
            asked = asyncio.ensure_future(stranger.post("/v1/hosts/lease", json=body))
            waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'rate_limits'::regclass"
            pool = api.app.state.engine.pool
            assert await eventually(lambda: pool.checkedout() == 0 and database.rows(waits))
        assert (await asked).status_code == 401
