"""Deliveries: which events, in which order, how often, and when no more; with a real receiver."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterator
from email.utils import format_datetime
from ipaddress import ip_network
from typing import Any
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio
from psycopg.types.json import Jsonb
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from temporalio.client import Client
from temporalio.testing import ActivityEnvironment

from activities.due_webhooks import due, start_due
from activities.reencryption import SecretRecords
from activities.shares import OthersFirst
from activities.webhooks import Answer, Batch, Limits, WebhookCalls, WebhookRecords
from model.base import new_id
from model.envelope import EnvelopeBroken
from model.keyring import Keyring, KeyUnknown, new_master_key
from model.webhooks import MOST_DEAD, WebhookRef, signature, wait_after
from tests.receiver import Receiver
from tests.services import SUPERUSER, Database, TemporalServer
from tests.vault import sealed_value

SECRET = "a secret of sixteen and more"
LIMITS = Limits(attempts=3, spread=100, allow=[ip_network("127.0.0.0/8")])


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


class Hooks:
    """Webhooks as the API writes them, and rounds as a run has them."""

    def __init__(self, db: Database, engine: Engine) -> None:
        self.db = db
        self.engine = engine
        self.limits = LIMITS
        self.keyring: Keyring | None = None

    def make(self, url: str, *patterns: str, **columns: Any) -> WebhookRef:
        ref = WebhookRef(project_id=columns.pop("project_id", self.db.project_id), webhook_id=new_id())
        values = {
            "id": ref.webhook_id,
            "project_id": ref.project_id,
            "name": f"hook-{ref.webhook_id}",
            "url": url,
            "events": Jsonb(list(patterns or ("*",))),
            "secret": SECRET,
            "epoch": 0,
            "xid": 0,
            "number": 0,
        } | columns
        self.db.rows(
            f"INSERT INTO webhooks ({', '.join(values)}) VALUES ({', '.join(['%s'] * len(values))})", *values.values()
        )
        return ref

    def happen(self, *types: str, project_id: UUID | None = None, settled: bool = True) -> list[str]:
        """Events, each in a transaction of its own; their ids."""
        ids = [
            self.db.one(
                "INSERT INTO events (project_id, type, resource_type, resource_id, data) VALUES (%s, %s, 'test', %s,"
                " '{\"a\": 1}') RETURNING epoch || '-' || xid || '-' || id AS id",
                *(project_id or self.db.project_id, type, self.db.project_id),
            )["id"]
            for type in types
        ]
        if settled:
            self.db.settle()
        return ids

    async def take(self, ref: WebhookRef) -> Batch:
        batch: Batch = await asyncio.to_thread(ActivityEnvironment().run, WebhookRecords(self.engine).take, ref)
        return batch

    async def deliver(self, batch: Batch) -> float:
        wait: float = await ActivityEnvironment().run(
            WebhookCalls(self.engine, self.limits, self.keyring).deliver, batch
        )
        return wait

    async def round(self, ref: WebhookRef) -> float:
        self.db.settle()
        return await self.deliver(await self.take(ref))

    def is_due(self, ref: WebhookRef) -> bool:
        with Session(self.engine) as session, session.begin():
            return ref in due(session)

    def hurry(self) -> None:
        """As if the time until the next attempts had passed."""
        self.db.rows("UPDATE webhook_deliveries SET next_attempt_at = now() - interval '1 second'")

    def states(self) -> list[str]:
        rows = self.db.rows("SELECT state FROM webhook_deliveries ORDER BY epoch, xid, event_id")
        return [row["state"] for row in rows]

    def row(self, ref: WebhookRef) -> dict[str, Any]:
        return self.db.one("SELECT * FROM webhooks WHERE id = %s", ref.webhook_id)


@pytest.fixture
def hooks(database: Database, worker_engine: Engine) -> Hooks:
    return Hooks(database, worker_engine)


@pytest_asyncio.fixture
async def client(temporal_server: TemporalServer) -> Client:
    return await temporal_server.client()


async def test_wanted_events_are_delivered_once_in_order_and_signed(hooks: Hooks, receiver: Receiver) -> None:
    ref = hooks.make(receiver.url, "instance.", "host.warning")
    ids = hooks.happen("instance.running", "other.one", "host.warning", "host.other", "instance.error")
    while (batch := await hooks.take(ref)).deliveries:
        assert await hooks.deliver(batch) == 0
    assert receiver.ids() == [ids[0], ids[2], ids[4]]
    assert len(receiver.received) == len({one.delivery for one in receiver.received}) == 3
    first = receiver.received[0]
    assert first.event == {
        "id": ids[0],
        "type": "instance.running",
        "resource_type": "test",
        "resource_id": str(hooks.db.project_id),
        "workflow_id": None,
        "project_id": str(hooks.db.project_id),
        "data": {"a": 1},
        "created_at": first.event["created_at"],
    }
    assert first.headers["x-cairn-event"] == "instance.running"
    assert first.headers["content-type"] == "application/json"
    assert all(one.is_signed_with(SECRET) and not one.is_signed_with("another") for one in receiver.received)
    assert hooks.states() == ["delivered"] * 3
    hooks.happen("instance.running")
    await hooks.round(ref)
    assert len(receiver.received) == 4


async def test_more_than_a_batch_goes_out_whole(hooks: Hooks, receiver: Receiver) -> None:
    ref = hooks.make(receiver.url)
    ids = hooks.happen(*(f"test.{number}" for number in range(50)))
    while (batch := await hooks.take(ref)).deliveries:
        await hooks.deliver(batch)
    assert receiver.ids() == ids
    assert len(receiver.received) == 50


async def test_event_of_a_transaction_that_is_open_is_waited_for(hooks: Hooks, receiver: Receiver) -> None:
    ref = hooks.make(receiver.url)
    insert = "INSERT INTO events (project_id, type, resource_type, resource_id) VALUES (%s, 'slow.one', 'test', %s)"
    with psycopg.connect(hooks.db.url(SUPERUSER)) as slow:
        slow.execute(insert, (hooks.db.project_id, hooks.db.project_id))
        hooks.happen("quick.one", settled=False)
        assert (await hooks.take(ref)).deliveries == []
    hooks.db.settle()
    assert hooks.is_due(ref)
    await hooks.round(ref)
    assert [one.event["type"] for one in receiver.received] == ["slow.one", "quick.one"]


async def test_other_projects_events_are_not_sent(hooks: Hooks, receiver: Receiver) -> None:
    hooks.db.project("stranger")
    stranger = hooks.db.one("SELECT id FROM projects WHERE name = 'stranger'")["id"]
    mine, theirs = hooks.make(receiver.url), hooks.make(f"{receiver.url}/theirs", project_id=stranger)
    (id,) = hooks.happen("test.one", project_id=stranger)
    assert not hooks.is_due(mine) and hooks.is_due(theirs)
    for ref in (mine, theirs):
        await hooks.round(ref)
    assert [(one.path, one.event["id"]) for one in receiver.received] == [("/hook/theirs", id)]


async def test_failure_is_tried_again_before_anything_later_is_sent(hooks: Hooks, receiver: Receiver) -> None:
    ref = hooks.make(receiver.url)
    ids = hooks.happen("test.one", "test.two")
    receiver.script.extend([500, 0])
    waits = [await hooks.round(ref)]
    assert not hooks.is_due(ref)
    batch = await hooks.take(ref)
    assert batch.wait == pytest.approx(waits[0], abs=5)
    assert await hooks.deliver(batch) == pytest.approx(waits[0], abs=5), "not before its time, whoever asks"
    assert len(receiver.received) == 1
    hooks.hurry()
    assert hooks.is_due(ref)
    waits.append(await hooks.round(ref))
    hooks.hurry()
    waits.append(await hooks.round(ref))
    assert waits == [pytest.approx(wait_after(1, attempts=3, spread=100)), pytest.approx(250 / 3.5), 0]
    assert [one.event["id"] for one in receiver.received] == [ids[0]] * 3 + [ids[1]]
    assert len({one.delivery for one in receiver.received}) == 2, "its id is the same at each attempt"
    row = hooks.db.one("SELECT * FROM webhook_deliveries ORDER BY event_id LIMIT 1")
    assert (row["state"], row["attempts"], row["status_code"], row["error"]) == ("delivered", 3, 204, None)


def test_attempts_are_spread_over_their_time() -> None:
    waits = [wait_after(attempt, attempts=8, spread=3600) for attempt in range(1, 8)]
    assert sum(waits) == pytest.approx(3600)
    assert waits == sorted(waits) and 8 < waits[0] < 10


async def test_what_was_sent_and_not_written_down_is_sent_again_under_the_same_id(
    hooks: Hooks, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = hooks.make(receiver.url)
    hooks.happen("test.one", "test.two")

    def dies(*_: Any) -> float:
        raise ConnectionError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(WebhookCalls, "_record", dies)
        with pytest.raises(ConnectionError):
            await hooks.round(ref)
    await hooks.round(ref)
    first, again, _ = receiver.received
    assert first.delivery == again.delivery and first.body == again.body
    assert hooks.states() == ["delivered"] * 2


async def test_event_that_fails_too_often_dies_and_the_next_goes_out(hooks: Hooks, receiver: Receiver) -> None:
    ref = hooks.make(receiver.url)
    ids = hooks.happen("test.one", "test.two")
    receiver.script.extend([500, 302, 404])
    for _ in range(3):
        await hooks.round(ref)
        hooks.hurry()
    assert [one.event["id"] for one in receiver.received] == [ids[0]] * 3 + [ids[1]]
    assert hooks.states() == ["dead", "delivered"]
    assert hooks.row(ref)["dead_in_a_row"] == 0


async def test_webhook_of_which_all_die_is_switched_off(hooks: Hooks, receiver: Receiver) -> None:
    hooks.limits = LIMITS._replace(attempts=1)
    ref, other = hooks.make(receiver.url), hooks.make(receiver.url, "webhook.disabled")
    hooks.happen(*(f"test.{number}" for number in range(MOST_DEAD + 2)))
    receiver.usual = 500
    await hooks.round(ref)
    row = hooks.row(ref)
    assert (row["active"], row["disabled_reason"], row["version"]) == (False, "failing", 2)
    assert len(receiver.received) == MOST_DEAD
    assert hooks.states() == ["dead"] * (MOST_DEAD + 2)
    hooks.happen("test.later")
    assert not hooks.is_due(ref) and (await hooks.take(ref)).deliveries == []
    receiver.usual = 200
    await hooks.round(other)
    event = receiver.received[-1].event
    assert (event["type"], event["resource_id"]) == ("webhook.disabled", str(ref.webhook_id))
    assert event["data"] == {"name": row["name"], "reason": "failing"}


async def test_receiver_that_is_gone_is_asked_no_more(hooks: Hooks, receiver: Receiver) -> None:
    ref = hooks.make(receiver.url)
    hooks.happen("test.one", "test.two")
    receiver.usual = 410
    assert await hooks.round(ref) == 0
    assert len(receiver.received) == 1
    assert (hooks.row(ref)["active"], hooks.row(ref)["disabled_reason"]) == (False, "gone")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        *(("500", 500), ("1", 28.57), ("9" * 5000, 3600), ("-5", 28.57), ("nonsense", 28.57), ("nan", 28.57)),
        *(("in 5 min", 300), ("Sun, 06 Nov 99999999999999999999 08:49:37 GMT", 28.57), ("\xb2", 28.57)),
        *(("Fri, 31 Dec 9999 23:59:59 -2359", 3600), ("Fri, 31 Dec 9999 23:59:59 GMT", 3600)),
    ],
)
async def test_receiver_may_ask_for_more_time(hooks: Hooks, receiver: Receiver, asked: str, expected: float) -> None:
    if asked == "in 5 min":
        asked = format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(minutes=5), usegmt=True)
    ref = hooks.make(receiver.url)
    hooks.happen("test.one")
    receiver.script.append((429, {"Retry-After": asked}))
    assert await hooks.round(ref) == pytest.approx(expected, abs=3)


async def test_address_that_is_not_public_is_not_called(hooks: Hooks, receiver: Receiver) -> None:
    ref = hooks.make(receiver.url)
    hooks.limits = LIMITS._replace(allow=())
    hooks.happen("test.one")
    assert await hooks.round(ref) > 0
    assert receiver.received == []
    assert "no public address" in hooks.db.one("SELECT error FROM webhook_deliveries")["error"]


async def test_redirect_is_not_followed(hooks: Hooks, receiver: Receiver) -> None:
    ref = hooks.make(receiver.url)
    hooks.happen("test.one")
    receiver.script.append((307, {"Location": f"{receiver.url}/elsewhere"}))
    assert await hooks.round(ref) > 0
    assert [one.path for one in receiver.received] == ["/hook"]


async def test_event_that_was_purged_is_dead(hooks: Hooks, receiver: Receiver) -> None:
    ref = hooks.make(receiver.url)
    hooks.happen("test.one", "test.two")
    batch = await hooks.take(ref)
    hooks.db.rows("DELETE FROM events WHERE type = 'test.one'")
    assert await hooks.deliver(batch) == 0
    assert hooks.states() == ["dead", "delivered"]


async def test_webhook_that_is_removed_or_switched_off_meanwhile_gets_nothing(hooks: Hooks, receiver: Receiver) -> None:
    removed, off = hooks.make(receiver.url), hooks.make(receiver.url)
    hooks.happen("test.one")
    batches = [await hooks.take(ref) for ref in (removed, off)]
    hooks.db.rows("DELETE FROM webhooks WHERE id = %s", removed.webhook_id)
    hooks.db.rows("UPDATE webhooks SET active = false WHERE id = %s", off.webhook_id)
    assert [await hooks.deliver(batch) for batch in batches] == [0, 0]
    assert [(await hooks.take(ref)).deliveries for ref in (removed, off)] == [[], []]
    assert receiver.received == []


async def test_only_what_is_wanted_makes_a_webhook_due(hooks: Hooks, receiver: Receiver) -> None:
    exact, prefix, every = (hooks.make(receiver.url, pattern) for pattern in ("a.b", "a.", "*"))
    none = hooks.make(receiver.url, "*", active=False)
    assert not any(hooks.is_due(ref) for ref in (exact, prefix, every, none))
    hooks.happen("b.b")
    assert [hooks.is_due(ref) for ref in (exact, prefix, every, none)] == [False, False, True, False]
    passed = hooks.row(exact)
    assert (passed["epoch"], passed["xid"] > 0) == (1, True), "what it does not want it has passed"
    hooks.happen("a.bc")
    assert [hooks.is_due(ref) for ref in (exact, prefix, every, none)] == [False, True, True, False]
    hooks.happen("a.b")
    assert [hooks.is_due(ref) for ref in (exact, prefix, every, none)] == [True, True, True, False]
    for ref in (exact, prefix, every):
        while (batch := await hooks.take(ref)).deliveries:
            await hooks.deliver(batch)
    assert len(receiver.received) == 1 + 2 + 3


async def test_what_is_in_hand_is_not_due_and_is_again_where_its_run_died(hooks: Hooks, receiver: Receiver) -> None:
    ref = hooks.make(receiver.url)
    hooks.happen("test.one", "test.two")
    batch = await hooks.take(ref)
    assert not hooks.is_due(ref)
    hooks.db.rows("UPDATE webhooks SET in_hand_until = now() - interval '1 second'")
    assert hooks.is_due(ref)
    receiver.script.append(500)
    assert await hooks.deliver(batch) > 0
    hooks.hurry()
    assert hooks.is_due(ref), "a failed attempt leaves nothing in hand"
    await hooks.round(ref)
    hooks.happen("test.three")
    assert not hooks.is_due(ref), "its run looks for more by itself"
    await hooks.round(ref)
    await hooks.take(ref)
    assert hooks.row(ref)["in_hand_until"] is None, "it has ended"


async def test_those_that_waited_longest_are_started_first(
    hooks: Hooks, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.due_webhooks.MOST_DUE", 2)
    first, second, third, fourth = (hooks.make(receiver.url, f"test.{number}") for number in range(4))
    hooks.happen("test.3", "test.1", "test.0", "test.2")
    with Session(hooks.engine) as session, session.begin():
        assert due(session) == [fourth, second]
    for ref in (fourth, second):
        await hooks.take(ref)
    with Session(hooks.engine) as session, session.begin():
        assert due(session) == [first, third], "what is being delivered hides nothing"


async def test_slow_receivers_of_one_project_leave_places_for_others(
    hooks: Hooks, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.webhooks.ROUNDS_OF_PROJECT", 2)
    hooks.db.project("stranger")
    stranger = hooks.db.one("SELECT id FROM projects WHERE name = 'stranger'")["id"]
    mine = [hooks.make(receiver.url) for _ in range(3)]
    theirs = hooks.make(receiver.url, project_id=stranger)
    hooks.happen("test.one")
    hooks.happen("test.one", project_id=stranger)
    calls, entered, leave = WebhookCalls(hooks.engine, LIMITS, None), asyncio.Semaphore(0), asyncio.Event()

    async def slow(*_: Any) -> Answer:
        entered.release()
        await leave.wait()
        return Answer(200, None)

    monkeypatch.setattr(calls, "_post", slow)
    batches = [await hooks.take(ref) for ref in (*mine, theirs)]
    rounds = [asyncio.create_task(ActivityEnvironment().run(calls.deliver, batch)) for batch in batches[:2]]
    for _ in rounds:
        await entered.acquire()
    with pytest.raises(OthersFirst) as refused:
        await ActivityEnvironment().run(calls.deliver, batches[2])
    assert refused.value.details["retry_after_seconds"] > 0
    rounds.append(asyncio.create_task(ActivityEnvironment().run(calls.deliver, batches[3])))
    await entered.acquire()
    leave.set()
    assert await asyncio.gather(*rounds) == [0, 0, 0]
    assert await ActivityEnvironment().run(calls.deliver, batches[2]) == 0


async def test_run_is_started_once_and_called_where_it_waits(
    hooks: Hooks, receiver: Receiver, client: Client, worker_engine: Engine
) -> None:
    ref = hooks.make(receiver.url)
    assert await start_due(worker_engine, client, wake=True) == 0
    hooks.happen("test.one")
    for wake in (False, False, True):
        assert await start_due(worker_engine, client, wake=wake) == 1
    handle = client.get_workflow_handle(f"webhook-{ref.webhook_id}")
    history = await handle.fetch_history()
    kinds = [event.event_type for event in history.events]
    assert (await handle.describe()).workflow_type == "DeliverWebhook"
    assert sum(event.HasField("workflow_execution_signaled_event_attributes") for event in history.events) == 1, kinds
    assert SECRET not in str(history.to_json_dict()) and receiver.url not in str(history.to_json_dict())


def test_signature_is_that_of_the_documentation() -> None:
    signed = signature("cairn_hook_example", 1767268800, b'{"id":"1-731-12"}')
    assert signed == "v1=74927775f1e9ccd3b52802aa9eb5a09b9928133c72378b8d68bcbf51d8959598"


async def test_secret_that_lies_sealed_signs_and_one_in_clear_is_the_newer(hooks: Hooks, receiver: Receiver) -> None:
    hooks.keyring = Keyring(new_master_key("here"))
    ref, other = hooks.make(receiver.url), hooks.make(receiver.url)
    await asyncio.to_thread(ActivityEnvironment().run, SecretRecords(hooks.engine, hooks.keyring).reencrypt)
    assert hooks.row(ref)["secret"] is None
    assert sealed_value(hooks.db, hooks.keyring, ref.webhook_id) == SECRET

    async def delivered() -> str:
        hooks.happen("test.one")
        assert await hooks.round(ref) == 0
        (secret,) = filter(receiver.received[-1].is_signed_with, (SECRET, "what an older API wrote since"))
        return secret

    assert await delivered() == SECRET
    hooks.db.rows("UPDATE webhooks SET secret = 'what an older API wrote since' WHERE id = %s", ref.webhook_id)
    assert await delivered() == "what an older API wrote since"
    await asyncio.to_thread(ActivityEnvironment().run, SecretRecords(hooks.engine, hooks.keyring).reencrypt)
    assert await delivered() == "what an older API wrote since"
    # What does not open signs nothing, and nothing is sent.
    sent = len(receiver.received)
    hooks.happen("test.one")
    batch = await hooks.take(ref)
    swap = "UPDATE sealed_values v SET ciphertext = o.ciphertext, nonce = o.nonce FROM sealed_values o"
    hooks.db.rows(f"{swap} WHERE v.webhook_id = %s AND o.webhook_id = %s", ref.webhook_id, other.webhook_id)
    for keyring, error in ((hooks.keyring, EnvelopeBroken), (None, KeyUnknown)):
        hooks.keyring = keyring
        with pytest.raises(error):
            await hooks.deliver(batch)
    assert (len(receiver.received), hooks.states()[-1]) == (sent, "pending")
