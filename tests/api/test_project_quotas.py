"""The limits of projects: an administrator of the platform changes those of any, and nobody else does."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from model.base import new_id
from model.projects import limits_of
from model.settings import Settings
from tests.api.conftest import BODY, Api
from tests.services import Database
from worker.database import seed


def path(project: UUID | str) -> str:
    return f"/v1/projects/{project}/quotas"


async def test_an_administrator_changes_the_limits_of_any_project(api: Api) -> None:
    own = api.db.project_id
    key = api.db.project("other")
    other = api.db.one("SELECT id FROM projects WHERE name = 'other'")["id"]
    body = {"instances": {"limit": 2}, "vcpus": {"limit": 2.5}, "image_bytes": {"limit": 1 << 40}}
    answer = await api.http.patch(path(other), json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"] == {
        "instances": {"limit": 2, "used": 0, "reserved": 0},
        "vcpus": {"limit": 2.5, "used": 0, "reserved": 0},
        "memory_mb": {"limit": None, "used": 0, "reserved": 0},
        "images": {"limit": None, "used": 0, "reserved": 0},
        "image_bytes": {"limit": 1 << 40, "used": 0, "reserved": 0},
        "load_balancers": {"limit": None, "used": 0, "reserved": 0},
    }
    assert api.db.quota(own)["instances_limit"] is None
    async with api.as_(key) as owner:
        assert (await owner.get(path(other))).json()["data"]["instances"]["limit"] == 2
        launched = [(await owner.post("/v1/instances", json=BODY | {"name": f"n{n}"})).status_code for n in range(3)]
        assert launched == [202, 202, 429]
        # Below what is used: nothing ends, and nothing more is accepted.
        assert (await api.http.patch(path(other), json={"instances": {"limit": 1}})).status_code == 200
        assert (await owner.get(path(other))).json()["data"]["instances"] == {"limit": 1, "used": 0, "reserved": 2}
        assert (await owner.post("/v1/instances", json=BODY | {"name": "n4"})).status_code == 429
        # What is not named stays; null is no limit.
        lifted = (await api.http.patch(path(other), json={"instances": {"limit": None}})).json()["data"]
        assert (lifted["instances"]["limit"], lifted["vcpus"]["limit"]) == (None, 2.5)
        # Its owner changes it not.
        refused = await owner.patch(path(other), json={"instances": {"limit": 99}})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        for stranger in (own, uuid4()):
            assert (await owner.get(path(stranger))).status_code == 404
            assert (await owner.patch(path(stranger), json={"instances": {"limit": 99}})).status_code == 404
    assert (await api.http.patch(path(uuid4()), json={"instances": {"limit": 1}})).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        *({"instances": {"limit": -1}}, {"instances": {"limit": 1.5}}, {"instances": {"limit": "1"}}),
        *({"instances": {}}, {"instances": "many"}, {"disks": {"limit": 1}}, {"instances": {"limit": 1, "used": 0}}),
        *({"instances": {"limit": 2**31}}, {"image_bytes": {"limit": 2**63}}, {"vcpus": {"limit": -0.5}}),
    ],
)
async def test_what_is_no_limit_is_refused(shared_api: Api, body: Any) -> None:
    answer = await shared_api.http.patch(path(shared_api.db.project_id), json=body)
    assert answer.status_code == 422, answer.text


async def test_two_hundred_launches_at_once_get_the_fifty_places_that_there_are(api: Api) -> None:
    await api.http.patch(path(api.db.project_id), json={"instances": {"limit": 50}})

    async def launch(number: int) -> httpx.Response:
        key = {"Idempotency-Key": f"launch-{number}"}
        while True:
            # What is not known to have been accepted, on a machine with too much to do, is asked for again.
            with contextlib.suppress(httpx.TransportError):
                answer = await api.http.post("/v1/instances", json=BODY | {"name": f"n{number}"}, headers=key)
                if answer.status_code != 503:
                    return answer

    answers = await asyncio.gather(*(launch(number) for number in range(200)))
    assert Counter(answer.status_code for answer in answers) == {202: 50, 429: 150}
    assert {answer.json()["error"]["code"] for answer in answers if answer.status_code == 429} == {"quota_exceeded"}
    assert api.db.quota()["instances_reserved"] == 50
    assert api.db.counts()["instances"] == 50


def test_a_change_survives_a_restart_unless_a_setting_says_otherwise(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> dict[str, float]:
        seed(database.url("cairn_owner"), installation=new_id(), api_key=None, hosts=[], settings=Settings())
        return database.quota()

    database.rows("UPDATE quotas SET instances_limit = 7, vcpus_limit = 8")
    assert start()["instances_limit"] == 7
    monkeypatch.setenv("CAIRN_QUOTA_INSTANCES", "5")
    now = start()
    assert (now["instances_limit"], now["vcpus_limit"]) == (5, 8)
    # Another project gets what the settings say, given or not.
    assert limits_of(Settings()) == {
        "instances_limit": 5,
        **dict.fromkeys(("vcpus_limit", "memory_mb_limit", "images_limit", "image_bytes_limit")),
        "load_balancers_limit": None,
    }
