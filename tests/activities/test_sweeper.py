"""The sweeper, with a real Temporal on which nobody works."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import AsyncMock

import pytest
import pytest_asyncio
from sqlalchemy import Engine
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError
from temporalio.testing import ActivityEnvironment

from activities.fleet import Limits
from activities.image_records import ImageLimits
from activities.runs import start
from activities.sweeper import Sweeper, Swept
from model.workflows import Order
from tests.activities.conftest import CAPACITY, Platform
from tests.activities.test_balancers import Balanced, balanced
from tests.activities.test_group_balancing import behind, drained
from tests.activities.test_groups import Groups
from tests.services import TemporalServer

__all__ = ["balanced"]

LIMITS = Limits(reconcile_interval=10, fence_after=30, deadline_launch=60, capacity=CAPACITY)
IMAGES = ImageLimits(most_bytes=1, most_unpacked_bytes=1, cache_days=14)


@pytest_asyncio.fixture
async def client(temporal_server: TemporalServer) -> Client:
    return await temporal_server.client()


async def sweep(engine: Engine, client: Client) -> Swept:
    swept: Swept = await ActivityEnvironment().run(Sweeper(engine, client, LIMITS, IMAGES).sweep)
    return swept


def age(platform: Platform, column: str, seconds: int) -> None:
    platform.db.rows(f"UPDATE workflows SET {column} = now() - interval '{seconds} seconds'")


async def status(client: Client, order: Order) -> Any:
    return (await client.get_workflow_handle(str(order.workflow_id)).describe()).status


async def test_lost_start_is_made_up_for_once_it_is_old_enough(
    platform: Platform, worker_engine: Engine, client: Client
) -> None:
    order = platform.launch()
    assert (await sweep(worker_engine, client)).started == 0
    with pytest.raises(RPCError):
        await status(client, order)
    age(platform, "created_at", 4)
    assert (await sweep(worker_engine, client)).started == 1
    assert await status(client, order) is WorkflowExecutionStatus.RUNNING
    description = await client.get_workflow_handle(str(order.workflow_id)).describe()
    assert description.workflow_type == "ProvisionInstance"
    # Not claimed yet: the next sweep finds the same run.
    assert (await sweep(worker_engine, client)).started == 1
    assert (await client.get_workflow_handle(str(order.workflow_id)).describe()).run_id == description.run_id


@pytest.mark.parametrize(
    "broken",
    [
        *("group_balancing.join_due", "group_orders.order_due", "group_policies.order_due", "order_due"),
        *("order_updates", "to_reconcile", "samples.due", "due_webhooks.due_runs", "CronSchedules.look"),
    ],
)
async def test_look_that_fails_keeps_no_other_from_its_turn(
    platform: Platform, worker_engine: Engine, client: Client, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    looks: list[str] = []

    def fail(*args: Any, **more: Any) -> None:
        looks.append(broken)
        raise OverflowError("odd")

    def last(*args: Any, **more: Any) -> list[Any]:
        looks.append("last")
        return []

    told = AsyncMock(side_effect=fail) if broken == "CronSchedules.look" else fail
    monkeypatch.setattr(f"activities.sweeper.{broken}", told)
    monkeypatch.setattr("activities.sweeper.reencryption.due", last)
    order = platform.launch()
    age(platform, "created_at", 4)
    assert (await sweep(worker_engine, client)).started == 1
    assert await status(client, order) is WorkflowExecutionStatus.RUNNING
    assert set(looks) == {broken, "last"}


async def test_undelivered_cancel_is_delivered(platform: Platform, worker_engine: Engine, client: Client) -> None:
    order = platform.launch()
    await asyncio.to_thread(platform.place, order)
    await start(client, order)
    age(platform, "cancel_requested_at", 1)
    assert (await sweep(worker_engine, client)).cancelled == 0
    age(platform, "cancel_requested_at", 4)
    assert (await sweep(worker_engine, client)).cancelled == 1
    history = await client.get_workflow_handle(str(order.workflow_id)).fetch_history()
    assert any(event.HasField("workflow_execution_cancel_requested_event_attributes") for event in history.events)


async def test_terminated_run_is_settled(platform: Platform, worker_engine: Engine, client: Client) -> None:
    order = platform.launch(ports=[{"host_port": None, "container_port": 80, "protocol": "tcp"}])
    await asyncio.to_thread(platform.place, order)
    await start(client, order)
    age(platform, "checked_at", 20)
    assert (await sweep(worker_engine, client)).checked == 1
    assert platform.workflow(order)["state"] == "running", "it still runs"
    await client.get_workflow_handle(str(order.workflow_id)).terminate("by hand")
    assert (await sweep(worker_engine, client)).checked == 0, "checked a moment ago"
    age(platform, "checked_at", 20)
    assert (await sweep(worker_engine, client)).checked == 1
    row, instance = platform.workflow(order), platform.instance(order)
    assert (row["state"], row["error"]["code"]) == ("failed", "run_terminated")
    assert (instance["status"], instance["host_id"]) == ("error", None)
    assert platform.counted() == (0, 0, 0, 0, 0, 0)
    assert platform.held()["ports"] == 0


async def test_run_terminated_before_it_claimed_is_settled(
    platform: Platform, worker_engine: Engine, client: Client
) -> None:
    order = platform.launch()
    await start(client, order)
    await client.get_workflow_handle(str(order.workflow_id)).terminate("by hand")
    age(platform, "created_at", 4)
    await sweep(worker_engine, client)
    assert platform.workflow(order)["state"] == "failed"
    assert platform.counted() == (0, 0, 0, 0, 0, 0)


async def test_run_that_temporal_lost_is_started_again(
    platform: Platform, worker_engine: Engine, client: Client
) -> None:
    order = platform.launch()
    await asyncio.to_thread(platform.place, order)
    age(platform, "checked_at", 20)
    assert (await sweep(worker_engine, client)).checked == 1
    row = platform.workflow(order)
    assert (row["state"], row["run_id"]) == ("accepted", None)
    run_id = (await client.get_workflow_handle(str(order.workflow_id)).describe()).run_id
    # The new run claims the row, and finds the placement of the old one.
    assert (await asyncio.to_thread(platform.place, order, run_id=run_id)).spec.generation == 1


async def test_without_temporal_it_says_so_and_changes_nothing(platform: Platform, worker_engine: Engine) -> None:
    nobody = await TemporalServer("127.0.0.1:9").client(lazy=True)
    order = platform.launch()
    age(platform, "created_at", 4)
    try:
        swept = await sweep(worker_engine, nobody)
        assert (swept.started, swept.failed) == (0, 1)
    except RuntimeError:
        pass  # what a lazy client raises at its first call; the worker's own has been connected
    assert platform.workflow(order)["state"] == "accepted"


async def test_thousand_fine_rows_cost_nothing(platform: Platform, worker_engine: Engine, client: Client) -> None:
    platform.running()
    age(platform, "checked_at", 100)
    assert await sweep(worker_engine, client) == Swept()


async def test_only_the_tick_judges_hosts(platform: Platform, worker_engine: Engine, client: Client) -> None:
    """A sweep that the API asks for also runs while Temporal is away, and no host can renew its lease."""
    await Sweeper(worker_engine, client, LIMITS, IMAGES).sweep()
    judges = "SELECT process FROM pulses WHERE process IN ('api', 'tick')"
    assert platform.db.rows(judges) == []
    await sweep(worker_engine, client)
    assert platform.db.rows(judges) == [{"process": "tick"}]


async def test_child_whose_parent_has_ended_is_started(
    platform: Platform, worker_engine: Engine, client: Client
) -> None:
    parent, child = platform.launch("parent"), platform.launch("child")
    age(platform, "created_at", 10)
    platform.db.rows("UPDATE workflows SET parent_id = %s WHERE id = %s", parent.workflow_id, child.workflow_id)
    assert (await sweep(worker_engine, client)).started == 1
    platform.db.rows("UPDATE workflows SET state = 'failed', finished_at = now() WHERE id = %s", parent.workflow_id)
    assert (await sweep(worker_engine, client)).started == 1
    assert await status(client, child) is WorkflowExecutionStatus.RUNNING


async def test_what_drains_is_not_deleted_before_though_who_ordered_that_was_called_off(
    balanced: Balanced, client: Client
) -> None:
    groups = Groups(balanced.platform, balanced.engine)
    order = behind(groups, balanced)
    wish = groups.wish(order, desired_count=1)
    (doomed,) = groups.next(wish).removals
    groups.settle(wish, "cancelled")
    age(balanced.platform, "created_at", 4)
    await sweep(balanced.engine, client)
    with pytest.raises(RPCError):
        await status(client, doomed)
    (child,) = groups.db.rows(
        "SELECT \"order\" FROM workflows WHERE kind = 'UpdateLoadBalancer' AND parent_id IS NOT NULL"
    )
    update = Order.model_validate(child["order"])
    assert await status(client, update) is WorkflowExecutionStatus.RUNNING
    drained(balanced, update)
    await sweep(balanced.engine, client)
    assert await status(client, doomed) is WorkflowExecutionStatus.RUNNING
