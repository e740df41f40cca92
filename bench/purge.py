"""How long a purge of 100,000 deleted instances and 500,000 events takes, and what requests notice of it.

``.venv/bin/python bench/purge.py``: on a platform of its own, with a simulated host.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.stack import Stack

INSTANCES, EVENTS_EACH = 100_000, 5
_WORKFLOWS = """
INSERT INTO workflows (id, project_id, kind, state, resource_type, resource_id, actor, "order", steps, created_at,
                       finished_at)
SELECT md5('w' || n)::uuid, p.id, 'DeprovisionInstance', 'completed', 'instance', md5('i' || n)::uuid, 'bench', '{}',
       '[]', now() - interval '100 days', now() - interval '100 days'
FROM projects p, generate_series(1, %s) AS n
"""
_INSTANCES = """
INSERT INTO instances (id, project_id, name, status, image, instance_type, vcpus, memory_mb, backend, workflow_id,
                       deleted_at)
SELECT md5('i' || n)::uuid, p.id, 'old-' || n, 'deleted', 'i', 'basic-1', 1, 512, 'simulated', md5('w' || n)::uuid,
       now() - interval '100 days'
FROM projects p, generate_series(1, %s) AS n
"""
_EVENTS = """
INSERT INTO events (project_id, type, resource_type, resource_id, workflow_id, data, created_at)
SELECT p.id, 'instance.deleted', 'instance', md5('i' || n %% %s)::uuid, md5('w' || n %% %s)::uuid,
       '{"name": "old", "from": "deleting", "to": "deleted"}', now() - interval '100 days'
FROM projects p, generate_series(1, %s) AS n
"""
_LEFT = """
SELECT (SELECT count(*) FROM instances WHERE status = 'deleted' AND deleted_at < now() - interval '50 days'),
       (SELECT count(*) FROM events WHERE created_at < now() - interval '50 days'),
       (SELECT count(*) FROM workflows WHERE created_at < now() - interval '50 days')
"""


def launches(stack: Stack, seconds: float, numbers: list[int]) -> list[float]:
    """Milliseconds that a launch took to be accepted, about ten a second."""
    took = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        numbers[0] += 1
        body = {"name": f"n-{numbers[0]}", "image": "i", "backend": "simulated", "instance_type": "basic-1"}
        began = time.monotonic()
        stack.request("POST", "/instances", json=body).raise_for_status()
        took.append((time.monotonic() - began) * 1000)
        time.sleep(0.1)
    return took


def said(what: str, took: list[float]) -> None:
    cuts = statistics.quantiles(took, n=100)
    print(f"{what}: {len(took)} launches, p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms, most {max(took):.1f} ms")


def main() -> None:
    stack = Stack(docker=False, simulated_hosts=2, CAIRN_PURGE_INTERVAL="3600")
    try:
        stack.start().ready()
        numbers = [0]
        said("without a purge", launches(stack, 20, numbers))
        began = time.monotonic()
        stack.sql(_WORKFLOWS, INSTANCES)
        stack.sql(_EVENTS, INSTANCES, INSTANCES, INSTANCES * EVENTS_EACH)
        stack.sql(_INSTANCES, INSTANCES)
        print(f"filled in {time.monotonic() - began:.0f} s")
        stack.stop()
        stack.start(CAIRN_PURGE_INTERVAL="2").ready()
        began, took = time.monotonic(), []
        while any(stack.sql(_LEFT)[0]):
            took += launches(stack, 3, numbers)
        print(
            f"purged in {time.monotonic() - began:.0f} s: {INSTANCES} instances and workflows, "
            f"{INSTANCES * EVENTS_EACH} events"
        )
        said("beside the purge", took)
    finally:
        stack.remove()


if __name__ == "__main__":
    main()
