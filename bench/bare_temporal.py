"""The baseline of a launch: a Temporal worker whose workflow has as many activities as a launch, and no
database, no saga, no faults. Two workflows: with no-op activities, and with the same calls to Docker.

Arguments: address of the server. Task queue: ``bare``.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import uvloop
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    import docker

ACTIVITIES = 5
IMAGE = "cairn/base:latest"


@activity.defn
def nothing(_: str) -> None:
    """As cheap as an activity can be."""


class Engine:
    """The SDK calls of a launch, as they are."""

    def __init__(self) -> None:
        self._docker = docker.APIClient("unix:///var/run/docker.sock", max_pool_size=64)

    @activity.defn
    def ensure(self, _: str) -> None:
        self._docker.inspect_image(IMAGE)

    @activity.defn
    def create(self, name: str) -> None:
        shape = self._docker.create_host_config(
            cpu_period=100_000,
            cpu_quota=100_000,
            mem_limit="512m",
            memswap_limit="512m",
            pids_limit=1024,
            init=True,
            port_bindings={"80/tcp": ("127.0.0.1", int(name.rpartition("-")[2]))},
        )
        self._docker.create_container(IMAGE, name=name, ports=[(80, "tcp")], host_config=shape)

    @activity.defn
    def start(self, name: str) -> None:
        self._docker.start(name)
        self._docker.inspect_container(name)


@workflow.defn
class Nothing:
    @workflow.run
    async def run(self, name: str) -> None:
        for _ in range(ACTIVITIES):
            await workflow.execute_activity(nothing, name, start_to_close_timeout=timedelta(seconds=60))


@workflow.defn
class Bare:
    @workflow.run
    async def run(self, name: str) -> None:
        for step in ("nothing", "ensure", "create", "start", "nothing"):
            await workflow.execute_activity(step, name, start_to_close_timeout=timedelta(seconds=60))


async def main() -> None:
    client = await Client.connect(sys.argv[1])
    engine = Engine()
    worker = Worker(
        client,
        task_queue="bare",
        workflows=[Nothing, Bare],
        activities=[nothing, engine.ensure, engine.create, engine.start],
        activity_executor=ThreadPoolExecutor(32),
        max_concurrent_activities=32,
    )
    await worker.run()


if __name__ == "__main__":
    uvloop.run(main())
