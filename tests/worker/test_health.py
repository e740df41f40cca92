"""What an agent makes of looks, and what it tells of them."""

from __future__ import annotations

import asyncio
import threading
from base64 import b64encode
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest

from model.errors import EngineUnavailable, Superseded, Unavailable
from model.health import Checked, HealthCheck, Look
from model.images import ImageWanted
from model.instances import MachineSpec
from model.sealing import SealBroken, new_private_key, seal
from model.vault import REGISTRY
from tests.services import eventually
from worker import health
from worker.health import HealthLooks, Standing
from worker.identity import Keys, Membership
from worker.sealed import Sealed

CHECK = HealthCheck(type="tcp", port=80, interval_seconds=1, retries=2, start_period_seconds=20)
KEYS, OTHERS = (
    Keys(private_key=b64encode(new_private_key()).decode(), certificate="", certificate_key="") for _ in range(2)
)
MEMBERSHIP = Membership(
    api_url="http://api/v1",
    installation=uuid4(),
    temporal_address="",
    temporal_namespace="",
    credential="c",
    hosts=[],
    ticket_keys=[],
)


def standing(*looks: tuple[float, float | None]) -> Standing:
    """After looks, each (when, WELL or when the machine was started, of one that failed)."""
    found = Standing()
    for when, started_at in looks:
        look = Look() if started_at == WELL else Look(failure="no", started_at=started_at)
        found.take(look, CHECK, when)
    return found


WELL, ENDED = -1.0, None


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ([], None),
        ([(100, WELL)], "healthy"),
        ([(100, 0)], None),
        ([(100, 0), (101, 0)], "unhealthy"),
        ([(100, 0), (101, 0), (102, WELL)], "healthy"),
        ([(100, WELL), (101, 0)], "healthy"),
        ([(100, WELL), (101, 0), (102, WELL), (103, 0)], "healthy"),
        ([(100, WELL), (101, 0), (102, 0)], "unhealthy"),
        ([(100, 95)], "starting"),
        ([(100, 95), (101, 95), (102, 95)], "starting"),
        ([(100, 95), (116, 95), (117, 95)], "unhealthy"),
        ([(100, WELL), (110, 105)], "starting"),
        ([(100, 0), (101, 0), (110, 105)], "starting"),
        ([(100, WELL), (130, 105)], "starting"),
        ([(100, WELL), (130, 105), (160, 135)], "unhealthy"),
        ([(100, WELL), (130, 105), (160, 135), (190, 165)], "unhealthy"),
        ([(100, WELL), (130, 105), (150, WELL), (190, 165)], "starting"),
        ([(100, WELL), (130, ENDED), (131, 120)], "starting"),
        ([(100, WELL), (110, ENDED), (111, ENDED), (112, ENDED)], "healthy"),
    ],
    ids=str,
)
def test_failures_count_in_a_row_and_after_the_start_period(looks: list[Any], expected: str | None) -> None:
    assert standing(*looks).health == expected


class Machines:
    """Two machines, one of which is not well."""

    def __init__(self) -> None:
        self.there = [self.machine("good"), self.machine("bad")]
        self.away = False
        self.looks = 0
        self.seen = 0
        #: Looks at those that hang end with it.
        self.over = threading.Event()

    @staticmethod
    def machine(engine_id: str) -> Checked:
        check = CHECK.model_copy(update={"interval_seconds": 0.05, "start_period_seconds": 0})
        ids: dict[str, Any] = {"id": uuid4(), "project_id": uuid4(), "generation": 1}
        return Checked(engine_id=engine_id, check=check, **ids)

    def checked(self) -> list[Checked]:
        self.seen += 1
        if self.away:
            raise EngineUnavailable("away")
        return self.there

    def look(self, machine: Checked) -> Look:
        self.looks += 1
        if machine.engine_id.startswith("hangs"):
            self.over.wait(10)
        if self.away:
            raise KeyError("never seen")
        return Look(failure="no", started_at=1) if machine.engine_id.startswith("bad") else Look()


class Api:
    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.status = 200

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.status == 200:
            self.told += orjson.loads(request.content)["machines"]
        return httpx.Response(self.status)

    def of(self, machine: Checked) -> list[str]:
        return [told["health"] for told in self.told if told["id"] == str(machine.id)]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> tuple[Machines, Api, HealthLooks]:
    monkeypatch.setattr(health, "SEE_SECONDS", 0.1)
    monkeypatch.setattr(health, "RETRY_SECONDS", 0.1)
    api, machines, client = Api(), Machines(), httpx.AsyncClient
    monkeypatch.setattr(health.httpx, "AsyncClient", lambda **more: client(transport=httpx.MockTransport(api), **more))
    return machines, api, HealthLooks(MEMBERSHIP, {uuid4(): machines})  # type: ignore[dict-item]


async def test_changes_are_told_once_and_what_goes_is_not_looked_at(looks: tuple[Machines, Api, HealthLooks]) -> None:
    machines, api, agent = looks
    good, bad = machines.there
    running = asyncio.create_task(agent.run())
    assert await eventually(lambda: api.of(good) and api.of(bad))
    await asyncio.sleep(0.5)
    assert (set(api.of(good)), set(api.of(bad))) == ({"healthy"}, {"unhealthy"})
    assert len(api.told) <= 4, "not with every look"
    machines.there = [bad.model_copy(update={"engine_id": "bad-2", "id": uuid4()})]
    assert await eventually(lambda: api.of(machines.there[0]))
    before = api.of(good)
    await asyncio.sleep(0.3)
    assert api.of(good) == before
    running.cancel()


