"""Cron jobs, whatever happens to a run of theirs: it is one, it ends, and its target is called under its key."""

from __future__ import annotations

import asyncio
import uuid

import httpx
from temporalio.client import Client

from model.cron import OPEN
from tests.chaos.cells import PROCESSES, Cell
from tests.receiver import Receiver
from tests.stack import Json, Stack, wait_for


def run(stack: Stack, cell: Cell) -> None:
    if cell.plan == "cron compare":
        _compare(stack, cell)
    elif cell.plan == "cron workflow":
        _workflow(stack, cell)
    else:
        _request(stack, cell)


def _request(stack: Stack, cell: Cell) -> None:
    with Receiver() as receiver:
        job = _make(stack, {"http": {"url": receiver.url, "body": "hello"}})
        run = _triggered(stack, cell, job)
        assert run["state"] == "completed", run
        assert {one.headers["idempotency-key"] for one in receiver.received} == {run["idempotency_key"]}
        assert all(one.is_signed_with(job["secret"]) for one in receiver.received)
        _remove(stack, job)


def _workflow(stack: Stack, cell: Cell) -> None:
    instance = stack.running()
    job = _make(stack, {"workflow": {"kind": "StopInstance", "resource_id": instance["id"]}})
    run = _triggered(stack, cell, job)
    assert run["state"] == "completed", run
    assert stack.instance(instance)["status"] == "stopped"
    started = stack.sql("SELECT id FROM workflows WHERE resource_id = %s AND kind = 'StopInstance'", instance["id"])
    assert [str(id) for (id,) in started] == [run["workflow_id"]]
    _remove(stack, job)


def _compare(stack: Stack, cell: Cell) -> None:
    """A schedule of a job that is in no row, as after an older database was put back."""
    job = _make(stack, {"http": {"url": "http://127.0.0.1:29999/"}})
    id = f"cron-{stack.installation()}-{job['id']}"
    assert id in asyncio.run(_schedules(stack))
    before = len(stack.hits(cell.point))
    stack.fault(cell.point, cell.what)
    stack.sql("DELETE FROM cron_jobs WHERE id = %s", job["id"])
    stack.wait_for_hit(cell.point, before, 30)
    wait_for("its schedule is gone", lambda: id not in asyncio.run(_schedules(stack)), 45)


async def _schedules(stack: Stack) -> list[str]:
    client = await Client.connect(stack.endpoint()["temporal_address"])
    return [one.id async for one in await client.list_schedules()]


def _make(stack: Stack, target: Json) -> Json:
    body = {"name": f"job-{uuid.uuid4().hex[:8]}", "schedule": "@yearly", "target": target}
    job: Json = stack.accept("POST", "/cron/jobs", body)["data"]
    wait_for("Temporal has it", lambda: stack.get(f"/cron/jobs/{job['id']}")["applied"])
    return job


def _triggered(stack: Stack, cell: Cell, job: Json) -> Json:
    """A run out of turn, which met the cell's fault, at its end."""
    held = cell.what in PROCESSES
    before = len(stack.hits(cell.point))
    stack.plant({"point": cell.point, "action": "pause" if held else cell.what, "times": 1, "seconds": 0})
    path = f"/cron/jobs/{job['id']}"
    asked = stack.accept("POST", f"{path}/trigger")["data"]
    stack.wait_for_hit(cell.point, before, 30)
    if held:
        stack.kill(cell.what)
        stack.plant()

    def ended() -> Json | None:
        run: Json = stack.get(f"{path}/runs/{asked['id']}")
        return run if run["state"] not in OPEN else None

    run = wait_for("the run ends", ended, 60)
    assert [one["id"] for one in stack.list(f"{path}/runs")] == [run["id"]]
    return run


def _remove(stack: Stack, job: Json) -> None:
    assert stack.request("DELETE", f"/cron/jobs/{job['id']}").status_code == httpx.codes.NO_CONTENT
    wait_for("it is gone", lambda: not stack.sql("SELECT id FROM cron_jobs WHERE id = %s", job["id"]))
