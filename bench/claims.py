"""A session, from the request to the output of its first command, beside what the engine alone takes for a container:
one with a sandbox of its own, one that takes a sandbox of a pool, and fifty of these at once."""

from __future__ import annotations

import asyncio
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from bench.client import Connection
from bench.stack import Bench, ms, numbers

#: Claims between two fillings of a pool, and how many fillings: nothing else works meanwhile.
CLAIMS, FILLINGS = 3, 10
AT_ONCE = 50
COLD = 20
COMMAND = ["cat", "/workspace/README"]
NONE = {"network": {"mode": "none"}}


async def cold(bench: Bench) -> None:
    """One at a time, each deleted before the next, with a container of our own after each."""
    connection = bench.connection()
    path = await sessions_path(bench, connection)
    over, ours, launched = [], [], []
    for turn in range(COLD + 1):
        began = time.perf_counter()
        session = await accepted(connection, path, NONE)
        await connection.call("GET", f"/workflows/{session['workflow_id']}/wait?timeout=60")
        await first_output(connection, session)
        took = time.perf_counter() - began
        await accepted(connection, f"/sessions/{session['id']}", method="DELETE")
        await bench.drained(connection)
        alone = (await asyncio.to_thread(raw, bench))[2]
        if turn:  # the first warms up
            over.append(took - alone)
            ours.append(took)
            launched.append(alone)
    median = statistics.median(over)
    bench.add(
        "Session with a sandbox of its own, to its first command's output",
        ms(statistics.median(ours)),
        f"{ms(statistics.median(launched))} (create, start and docker exec)",
        f"+{ms(median)}",
        "≤ +250 ms",
        median <= 0.25,
    )


async def claim(bench: Bench) -> None:
    """One at a time, with a container of our own after each; then all at once."""
    connection = bench.connection()
    path = await sessions_path(bench, connection)
    body = {"name": f"b{next(numbers)}", "size": CLAIMS, "host": await docker_host(connection), **NONE}
    pool = await accepted(connection, "/pools", body)
    warm: list[float] = []
    ran: list[float] = []
    started: list[float] = []
    launched: list[float] = []
    for _ in range(FILLINGS):
        await filled(bench, connection, pool, CLAIMS)
        for _ in range(CLAIMS):
            warm.append((await first_command(connection, path))[1])
            await asyncio.sleep(0.5)
            for times, seconds in zip((ran, started, launched), await asyncio.to_thread(raw, bench), strict=True):
                times.append(seconds)
    for name, mine, theirs, target in (
        ("median", statistics.median(warm), statistics.median, 0.150),
        ("p95", p95(warm), p95, 0.400),
    ):
        bench.add(
            f"Session of a pool, to its first command's output, {name}",
            ms(mine),
            f"{ms(theirs(ran))} (docker exec), {ms(theirs(started))} (and start), {ms(theirs(launched))} (and create)",
            f"{mine / theirs(started):.2f} x",
            f"≤ {ms(target)}",
            mine <= target,
        )
    await at_once(bench, connection, pool, path)


async def at_once(bench: Bench, connection: Connection, pool: dict[str, Any], path: str) -> None:
    await connection.call("PATCH", f"/pools/{pool['id']}", {"size": AT_ONCE})
    await filled(bench, connection, pool, AT_ONCE)
    began = time.perf_counter()
    found = await asyncio.gather(*(first_command(bench.connection(), path) for _ in range(AT_ONCE)))
    took = time.perf_counter() - began
    different = len({session["instance_id"] for *_, session in found})
    claimed = p95([seconds for seconds, *_ in found])
    label = "io.cairn.id={}"
    sandboxes = [
        bench.engine.containers(filters={"label": label.format(session["instance_id"])})[0]["Id"]
        for *_, session in found
    ]
    began = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(partial(run, bench), sandboxes))
    bare = time.perf_counter() - began
    bench.add(
        f"{AT_ONCE} sessions of a pool of {AT_ONCE}, at once, to the last command's output",
        f"{took:.1f} s, {different} sandboxes; p95 of the claims {claimed:.1f} s",
        f"{bare:.1f} s ({AT_ONCE} times docker exec in them)",
        f"{took / bare:.1f} x",
        "≤ 2 s",
        different == AT_ONCE and took <= 2,
    )


async def sessions_path(bench: Bench, connection: Connection) -> str:
    """Of a new workspace."""
    body = {"name": f"b{next(numbers)}", "source": {"path": str(bench.source)}, "host": await docker_host(connection)}
    workspace = await accepted(connection, "/workspaces", body)
    await bench.drained(connection)
    return f"/workspaces/{workspace['id']}/sessions"


async def docker_host(connection: Connection) -> str:
    _, answer = await connection.call("GET", "/hosts")
    return str(next(host["name"] for host in answer["data"] if host["backend"] == "docker"))


async def first_command(connection: Connection, path: str) -> tuple[float, float, dict[str, Any]]:
    """Seconds to the answer that names its sandbox, and to the output; and the session, which is of a pool."""
    began = time.perf_counter()
    session = await accepted(connection, path, NONE)
    claimed = time.perf_counter() - began
    if session["start"] != "warm":
        raise RuntimeError(session)
    await first_output(connection, session)
    return claimed, time.perf_counter() - began, session


async def first_output(connection: Connection, session: dict[str, Any]) -> None:
    status, answer = await connection.call("POST", f"/instances/{session['instance_id']}/exec", {"cmd": COMMAND})
    if status != 200 or answer["data"]["stdout"] != "base\n":
        raise RuntimeError(answer)


def run(bench: Bench, container: str) -> None:
    command = bench.engine.exec_create(container, ["cat", "/etc/hostname"])
    bench.engine.exec_start(command["Id"])


def raw(bench: Bench) -> tuple[float, float, float]:
    """Seconds to the output of a command in a container that runs; that is there and does not run; that is made."""
    began = time.perf_counter()
    made = bench.raw_idle(f"raw{next(numbers)}")
    created = time.perf_counter()
    bench.engine.start(made)
    run(bench, made)
    ended = time.perf_counter()
    run(bench, made)
    again = time.perf_counter()
    bench.engine.remove_container(made, force=True)
    return again - ended, ended - created, ended - began


async def accepted(
    connection: Connection, path: str, body: dict[str, Any] | None = None, method: str = "POST"
) -> dict[str, Any]:
    status, answer = await connection.call(method, path, body)
    if status != 202:
        raise RuntimeError(answer)
    found: dict[str, Any] = answer["data"]
    return found


async def filled(bench: Bench, connection: Connection, pool: dict[str, Any], size: int) -> None:
    while True:
        _, answer = await connection.call("GET", f"/pools/{pool['id']}")
        if answer["data"]["ready"] >= size:
            break
        if answer["data"]["error"]:
            raise RuntimeError(answer)
        await asyncio.sleep(0.2)
    await bench.drained(connection)


def p95(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.95 * (len(seconds) - 1))]
