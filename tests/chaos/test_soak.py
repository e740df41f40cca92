"""Thousands of instances come and go, and nothing grows: descriptors, memory, threads, files, live rows, runs."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import httpx
import pytest
from temporalio.client import Client

from bench.client import Connection, Json
from tests import invariants
from tests.chaos import footprint
from tests.chaos.footprint import Sample
from tests.chaos.test_matrix import PART
from tests.stack import IMAGE, Stack, wait_for

LONG = PART == "all"
#: CAIRN_SOAK_CYCLES: another number for the long run.
CYCLES = int(os.environ.get("CAIRN_SOAK_CYCLES", "10000")) if LONG else 60
CLIENTS = 16
#: One in so many is deleted while its launch is under way.
HASTY = 8
SAMPLES = 100 if LONG else 16
#: Samples while caches and pools still fill; and how many are compared, those after these with the last.
WARM, COMPARED = SAMPLES // 5, SAMPLES // 10 if LONG else 5
#: In the short run Temporal's and the workers' caches of runs, which hold some hundreds, are still filling.
GROWTH = 1.10 if LONG else 1.30
#: Descriptors: connections come as they are needed.
MORE = 8 if LONG else 24
#: Pools begin another thread, and its connection, where all are busy just then, until they have as many as they may.
POOLS = 16
#: A connection of PostgreSQL keeps open what it has touched: more tables and indexes, until it has touched all.
RELATIONS = 40
#: It deletes those that are done now and then, and what is left of them looks late.
LATE_SECONDS = 5.0
#: What keeps its rows. The one notes how far each project's events are gone, so that streams can tell of it.
KEEPS = {"event_horizons": 1}
#: Of the settings that say in days how long what has ended is kept.
MOMENT = "0.00001"
SHORT = {f"CAIRN_RETAIN_{what}": MOMENT for what in ("DELETED", "EVENTS", "WORKFLOWS")} | {"CAIRN_PURGE_INTERVAL": "2"}
WAIT_SECONDS, WAITS = 60, 5


@pytest.fixture
def soaked(tmp_path: Path) -> Iterator[Stack]:
    """A platform with a folder of its own for what is temporary. It is purged later than the test can last."""
    stack = Stack(docker=False, CAIRN_PURGE_INTERVAL="36000", TMPDIR=str(tmp_path))
    try:
        yield stack.start().ready()
    finally:
        stack.remove()


async def accepted(connection: Connection, method: str, path: str, body: Json | None, key: str) -> Json:
    """The answer of 202; asked again under its key where it is 503, which a busy machine may give."""
    while True:
        status, answer = await connection.call(method, path, body, f"Idempotency-Key: {key}\r\n")
        if status != httpx.codes.SERVICE_UNAVAILABLE:
            assert status == httpx.codes.ACCEPTED, answer
            return answer
        await asyncio.sleep(1)


async def completed(connection: Connection, asked: Json) -> None:
    path = f"/workflows/{asked['meta']['workflow_id']}"
    for _ in range(WAITS):
        _, answer = await connection.call("GET", f"{path}/wait?timeout={WAIT_SECONDS}")
        if answer["data"]["state"] == "completed":
            return
        _, answer = await connection.call("GET", f"{path}?steps=true")
        print(f"after {WAIT_SECONDS} s: {answer['data']}")
    raise AssertionError(answer)


async def cycle(connection: Connection, number: int) -> None:
    """An instance is launched, and deleted once it runs, or earlier."""
    body = {"name": f"soak-{number}", "image": IMAGE, "backend": "simulated", "ports": "0:80"}
    launched = await accepted(connection, "POST", "/instances", body, f"launch-{number}")
    if number % HASTY:
        await completed(connection, launched)
    path = f"/instances/{launched['data']['id']}"
    await completed(connection, await accepted(connection, "DELETE", path, None, f"delete-{number}"))


async def cycles(stack: Stack, count: int) -> list[Sample]:
    """So many, by clients that each do one after the other; sampled as they go on."""
    known = stack.endpoint()
    temporal = await Client.connect(known["temporal_address"])
    numbers, done, taken = iter(range(count)), itertools.count(1), list[Sample]()

    async def work() -> None:
        connection = Connection(known["api_url"], known["api_key"])
        try:
            for number in numbers:
                await cycle(connection, number)
                if (ended := next(done)) % (count // SAMPLES) == 0:
                    running, late = await footprint.running(temporal), footprint.late(stack)
                    taken.append(Sample(ended, footprint.processes(stack), running, late))
        finally:
            connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(work())
    # At rest, but for system work of the moment.
    for _ in range(100):
        if not await footprint.running(temporal):
            return taken
        await asyncio.sleep(0.1)
    raise AssertionError(f"{await footprint.running(temporal)} workflows run, and nothing was asked for")


def figures(taken: list[Sample]) -> dict[str, tuple[list[float], list[float]]]:
    """Per process: memory, descriptors and threads after the warm-up, and at the end; each a median."""

    def middle(samples: list[Sample], name: str) -> list[float]:
        return [median(values) for values in zip(*(sample.processes[name] for sample in samples), strict=True)]

    first, last = taken[WARM : WARM + COMPARED], taken[-COMPARED:]
    return {name: (middle(first, name), middle(last, name)) for name in last[0].processes}


def grown(found: dict[str, tuple[list[float], list[float]]]) -> list[str]:
    """What is more than its bound."""
    broken = []
    for name, ((memory, fds, threads), (memory_after, fds_after, threads_after)) in found.items():
        if memory_after > memory * GROWTH:
            broken.append(f"{name}: {memory:.0f} MB became {memory_after:.0f}")
        if fds_after > fds + (RELATIONS if name == "postgres" else MORE):
            broken.append(f"{name}: {fds:.0f} descriptors became {fds_after:.0f}")
        if threads_after > threads + POOLS:
            broken.append(f"{name}: {threads:.0f} threads became {threads_after:.0f}")
    return broken


@pytest.mark.chaos
@pytest.mark.timeout(4 * 3600 if LONG else 900)
def test_create_and_delete_again_and_again_leaves_nothing(
    soaked: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, files = footprint.rows(soaked), footprint.files(soaked, tmp_path)
    began = time.monotonic()
    taken = asyncio.run(cycles(soaked, CYCLES))
    took = time.monotonic() - began
    invariants.settle(soaked, 60)
    found, stored = figures(taken), footprint.stored_mb(soaked)
    kept = {table: count - rows[table] for table, count in footprint.rows(soaked).items() if count != rows[table]}
    with capsys.disabled():
        print(f"\n{CYCLES} cycles in {took:.0f} s ({CYCLES / took:.1f}/s); kept until the purge: {kept}; MB: {stored}")
        for name, both in found.items():
            shown = "; then ".join(
                f"{memory:.1f} MB, {fds:.0f} fds, {threads:.0f} threads" for memory, fds, threads in both
            )
            print(f"{name:15} {shown}")
    assert not grown(found), found
    assert max(sample.running for sample in taken) <= 3 * CLIENTS
    assert median(sample.late for sample in taken[-COMPARED:]) < LATE_SECONDS, [sample.late for sample in taken]
    # What is written anew every few seconds has another name for a moment.
    wait_for("no file was left", lambda: footprint.files(soaked, tmp_path) <= files, 10)
    assert not soaked.sql("SELECT id FROM instances WHERE status <> 'deleted'")
    assert not footprint.rows(soaked)["host_ports"]
    assert kept["instances"] == CYCLES

    soaked.stop()
    soaked.start(**SHORT).ready()
    # How long keys hold and samples are kept are promises, and no settings: their time passes now.
    soaked.sql("UPDATE idempotency_keys SET created_at = created_at - interval '1 day'")
    soaked.sql("UPDATE samples SET at = at - interval '2 years'")
    assert wait_for_baseline(soaked, rows, 60 + CYCLES / 50) == KEEPS


def wait_for_baseline(stack: Stack, rows: dict[str, int], seconds: float) -> dict[str, int]:
    """Rows that tables have more than at first, once it is only those that keep them."""

    def more() -> dict[str, int]:
        return {table: count - rows[table] for table, count in footprint.rows(stack).items() if count != rows[table]}

    end = time.monotonic() + seconds
    while not (found := more()).keys() <= KEEPS.keys():
        assert time.monotonic() < end, f"kept after {seconds:g} s of purging: {found}"
        time.sleep(0.5)
    return found
