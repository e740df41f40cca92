"""What containers use, as a Docker engine's streams of statistics tell it.

The engine measures all containers that somebody listens to together, once a second; a single answer outside of
a stream comes after one to two seconds, each. So many streams are opened, which answer in the same round, and
closed after their first line: 20 containers take 1.04 s, and 0.02 s of CPU here and in the engine each (20.10).
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import orjson
import requests
from docker import APIClient

#: Streams that are open at once.
AT_ONCE = 64
#: For one answer, and for all of them: what is not read by then is left out.
ANSWER_SECONDS, ALL_SECONDS = 4, 9


def read(client: APIClient, engine_ids: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of each container that runs: its id, and the fields of a Reading that are figures."""
    until = time.monotonic() + ALL_SECONDS
    for first in range(0, len(engine_ids), AT_ONCE):
        with ExitStack() as opened:
            streams = []
            for engine_id in engine_ids[first : first + AT_ONCE]:
                # The SDK's own way to these streams leaves them open until they are collected as garbage.
                url = f"{client.base_url}/v{client.api_version}/containers/{engine_id}/stats"
                stream = client.get(url, params={"stream": "1"}, stream=True, timeout=ANSWER_SECONDS)
                opened.callback(stream.close)
                if stream.status_code == requests.codes.ok:
                    streams.append((engine_id, stream))
            for engine_id, stream in streams:
                if time.monotonic() > until:
                    return
                try:
                    line = next(stream.iter_lines(chunk_size=None), None)
                except requests.RequestException:
                    continue  # one that is silent, or went, keeps nothing from the others
                usage = figures(orjson.loads(line)) if line else None
                if usage is not None:
                    yield engine_id, usage


def figures(told: dict[str, Any]) -> dict[str, Any] | None:
    """The fields of a Reading that are figures. None: it does not run (any more)."""
    cpu, memory = told["cpu_stats"]["cpu_usage"], told["memory_stats"]
    if not cpu.get("total_usage") or "usage" not in memory:
        return None
    details = memory.get("stats") or {}
    # cgroup v1, v2.
    cache = details.get("total_inactive_file", details.get("inactive_file", 0))
    interfaces = (told.get("networks") or {}).values()
    blocks = told["blkio_stats"].get("io_service_bytes_recursive") or []

    def moved(operation: str) -> int:
        return sum(block["value"] for block in blocks if block["op"].lower() == operation)

    return {
        "at": dt.datetime.fromisoformat(told["read"]).timestamp(),
        "cpu_seconds": cpu["total_usage"] / 1e9,
        "memory_bytes": max(memory["usage"] - cache, 0),
        "pids": told["pids_stats"].get("current", 0),
        "rx_bytes": sum(interface["rx_bytes"] for interface in interfaces),
        "tx_bytes": sum(interface["tx_bytes"] for interface in interfaces),
        "read_bytes": moved("read"),
        "written_bytes": moved("write"),
    }
