"""The embedded stack: everything Cairn needs on one machine, as children of one supervisor.

Order of start: PostgreSQL and Temporal; schema and first rows; the simulated engine, where wanted; API,
control worker and host agent. Stopped in reverse. Nothing outlives the supervisor, however it ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping

from pydantic import SecretStr

from worker import data_folder, database, postgres
from worker.children import Child
from worker.data_folder import Endpoint
from worker.stack_plan import Plan
from worker.stack_programs import programs

IMAGE = "cairn/base:latest"
START_SECONDS = 60.0
TRIM_EVERY_SECONDS = 15.0
#: make passes on what its process group got already: that is no second wish.
SAME_SIGNAL_SECONDS = 0.5
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stack:
    """The running children of one plan."""

    def __init__(self, plan: Plan, environ: Mapping[str, str]) -> None:
        self.plan = plan
        self.children = {name: Child(program, self._changed) for name, program in programs(plan, environ).items()}
        self._up = False

    def endpoint(self) -> Endpoint:
        plan = self.plan
        pids = {name: child.pid for name, child in self.children.items()}
        return Endpoint(
            api_url=f"{plan.api_root}/v1",
            api_key=plan.api_key,
            temporal_address=plan.temporal.address,
            temporal_ui_url=plan.temporal.ui_url,
            image=IMAGE,
            installation=plan.identity.installation,
            docker_host=plan.docker_host,
            data_dir=str(plan.folder),
            pids={"supervisor": os.getpid()} | {name: pid for name, pid in pids.items() if pid},
        )

    async def start(self) -> Endpoint:
        """Start everything in order; the endpoint file is written when all of it is ready."""
        first = {name: self.children[name] for name in ("postgres", "temporal")}
        await asyncio.gather(*(child.start(START_SECONDS) for child in first.values()))
        await asyncio.to_thread(self._prepare_database)
        rest = [child for name, child in self.children.items() if name not in first]
        await asyncio.gather(*(child.start(START_SECONDS) for child in rest))
        for child in self.children.values():
            child.settle()
        self._up = True
        self._changed()
        return self.endpoint()

    async def stop(self, hurry: asyncio.Event) -> None:
        """Stop everything in reverse order, killing what takes too long, or all at once on ``hurry``."""
        self._up = False
        for child in reversed(self.children.values()):
            await child.stop(hurry)
        data_folder.clear_pids(self.plan.folder)

    async def trim_logs(self) -> None:
        while True:
            await asyncio.sleep(TRIM_EVERY_SECONDS)
            for child in self.children.values():
                await asyncio.to_thread(child.trim_log)

    def _prepare_database(self) -> None:
        plan = self.plan
        database.bootstrap(plan.postgres.url(postgres.SUPERUSER, "postgres"))
        owner = plan.postgres.url("cairn_owner")
        database.migrate(owner)
        database.seed(
            owner,
            installation=plan.identity.installation,
            api_key=plan.api_key,
            hosts=plan.hosts,
            settings=plan.settings.model_copy(update={"admin_password": SecretStr(plan.admin_password)}),
        )

    def _changed(self) -> None:
        if self._up:
            data_folder.write_endpoint(self.plan.folder, self.endpoint())


async def run(plan: Plan, on_ready: Callable[[Endpoint], None], environ: Mapping[str, str] = os.environ) -> None:
    """Run the stack until a signal asks for its end; a second one ends it at once.

    To be called in the main thread: the children are tied to the thread that starts them.
    """
    asked, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    first = 0.0

    def on_signal() -> None:
        nonlocal first
        if not asked.is_set():
            first = loop.time()
            asked.set()
        elif loop.time() - first > SAME_SIGNAL_SECONDS:
            hurry.set()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal)
    stack = Stack(plan, environ)
    trimming = asyncio.create_task(stack.trim_logs())
    starting = asyncio.create_task(stack.start())
    waiting = asyncio.create_task(asked.wait())
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            on_ready(starting.result())
            await waiting
    finally:
        for task in (starting, waiting, trimming):
            task.cancel()
        await asyncio.gather(starting, waiting, trimming, return_exceptions=True)
        asked.set()
        await stack.stop(hurry)
