"""Webhooks as rows: made, changed, removed; their deliveries, looked at and asked for again."""

from __future__ import annotations

import asyncio
import socket
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from psycopg.types.json import Jsonb

from model.base import new_id
from model.webhooks import WebhookRef
from tests.api.conftest import Api
from tests.vault import sealed_value

# An address of the world: judged without being asked for, and called by nobody here.
URL = "https://1.1.1.1/hook"


async def make(api: Api, name: str = "chat", http: httpx.AsyncClient | None = None, **more: Any) -> dict[str, Any]:
    answer = await (http or api.http).post("/v1/webhooks", json={"name": name, "url": URL} | more)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()["data"]
    return made


def deliver(api: Api, hook: dict[str, Any], state: str, number: int = 1) -> str:
    """What a run of deliveries writes."""
    id = new_id()
    api.db.rows(
        "INSERT INTO webhook_deliveries (id, project_id, webhook_id, epoch, xid, event_id, event_type, state, attempts)"
        " VALUES (%s, %s, %s, 1, 7, %s, 'test.one', %s, 3)",
        *(id, hook["project_id"], hook["id"], number, state),
    )
    return str(id)


async def test_secret_is_shown_once_and_never_again(api: Api) -> None:
    made = await make(api)
    assert made["secret"].startswith("cairn_hook_")
    assert api.db.one("SELECT secret FROM webhooks")["secret"] is None
    assert sealed_value(api.db, api.keyring, made["id"]) == made["secret"]
    assert (made["events"], made["active"], made["disabled_reason"], made["version"]) == (["*"], True, None, 1)
    path = f"/v1/webhooks/{made['id']}"
    shown = [await api.http.get(path), await api.http.get("/v1/webhooks"), await api.http.patch(path, json={})]
    assert all(one.status_code == 200 and made["secret"] not in one.text for one in shown)
    given = await make(api, "given", secret="sixteen or more!".replace(" ", "-"))
    assert "secret" not in given
    with api.db.connect("cairn_api") as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("SELECT secret FROM webhooks")


async def test_cursor_begins_now(api: Api) -> None:
    await api.launch()
    api.db.settle()
    await make(api)
    row = api.db.one("SELECT epoch, xid, number FROM webhooks")
    last = api.db.one("SELECT epoch, xid, id FROM events ORDER BY epoch, xid, id DESC LIMIT 1")
    assert tuple(row.values()) > tuple(last.values())


async def test_same_key_makes_one(api: Api) -> None:
    body = {"name": "chat", "url": URL}
    answers = await asyncio.gather(
        *(api.http.post("/v1/webhooks", json=body, headers={"Idempotency-Key": "k"}) for _ in range(10))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["data"]["id"] for answer in answers}) == 1
    assert sum("secret" in answer.json()["data"] for answer in answers) == 1
    other = await api.http.post("/v1/webhooks", json=body | {"name": "other"}, headers={"Idempotency-Key": "k"})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_mismatch")


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1/", "http://localhost:8080/hook", "http://[::1]/", "http://2130706433/", "http://10.0.0.1/"),
        *("http://169.254.169.254/latest/meta-data", "ftp://example.com/", "http://[::ffff:10.0.0.1]/", "http://"),
    ],
)
async def test_url_that_leads_inside_is_refused(api: Api, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await make(api)
    nothing_allowed = api.app.state.settings.model_copy(update={"outbound_allow": ()})
    monkeypatch.setattr(api.app.state, "settings", nothing_allowed)
    answer = await api.http.post("/v1/webhooks", json={"name": "chat", "url": url})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "url_refused"), answer.text
    changed = await api.http.patch(f"/v1/webhooks/{made['id']}", json={"url": url})
    assert (changed.status_code, changed.json()["error"]["code"]) == (422, "url_refused")


async def test_name_that_resolves_inside_is_refused(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *args: Any, **more: Any) -> Any:
        if host != "inside.test":
            return real(host, port, *args, **more)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.168.1.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    answer = await api.http.post("/v1/webhooks", json={"name": "chat", "url": "https://inside.test/hook"})
    assert answer.json()["error"]["code"] == "url_refused"
    assert "inside.test" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "Not A Name"}, "name"),
        ({"url": "https://user:pass@1.1.1.1/"}, "url"),
        ({"url": "https://1.1.1.1/ x"}, "url"),
        ({"events": []}, "events"),
        ({"events": ["instance"]}, "events.0"),
        ({"secret": "short"}, "secret"),
        ({"color": "red"}, "color"),
    ],
)
async def test_what_is_wrong_is_named(api: Api, body: dict[str, Any], field: str) -> None:
    answer = await api.http.post("/v1/webhooks", json={"name": "chat", "url": URL} | body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_failed"), answer.text
    assert field in [one["field"] for one in answer.json()["error"]["details"]["fields"]]


async def test_list_is_newest_first_and_filtered(api: Api) -> None:
    for name in ("one", "two", "three"):
        await make(api, name, active=name != "two")
    answer = await api.http.get("/v1/webhooks?limit=2")
    assert [row["name"] for row in answer.json()["data"]] == ["three", "two"]
    rest = await api.http.get("/v1/webhooks", params={"cursor": answer.json()["meta"]["next_cursor"]})
    assert [row["name"] for row in rest.json()["data"]] == ["one"]
    assert [row["name"] for row in (await api.http.get("/v1/webhooks?active=false")).json()["data"]] == ["two"]
    assert [row["name"] for row in (await api.http.get("/v1/webhooks?name=one")).json()["data"]] == ["one"]


async def test_change_needs_the_version_it_names(api: Api) -> None:
    made = await make(api)
    path = f"/v1/webhooks/{made['id']}"
    changed = await api.http.patch(path, json={"events": ["host."]}, headers={"If-Match": '"1"'})
    assert changed.status_code == 200
    assert (changed.json()["data"]["events"], changed.headers["ETag"]) == (["host."], '"2"')
    assert (await api.http.patch(path, json={"name": "x"}, headers={"If-Match": '"1"'})).status_code == 412
    assert (await api.http.delete(path, headers={"If-Match": '"1"'})).status_code == 412
    await make(api, "other")
    taken = await api.http.patch(path, json={"name": "other"})
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "name_taken")
    assert (await api.http.patch(path, json={"secret": "another-secret-of-it"})).status_code == 200
    assert sealed_value(api.db, api.keyring, made["id"]) == "another-secret-of-it"


