"""Machines that join: what a token is good for, and what is never accepted."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import Any
from uuid import uuid4

import httpx

from model.secrets import digest
from tests.api.conftest import Api

Json = dict[str, Any]
JSON = {"content-type": "application/json"}


async def new_token(api: Api, **body: Any) -> str:
    answer = await api.http.post("/v1/hosts/tokens", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["data"]["token"])


def machine(number: int = 1, **more: Any) -> Json:
    """What a machine with keys and a credential of its own asks with."""
    return {
        "name": "rack-1",
        "engines": ["docker"],
        "capacity": {"cpus": 2, "memory_mb": 1024},
        "public_key": b64encode(bytes([number]) * 32).decode(),
        "fingerprint": f"{number:02x}" * 32,
        "credential_digest": digest(f"credential-{number}").hex(),
        "agent_url": f"https://10.0.0.{number}:7000",
        **more,
    }


async def register(api: Api, token: str, body: Json) -> httpx.Response:
    async with httpx.AsyncClient(base_url=api.url, timeout=30) as http:
        return await http.post("/v1/hosts/register", json=body | {"token": token})


async def renew(api: Api, number: int, host_id: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer credential-{number}"}
    async with httpx.AsyncClient(base_url=api.url, timeout=30, headers=headers) as http:
        return await http.post("/v1/hosts/lease", json={"hosts": [{"id": host_id}]})


def joined(answer: httpx.Response) -> str:
    assert answer.status_code == 201, answer.text
    return str(answer.json()["data"]["id"])


def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


def row(api: Api, host_id: str) -> Json:
    return api.db.one("SELECT * FROM hosts WHERE id = %s", host_id)


async def test_a_token_makes_one_host_and_asking_again_changes_nothing(api: Api) -> None:
    token = await new_token(api)
    host = joined(await register(api, token, machine()))
    before = row(api, host)
    assert joined(await register(api, token, machine())) == host
    assert joined(await register(api, token, machine(agent_url="https://10.9.9.9:1", labels={"a": "b"}))) == host
    assert row(api, host) == before
    assert (await renew(api, 1, host)).status_code == 200
    refused(await register(api, token, machine(name="rack-2")), 401, "unauthenticated")
    for what in ("public_key", "fingerprint", "credential_digest"):
        other = machine() | {what: machine(2)[what]}
        refused(await register(api, token, other), 401, "unauthenticated")
    assert row(api, host)["fingerprint"] == before["fingerprint"]
    assert len((await api.http.get("/v1/hosts")).json()["data"]) == 3


async def test_a_used_token_does_not_bring_a_removed_host_back(api: Api) -> None:
    token = await new_token(api, name="rack-1")
    host = joined(await register(api, token, machine()))
    assert (await api.http.delete(f"/v1/hosts/{host}")).status_code == 204
    refused(await register(api, token, machine()), 401, "unauthenticated")
    again = joined(await register(api, await new_token(api), machine()))
    refused(await register(api, token, machine()), 401, "unauthenticated")
    assert again != host


async def test_knowing_the_keys_of_a_host_is_not_being_it(api: Api) -> None:
    """All but the credential can be seen by others."""
    host = joined(await register(api, await new_token(api), machine()))
    before = row(api, host)
    taken = machine(2, public_key=machine()["public_key"])
    refused(await register(api, await new_token(api), taken), 409, "name_taken")
    taken["fingerprint"] = machine()["fingerprint"]
    refused(await register(api, await new_token(api), taken), 409, "name_taken")
    assert row(api, host) == before
    assert (await renew(api, 1, host)).status_code == 200
    assert (await renew(api, 2, host)).status_code == 401


async def test_a_token_for_the_name_takes_the_place_of_its_keys_once(api: Api) -> None:
    host = joined(await register(api, await new_token(api), machine()))
    named = await new_token(api, name="rack-1")
    assert joined(await register(api, named, machine(2))) == host
    assert ((await renew(api, 1, host)).status_code, (await renew(api, 2, host)).status_code) == (401, 200)
    refused(await register(api, named, machine(1)), 401, "unauthenticated")
    assert joined(await register(api, named, machine(2))) == host
    refused(await register(api, await new_token(api, name="other"), machine(3)), 401, "unauthenticated")


async def test_of_two_machines_with_one_token_or_one_name_one_joins(api: Api) -> None:
    token = await new_token(api)
    both = [register(api, token, machine(n, name=f"rack-{n}")) for n in (1, 2)]
    assert sorted(answer.status_code for answer in await asyncio.gather(*both)) == [201, 401]
    tokens = [await new_token(api) for _ in range(2)]
    both = [register(api, tokens[n], machine(n + 3, name="one-name")) for n in (0, 1)]
    first, second = sorted([answer.status_code for answer in await asyncio.gather(*both)])
    assert first == 201
    assert second in (409, 503)


async def test_a_token_that_is_unknown_or_late(api: Api) -> None:
    refused(await register(api, "cairn_join_x", machine()), 401, "unauthenticated")
    token = await new_token(api)
    api.db.rows("UPDATE host_tokens SET expires_at = now() - interval '1 second'")
    refused(await register(api, token, machine()), 401, "unauthenticated")
    assert (await renew(api, 1, str(uuid4()))).status_code == 401
