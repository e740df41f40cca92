"""The plan of webhooks: rounds until nothing is pending, waits that can be cut short, histories that stay short."""

from __future__ import annotations

import asyncio
import time

import pytest

from activities.runs import CONTROL
from model.base import new_id
from model.errors import Unavailable
from model.webhooks import WebhookRef
from tests.services import eventually
from tests.workflows.stage import Gate, Theatre, fails
from workflows import webhooks

ROUND = ["webhook.take", "webhook.deliver"]


async def start(play: Theatre) -> tuple[str, asyncio.Future[None]]:
    ref = WebhookRef(project_id=new_id(), webhook_id=new_id())
    id = f"webhook-{ref.webhook_id}"
    handle = await play.client.start_workflow("DeliverWebhook", ref, id=id, task_queue=CONTROL)
    return id, asyncio.ensure_future(handle.result())


async def test_rounds_go_on_until_nothing_is_pending(play: Theatre) -> None:
    play.stage.rounds_of_deliveries = [0, 0.2, 0]
    _, ended = await start(play)
    await asyncio.wait_for(ended, 20)
    assert play.stage.calls == [*ROUND * 3, "webhook.take"]


async def test_wait_is_kept_and_is_cut_short_by_a_call(play: Theatre) -> None:
    play.stage.rounds_of_deliveries = [3600, 0]
    id, ended = await start(play)
    assert await eventually(lambda: play.stage.calls == ROUND)
    await asyncio.sleep(0.5)
    assert play.stage.calls == ROUND
    began = time.monotonic()
    await play.client.get_workflow_handle(id).signal("look")
    await asyncio.wait_for(ended, 20)
    assert time.monotonic() - began < 10
    assert play.stage.calls == [*ROUND, *ROUND, "webhook.take"]


async def test_call_during_a_round_is_not_lost(play: Theatre) -> None:
    play.stage.rounds_of_deliveries = [3600, 0]
    gate = Gate()
    play.stage.script["webhook.deliver"].append(gate)
    id, ended = await start(play)
    await asyncio.wait_for(gate.reached.wait(), 20)
    await play.client.get_workflow_handle(id).signal("look")
    gate.opened.set()
    await asyncio.wait_for(ended, 20)


async def test_failures_of_ours_are_tried_again(play: Theatre) -> None:
    play.stage.rounds_of_deliveries = [0]
    for name in ROUND:
        play.stage.script[name].append(fails(Unavailable("the database is away")))
    _, ended = await start(play)
    await asyncio.wait_for(ended, 20)
    assert play.stage.calls == ["webhook.take", "webhook.take", "webhook.deliver", "webhook.deliver", "webhook.take"]


async def test_long_runs_go_on_in_a_new_history(play: Theatre, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = webhooks.ROUNDS + 3
    play.stage.rounds_of_deliveries = [0] * rounds
    id, ended = await start(play)
    await asyncio.wait_for(ended, 100)
    assert play.stage.calls.count("webhook.deliver") == rounds
    history = await play.client.get_workflow_handle(id).fetch_history()
    assert len(history.events) < 60, "that of the last part"
