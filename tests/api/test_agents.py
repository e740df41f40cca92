"""Machines that join: what a token is good for, and what is never accepted."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import Request
from pydantic import SecretStr

from api.agent_leases import as_seen_by
from model.secrets import digest
from model.tickets import new_signing_key
from model.versions import BEFORE
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


async def renew(api: Api, number: int, host_id: str, **more: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer credential-{number}"}
    async with httpx.AsyncClient(base_url=api.url, timeout=30, headers=headers) as http:
        return await http.post("/v1/hosts/lease", json={"hosts": [{"id": host_id}]} | more)


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


async def test_an_agent_of_a_version_that_does_not_work_here_is_refused_and_its_token_is_not_used_up(api: Api) -> None:
    token = await new_token(api)
    for agent in ("99.0.0", "0.0.1", "nonsense"):
        refused(await register(api, token, machine(versions={"agent": agent})), 409, "version_refused")
    assert not api.db.rows("SELECT 1 FROM hosts WHERE name = 'rack-1'")
    refused(await register(api, "cairn_join_x", machine(versions={"agent": "99.0.0"})), 401, "unauthenticated")
    host = joined(await register(api, token, machine(versions={"agent": version("cairn-platform")})))

    async def skew() -> str:
        found: str = (await api.http.get(f"/v1/hosts/{host}")).json()["data"]["version_skew"]
        return found

    assert await skew() == "ok"
    # One that was there before is told of, and works on.
    for agent, expected in (("99.0.0", "newer"), ("0.0.1", "too_old"), ("{}.{}.0".format(*BEFORE), "older")):
        assert (await renew(api, 1, host, versions={"agent": agent})).status_code == 200
        assert await skew() == expected


async def test_a_token_that_is_unknown_or_late(api: Api) -> None:
    refused(await register(api, "cairn_join_x", machine()), 401, "unauthenticated")
    token = await new_token(api)
    api.db.rows("UPDATE host_tokens SET expires_at = now() - interval '1 second'")
    refused(await register(api, token, machine()), 401, "unauthenticated")
    assert (await renew(api, 1, str(uuid4()))).status_code == 401


async def test_same_request_for_a_token_again_is_answered_with_the_same_token(api: Api) -> None:
    async def ask(key: str, **body: Any) -> httpx.Response:
        return await api.http.post("/v1/hosts/tokens", json=body, headers={"Idempotency-Key": key})

    answers = await asyncio.gather(*(ask("k-1", name="rack-1") for _ in range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text.partition('"meta"')[0] for answer in answers}) == 1
    token = answers[0].json()["data"]["token"]
    (kept,) = api.db.rows("SELECT * FROM host_tokens")
    assert kept["digest"] == digest(token)
    stored = str(api.db.rows("SELECT * FROM idempotency_keys")) + str(kept)
    assert token not in stored
    refused(await ask("k-1", name="rack-2"), 409, "idempotency_mismatch")
    assert (await ask("k-2", name="rack-1")).json()["data"]["token"] != token
    host = joined(await register(api, token, machine()))
    assert (await ask("k-1", name="rack-1")).json()["data"]["token"] == token, "and it is good for that host alone"
    assert joined(await register(api, token, machine())) == host


async def test_token_is_shown_again_while_the_ticket_key_is_changed_and_not_after_that(api: Api) -> None:
    async def ask() -> httpx.Response:
        return await api.http.post("/v1/hosts/tokens", headers={"Idempotency-Key": "k"})

    before, old = (await ask()).json()["data"], api.app.state.settings.ticket_key
    new = SecretStr(new_signing_key())
    api.app.state.settings = api.app.state.settings.model_copy(update={"ticket_key": new, "ticket_key_other": old})
    assert (await ask()).json()["data"] == before
    api.app.state.settings = api.app.state.settings.model_copy(update={"ticket_key_other": None})
    refused(await ask(), 409, "idempotency_mismatch")
    assert len(api.db.rows("SELECT 1 FROM host_tokens")) == 1


async def test_labels_are_the_tokens_before_they_are_the_machines(api: Api) -> None:
    token = await new_token(api, labels={"rack": "1"})
    host = joined(await register(api, token, machine(labels={"rack": "2", "disk": "ssd"})))
    assert row(api, host)["labels"] == {"rack": "1", "disk": "ssd"}
    again = await new_token(api, name="rack-1")
    assert joined(await register(api, again, machine(2, labels={"rack": "3", "gpu": "a"}))) == host
    assert row(api, host)["labels"] == {"rack": "1", "disk": "ssd"}, "what is placed there is no machine's to say"
    moved = await new_token(api, name="rack-1", labels={"rack": "4"})
    assert joined(await register(api, moved, machine(3))) == host
    assert row(api, host)["labels"] == {"rack": "4", "disk": "ssd"}


async def test_names_of_the_platforms_own_hosts_are_kept_for_them(api: Api) -> None:
    for name in ("sim-1", "sim-300", "local"):
        refused(await api.http.post("/v1/hosts/tokens", json={"name": name}), 422, "validation_failed")
        token = await new_token(api)
        refused(await register(api, token, machine(name=name)), 422, "validation_failed")
    joined(await register(api, await new_token(api, name="sim-a"), machine(name="sim-a")))


BAD: Json = {
    "agent_url": [
        *("http://a:1", "https://", "https://:1", "https://a:0", "https://a:99999", "https://a:x", "https://a:1/x"),
        *("https://a:1?x", "https://a:1?", "https://a:1#x", "https://a:1#", "https://u@a:1", "https://u:p@a:1"),
        *("https://a\x00b:1", "https://a\ud800:1", "https://a b:1", "https://a\n:1", "https://[::1:1", "https://é:1"),
        *("https://a\\b:1", " https://a:1", 1, True, [], "https://" + "a" * 250),
    ],
    "capacity": [
        *({"cpus": bad, "memory_mb": 1} for bad in (True, "2", 0, -1, 1e9, None)),
        *({"cpus": 1, "memory_mb": bad} for bad in (True, "2", 0, 1.5, 2**31, None)),
    ],
    "token": ["a\x00", "a\ud800", 1, None, "t" * 201],
    "name": ["a\x00", "a/b", "", None, "a" * 64],
    "engines": [[], ["docker", "docker"], ["libvirt"], "docker", None],
    "labels": [{"a": "\x00"}, {"\x00": "a"}, [], None],
    "versions": [{"a": "\x00"}, {"a": "x" * 101}, None],
    "public_key": ["", "AAAA", "é", "\x00", None],
    "fingerprint": ["", "0" * 63, "G" * 64, "\x00" * 64, None],
    "credential_digest": ["", "0" * 63, "G" * 64, "A" * 64, None],
    "credential": ["x"],
}


async def test_bad_input_names_its_field_and_writes_nothing(shared_api: Api) -> None:
    api = shared_api
    token = await new_token(api)
    for field, values in BAD.items():
        for value in values:
            # As it is on the wire: half a surrogate pair included.
            content = json.dumps(machine(name="bad-1") | {"token": token} | {field: value})
            answer = await api.http.post("/v1/hosts/register", content=content, headers=JSON)
            assert answer.status_code == 422, (field, value, answer.text)
            assert field in answer.text
    assert api.db.rows("SELECT 1 FROM hosts WHERE name = 'bad-1'") == []


@pytest.mark.parametrize("good", ["https://a", "https://a:7000/", "https://[::1]:7000", "https://10.0.0.1:65535", None])
async def test_addresses_of_agents(shared_api: Api, good: str | None) -> None:
    name = f"good-{uuid4().hex[:8]}"
    host = joined(await register(shared_api, await new_token(shared_api), machine(9, name=name, agent_url=good)))
    assert row(shared_api, host)["agent_url"] == (good and good.rstrip("/"))


async def test_a_lease_with_a_bad_address_or_that_is_no_json(api: Api) -> None:
    host = joined(await register(api, await new_token(api), machine()))
    headers = {"Authorization": "Bearer credential-1"}
    async with httpx.AsyncClient(base_url=api.url, headers=headers) as http:
        for url in BAD["agent_url"]:
            content = json.dumps({"hosts": [{"id": host}], "agent_url": url})
            answer = await http.post("/v1/hosts/lease", content=content, headers=JSON)
            assert answer.status_code == 422, (url, answer.text)
        for path in ("register", "lease", "samples"):
            refused(await http.post(f"/v1/hosts/{path}", content="{", headers=JSON), 400, "malformed")


async def test_what_a_newer_agent_says_besides_is_passed_over(api: Api) -> None:
    host = joined(await register(api, await new_token(api), machine()))
    async with httpx.AsyncClient(base_url=api.url, headers={"Authorization": "Bearer credential-1"}) as http:
        body = {"hosts": [{"id": host, "of_tomorrow": 1}], "of_tomorrow": {}}
        answer = await http.post("/v1/hosts/lease", json=body)
    assert answer.status_code == 200, answer.text
    assert [one["id"] for one in answer.json()["data"]["hosts"]] == [host]


async def test_what_is_wrong_with_a_body_is_told_to_agents_alone(shared_api: Api) -> None:
    for credential in ({}, {"Authorization": "Bearer nobody"}, {"X-API-Key": shared_api.db.api_key}):
        async with httpx.AsyncClient(base_url=shared_api.url, headers=credential) as http:
            for path in ("lease", "samples"):
                for content in ("{", "{}", "[]", ""):
                    answer = await http.post(f"/v1/hosts/{path}", content=content, headers=JSON)
                    refused(answer, 401, "unauthenticated")


@pytest.mark.parametrize(
    ("met", "temporal", "told"),
    [
        ("10.0.0.1", "127.0.0.1:7233", "10.0.0.1:7233"),
        ("[2001:db8::1]", "127.0.0.1:7233", "[2001:db8::1]:7233"),
        ("10.0.0.1", "[::1]:7233", "10.0.0.1:7233"),
        ("[::1]", "127.0.0.1:7233", "127.0.0.1:7233"),
        ("10.0.0.1", "temporal:7233", "temporal:7233"),
    ],
)
def test_where_temporal_is_for_a_machine_that_joins(met: str, temporal: str, told: str) -> None:
    scope = {"type": "http", "scheme": "http", "path": "/", "headers": [(b"host", f"{met}:8080".encode())]}
    assert as_seen_by(Request(scope), temporal) == told


async def test_the_longest_fence_that_an_agent_may_go_by_is_kept(api: Api) -> None:
    host = joined(await register(api, await new_token(api), machine()))
    assert row(api, host)["fence_after"] is None
    for goes_by, kept in ((None, 30), (90, 90), (None, 90), (30, 30), (5, 30)):
        answer = await renew(api, 1, host, fence_after_seconds=goes_by)
        assert (answer.status_code, answer.json()["data"]["fence_after_seconds"]) == (200, 30)
        assert row(api, host)["fence_after"] == kept
    for bad in (-1, "x", 1e8, float("inf")):
        content = json.dumps({"hosts": [{"id": host}], "fence_after_seconds": bad})
        async with httpx.AsyncClient(base_url=api.url, headers={"Authorization": "Bearer credential-1"}) as http:
            answer = await http.post("/v1/hosts/lease", content=content, headers=JSON)
        assert answer.status_code in (400, 422), bad


async def test_what_an_agent_can_do_is_what_it_said_last(api: Api) -> None:
    host_id = joined(await register(api, await new_token(api), machine()))
    for said in (["network.none", "network.allow-list"], ["network.none"]):
        renewed = await renew(api, 1, host_id, hosts=[{"id": host_id, "capabilities": said}])
        assert renewed.status_code == 200
        assert (await api.http.get(f"/v1/hosts/{host_id}")).json()["data"]["capabilities"] == said
    # One of a version before, in its place, can do nothing of that.
    assert (await renew(api, 1, host_id)).status_code == 200
    assert row(api, host_id)["capabilities"] == []


async def test_an_agent_that_cannot_work_renews_nothing_and_hears_where_temporal_is(api: Api) -> None:
    host = joined(await register(api, await new_token(api), machine()))
    before = row(api, host)
    answer = await renew(api, 1, host, working=False, agent_url="https://10.9.9.9:1")
    assert answer.status_code == 200
    assert answer.json()["data"]["temporal_address"]
    assert row(api, host) == before
    refused(await renew(api, 2, host, working=False), 401, "unauthenticated")


def execute(api: Api, statement: str, *parameters: Any) -> None:
    with api.db.connect() as connection:
        connection.execute(statement, parameters)  # type: ignore[arg-type]


async def test_a_host_that_a_restore_took_back_keeps_its_id(api: Api) -> None:
    """Only after a restore, only an id from before it, and only where no host has it."""
    former = joined(await register(api, await new_token(api), machine()))
    execute(api, "DELETE FROM hosts WHERE id = %s", former)
    other = machine(2, name="rack-2", host_id=former)
    assert joined(await register(api, await new_token(api), other)) != former, "nothing was restored"
    execute(api, "INSERT INTO restores (id, backup_at, epoch) VALUES (gen_random_uuid(), now(), 2)")
    assert joined(await register(api, await new_token(api), machine(host_id=former))) == former
    assert joined(await register(api, await new_token(api), machine(3, name="rack-3", host_id=former))) != former