async def test_switched_on_again_begins_with_what_comes(api: Api) -> None:
    made = await make(api)
    path = f"/v1/webhooks/{made['id']}"
    pending = deliver(api, made, "pending")
    assert (await api.http.patch(path, json={"active": False})).json()["data"]["active"] is False
    row = api.db.one("SELECT state, error FROM webhook_deliveries WHERE id = %s", pending)
    assert (row["state"], row["error"]) == ("dead", "the webhook was switched off")
    api.db.rows("UPDATE webhooks SET disabled_reason = 'failing', dead_in_a_row = 5")
    before = api.db.one("SELECT epoch, xid, number FROM webhooks")
    await api.launch()
    api.db.settle()
    changed = (await api.http.patch(path, json={"active": True})).json()["data"]
    assert (changed["active"], changed["disabled_reason"]) == (True, None)
    after = api.db.one("SELECT epoch, xid, number, dead_in_a_row FROM webhooks")
    assert after.pop("dead_in_a_row") == 0
    last = api.db.one("SELECT epoch, xid, id FROM events ORDER BY epoch, xid, id DESC LIMIT 1")
    assert tuple(after.values()) > tuple(last.values()) > tuple(before.values())


async def test_removed_with_its_deliveries(api: Api) -> None:
    made = await make(api)
    deliver(api, made, "delivered")
    assert (await api.http.delete(f"/v1/webhooks/{made['id']}")).status_code == 204
    assert api.db.rows("SELECT 1 FROM webhook_deliveries") == []
    assert (await api.http.get(f"/v1/webhooks/{made['id']}")).status_code == 404
    assert (await api.http.delete(f"/v1/webhooks/{made['id']}")).status_code == 404


async def test_deliveries_by_state_and_once_more(api: Api) -> None:
    made = await make(api)
    path = f"/v1/webhooks/{made['id']}/deliveries"
    dead, done = deliver(api, made, "dead", 1), deliver(api, made, "delivered", 2)
    rows = (await api.http.get(path)).json()["data"]
    assert [row["id"] for row in rows] == [done, dead]
    (row,) = (await api.http.get(f"{path}?state=dead")).json()["data"]
    assert (row["event_id"], row["event_type"], row["attempts"], row["next_attempt_at"]) == (
        "1-7-1",
        "test.one",
        3,
        None,
    )
    assert (await api.http.get(f"{path}?state=lost")).status_code == 422
    for _ in range(2):
        again = await api.http.post(f"{path}/{dead}/redeliver", headers={"Idempotency-Key": "again"})
        assert again.status_code == 200, again.text
        assert (again.json()["data"]["state"], again.json()["data"]["attempts"]) == ("pending", 0)
    assert (await api.http.post(f"{path}/{uuid4()}/redeliver")).status_code == 404
    await api.http.patch(f"/v1/webhooks/{made['id']}", json={"active": False})
    refused = await api.http.post(f"{path}/{done}/redeliver")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "invalid_state")


async def test_new_url_is_tried_at_once(api: Api) -> None:
    made = await make(api)
    deliver(api, made, "pending")
    api.db.rows("UPDATE webhook_deliveries SET next_attempt_at = now() + interval '1 hour'")
    await api.http.patch(f"/v1/webhooks/{made['id']}", json={"url": "https://1.0.0.1/hook"})
    assert api.db.one("SELECT next_attempt_at <= now() AS due FROM webhook_deliveries")["due"]


async def test_strangers_webhook_is_not_there(api: Api) -> None:
    made = await make(api)
    dead = deliver(api, made, "dead")
    path = f"/v1/webhooks/{made['id']}"
    async with api.as_(api.db.project("stranger")) as stranger:
        answers = [
            await stranger.get(path),
            await stranger.patch(path, json={"name": "mine"}),
            await stranger.delete(path),
            await stranger.get(f"{path}/deliveries"),
            await stranger.post(f"{path}/deliveries/{dead}/redeliver"),
        ]
        assert [answer.status_code for answer in answers] == [404] * 5
        assert (await stranger.get("/v1/webhooks")).json()["data"] == []
        await make(api, http=stranger)  # the name is free in another project


async def test_a_project_has_so_many_and_no_more(api: Api) -> None:
    first = await make(api)
    api.db.rows(
        "INSERT INTO webhooks (id, project_id, name, url, events, secret, epoch, xid, number)"
        " SELECT uuidv7(), %s, 'n-' || n, 'x', %s, 'x', 1, 1, 1 FROM generate_series(1, 99) n",
        *(first["project_id"], Jsonb(["*"])),
    )
    answer = await api.http.post("/v1/webhooks", json={"name": "last", "url": URL})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "quota_exceeded")


def test_what_a_run_is_started_with_has_no_secret() -> None:
    assert set(WebhookRef.model_fields) == {"project_id", "webhook_id"}