async def test_engine_that_is_away_says_nothing_of_machines_and_an_api_that_is_away_is_told_later(
    looks: tuple[Machines, Api, HealthLooks],
) -> None:
    machines, api, agent = looks
    good, _ = machines.there
    api.status = 503
    running = asyncio.create_task(agent.run())
    assert await eventually(lambda: machines.looks > 5)
    machines.away = True
    await asyncio.sleep(0.3)
    assert api.told == []
    api.status = 200
    assert await eventually(lambda: api.of(good) == ["healthy"])
    assert not running.done()
    running.cancel()


async def test_project_whose_machines_hang_takes_no_more_than_its_share(
    looks: tuple[Machines, Api, HealthLooks],
) -> None:
    machines, api, agent = looks
    one = machines.machine("hangs-0")
    machines.there = [one.model_copy(update={"engine_id": f"hangs-{n}"}) for n in range(2 * health.AT_ONCE)]
    running = asyncio.create_task(agent.run())
    try:
        assert await eventually(lambda: machines.looks >= health.SHARE)
        await asyncio.sleep(0.3)
        assert machines.looks == health.SHARE
        machines.there = [*machines.there, good := machines.machine("good")]
        assert await eventually(lambda: api.of(good) == ["healthy"])
    finally:
        machines.over.set()
        running.cancel()


async def test_machines_that_all_hang_do_not_hide_which_there_are(
    looks: tuple[Machines, Api, HealthLooks], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "SEE_SECONDS", 0.05)
    machines, _, agent = looks
    machines.there = [machines.machine(f"hangs-{n}") for n in range(health.AT_ONCE)]
    running = asyncio.create_task(agent.run())
    try:
        assert await eventually(lambda: machines.looks == health.AT_ONCE)
        before = machines.seen
        assert await eventually(lambda: machines.seen > before)
    finally:
        machines.over.set()
        running.cancel()


# User data


def spec(**more: Any) -> MachineSpec:
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of abc
    known = {"id": uuid4(), "project_id": uuid4(), "generation": 1, "name": "web", "image": "a", "vcpus": 1}
    return MachineSpec.model_validate(known | {"memory_mb": 1, "user_data": digest} | more)


def test_script_is_fetched_for_its_instance_and_proved() -> None:
    wanted, asked = spec(), []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, request.url.params["project_id"], request.headers["authorization"]))
        purpose = f"user_data:{request.url.path.rpartition('/')[2]}"
        return httpx.Response(200, json={"data": {"sealed": seal(b"abc", purpose=purpose, key=KEYS.public_key)}})

    fetch = Sealed(MEMBERSHIP, KEYS, httpx.MockTransport(answer)).script
    assert fetch(wanted) == b"abc"
    assert asked == [(f"/v1/hosts/user-data/{wanted.id}", str(wanted.project_id), "Bearer c")]
    with pytest.raises(Superseded):
        fetch(spec(user_data="00" * 32))
    with pytest.raises(SealBroken):
        Sealed(MEMBERSHIP, OTHERS, httpx.MockTransport(answer)).script(wanted)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(404), Superseded),
        (httpx.Response(503), Unavailable),
        (httpx.Response(200, content=b"<html>"), Unavailable),
        (httpx.Response(200, json={"data": None}), Unavailable),
        (httpx.ConnectError("away"), Unavailable),
    ],
    ids=str,
)
def test_script_that_cannot_be_had(answer: httpx.Response | Exception, error: type[Exception]) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(error):
        Sealed(MEMBERSHIP, KEYS, httpx.MockTransport(handle)).script(spec())


def test_secrets_and_logins_are_fetched_from_where_they_lie() -> None:
    wanted, image = spec(secrets={"K": "file"}, user_data=None), uuid4()
    values = {"K": "value", REGISTRY: '{"username": "me", "password": "p"}'}
    told = {
        f"/v1/hosts/secrets/{wanted.id}": (orjson.dumps(values), f"secrets:{wanted.id}:1"),
        f"/v1/hosts/registry-logins/{image}": (b'{"username": "you", "password": "q"}', f"registry:{image}"),
    }

    def answer(request: httpx.Request) -> httpx.Response:
        value, purpose = told[request.url.path]
        assert request.url.params["project_id"] == str(wanted.project_id)
        return httpx.Response(200, json={"data": {"sealed": seal(value, purpose=purpose, key=KEYS.public_key)}})

    sealed = Sealed(MEMBERSHIP, KEYS, httpx.MockTransport(answer))
    assert sealed.secrets(wanted) == {"K": b"value"}
    assert sealed.login(wanted) == {"username": "me", "password": "p"}
    imported = ImageWanted(reference="a", project_id=wanted.project_id, login_of=image)
    assert sealed.login(imported) == {"username": "you", "password": "q"}
    values.pop(REGISTRY)
    told[f"/v1/hosts/secrets/{wanted.id}"] = orjson.dumps(values), f"secrets:{wanted.id}:1"
    for nothing in (wanted, ImageWanted(reference="a")):
        with pytest.raises(Superseded):
            sealed.login(nothing)
