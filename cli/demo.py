"""``cairn demo``: a tour that shows what is promised, on a platform of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.text import Text

from cli import render
from cli.client import Client, workflow_of
from cli.demo_platform import DemoFailed, DemoPlatform, answer_of, until
from cli.errors import CommandFailed, Exit
from cli.progress import Timeline, follow

IMAGE = "cairn/base:latest"
WAIT_SECONDS = 60.0
INDENT = "   "
AFTER_CREATE, BEFORE_START = "instance.create.after_effect", "instance.start.before"


def demo() -> None:
    """Tour on this machine: launch, kill -9 in the middle, cancel, delete. Leaves nothing.

    It runs a platform of its own under the data folder, on free ports, beside one that may run already.
    """
    with _signals_as_interrupts():
        Tour(render.out()).run()


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """A demo that is told to end cleans up, whoever tells it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Tour:
    """The scenes in order, each of which raises DemoFailed where a promise does not hold."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.instances: list[dict[str, Any]] = []
        self.accepted_in: list[float] = []
        self.figures: list[tuple[str, str]] = []
        self.good, self.arrow = ("✓", "→") if console.encoding.lower().startswith("utf") else ("ok", "->")

    def run(self) -> None:
        folder = Path(os.environ.get("CAIRN_DATA_DIR") or ".cairn") / "demo"
        self.console.print("Cairn: every change to infrastructure is a durable workflow", style="bold")
        docker_host = self.set_up()
        self.began = time.monotonic()
        self.platform = DemoPlatform(folder, docker_host)
        self.clear_away_an_earlier_one()
        try:
            with self.start() as self.client:
                self.launch()
                self.kill()
                self.cancel()
                self.delete()
            self.stop()
        except BaseException as error:
            self.give_up(error)
            raise
        self.platform.forget()
        self.summary()

    # Scenes

    def set_up(self) -> str:
        """An engine and the base image; the address of the engine comes back."""
        from cli.settings import read_settings
        from worker import engine
        from worker.data_folder import StackError

        self.title("Set-up")
        try:
            docker_host = engine.ensure(read_settings(), self.say)
            engine.ensure_base_image(docker_host, self.say)
        except StackError as error:
            raise DemoFailed(str(error), "see what is missing: cairn doctor") from None
        self.done(f"Docker engine at {docker_host}, image {IMAGE}")
        return docker_host

    def clear_away_an_earlier_one(self) -> None:
        platform = self.platform
        if platform.processes():
            message = f"a demo runs already on {platform.folder} (processes {platform.processes()})"
            raise CommandFailed(message, "demo_running", Exit.REFUSED, "wait for its end, or interrupt it")
        if left := platform.clean():
            self.say(f"an earlier demo was killed: removed the {left} containers it had left")
        platform.forget()

    def start(self) -> Client:
        began = time.monotonic()
        client = self.platform.start()
        endpoint = self.platform.endpoint()
        self.done(f"platform up in {render.duration(time.monotonic() - began)}: PostgreSQL, Temporal, API, workers")
        self.say(f"API {endpoint['api_url'].removesuffix('/v1')}/docs   Temporal UI {endpoint['temporal_ui_url']}")
        return client

    def launch(self) -> None:
        self.title("1. Launch an instance over REST")
        began = time.monotonic()
        instance, workflow_id = self.post("demo-web")
        ended = self.watch(workflow_id)
        took = time.monotonic() - began
        self.require(ended, "completed")
        self.figures.append(("launched, answering on its port", render.duration(took)))
        self.answer(instance)
        self.say(f"every step of it: {ended['temporal_url']}")

    def kill(self) -> None:
        self.title("2. Kill -9 the host agent in the middle of a launch")
        self.say("A fault point holds the agent at the worst moment: Docker has made the container,")
        self.say("and nobody has been told. Then the process is killed.")
        self.platform.plant({"point": AFTER_CREATE, "action": "pause", "times": 1})
        instance, workflow_id = self.post("demo-survivor")
        with Timeline(self.console, INDENT) as timeline:
            self.reach(AFTER_CREATE, workflow_id, timeline)
            victim = self.platform.agent()
            if victim is None:
                raise DemoFailed("the endpoint file names no host agent")
            before = self.platform.containers(instance["id"])
            self.platform.plant()
            os.kill(victim, signal.SIGKILL)
            killed = time.monotonic()
            timeline.note(f"kill -9 {victim}   (the host agent)")
            heir = until("the host agent is back", lambda: self.successor(victim), WAIT_SECONDS)
            timeline.note(
                f"the supervisor started it again as {heir} after {render.duration(time.monotonic() - killed)}"
            )
            timeline.note("once the old attempt has been silent for 5 s, Temporal hands the step to it")
            ended = follow(self.client, workflow_id, WAIT_SECONDS, timeline)
        took = time.monotonic() - killed
        self.require(ended, "completed")
        tries = max((step["attempts"] for step in ended["steps"] if step["name"] == "instance.create"), default=0)
        if tries <= 1:
            raise DemoFailed("instance.create was not tried again, so the kill hit nothing")
        self.done(f"completed {render.duration(took)} after the kill; instance.create took {tries} attempts")
        after = self.count(instance, 1, "exactly one container")
        if before == after:
            self.done("and it is the same one: the second attempt adopted what the first had made")
        self.figures.append(("kill -9 of the host agent, until completed", render.duration(took)))
        self.answer(instance)

    def cancel(self) -> None:
        self.title("3. Cancel a launch in the middle")
        self.say("Held just before the container starts, then cancelled.")
        self.platform.plant({"point": BEFORE_START, "action": "pause", "times": 1})
        instance, workflow_id = self.post("demo-cancelled")
        with Timeline(self.console, INDENT) as timeline:
            self.reach(BEFORE_START, workflow_id, timeline)
            made = len(self.platform.containers(instance["id"]))
            timeline.note(f"containers of it now: {made}")
            began = time.monotonic()
            self.client.request("POST", f"/workflows/{workflow_id}/cancel")
            timeline.note(f"POST /v1/workflows/{workflow_id}/cancel")
            ended = follow(self.client, workflow_id, WAIT_SECONDS, timeline)
        took = time.monotonic() - began
        self.platform.plant()
        if made != 1:
            raise DemoFailed(f"expected one container before the cancel, found {made}")
        self.require(ended, "cancelled")
        self.done(f"cancelled, and undone, in {render.duration(took)}")
        self.count(instance, 0, "no container is left of it")
        self.figures.append(("cancel, until undone", render.duration(took)))

    def delete(self) -> None:
        self.title("4. Delete everything")
        began = time.monotonic()
        started = [workflow_of(self.client.request("DELETE", f"/instances/{row['id']}")) for row in self.instances]
        for instance, workflow_id in zip(self.instances, started, strict=True):
            if workflow_id:
                with Timeline(Console(quiet=True)) as silent:
                    self.require(follow(self.client, workflow_id, WAIT_SECONDS, silent), "completed")
            status = self.client.get(f"/instances/{instance['id']}")["status"]
            if status != "deleted":
                raise DemoFailed(f"{instance['name']} is {status}, expected deleted")
            self.done(f"{instance['name']} deleted")
        took = time.monotonic() - began
        live = self.client.get("/instances")
        containers = self.platform.containers()
        if live or containers:
            raise DemoFailed(f"left: {len(live)} instances, containers {[found.name for found in containers]}")
        self.done("the API lists no instance, and Docker has no container of this installation")
        self.figures.append((f"{len(started)} instances deleted", render.duration(took)))

    def stop(self) -> None:
        took = self.platform.stop()
        if left := self.platform.processes():
            raise DemoFailed(f"processes are left: {left}")
        self.done(f"platform stopped in {render.duration(took)}; no process and no container is left")

    def give_up(self, error: BaseException) -> None:
        """Leave nothing behind, say what was done about it, and keep the logs where there was a failure."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self.say("cleaning up")
        try:
            self.platform.stop()
            removed = self.platform.clean()
            left = self.platform.processes()
        except Exception as second:  # whatever it is, the first error is the one to report
            render.say(f"cleaning up failed too: {second!r}")
            return
        self.say(f"platform stopped, {removed} containers removed" + (f", processes left: {left}" if left else ""))
        if isinstance(error, KeyboardInterrupt):
            self.platform.forget()
        else:
            render.say(f"the logs are in {self.platform.folder / 'logs'} and {self.platform.log}")

    def summary(self) -> None:
        self.title("Done")
        accepted = ", ".join(f"{seconds * 1000:.0f}" for seconds in self.accepted_in) + " ms"
        self.figures.insert(0, ("POST, until durably accepted (202)", accepted))
        for what, figure in [*self.figures, ("the whole tour", render.duration(time.monotonic() - self.began))]:
            self.console.print(Text(f"{INDENT}{what:<46}{figure:>16}"))
        self.console.print()
        self.say("Your own platform: make up, and in another terminal: .venv/bin/cairn instance launch web --port 80")

    # What scenes share

    def post(self, name: str) -> tuple[dict[str, Any], str]:
        body = {"name": name, "image": IMAGE, "ports": "0:80"}
        self.say(f"POST /v1/instances {json.dumps(body)}")
        began = time.perf_counter()
        envelope = self.client.request("POST", "/instances", body=body)
        took = time.perf_counter() - began
        workflow_id = workflow_of(envelope)
        if workflow_id is None:
            raise DemoFailed("the API accepted a launch, but named no workflow")
        self.say(f"{self.arrow} 202 Accepted in {render.duration(took)}, workflow {workflow_id}")
        self.accepted_in.append(took)
        self.instances.append(envelope["data"])
        return envelope["data"], workflow_id

    def watch(self, workflow_id: str) -> dict[str, Any]:
        with Timeline(self.console, INDENT) as timeline:
            return follow(self.client, workflow_id, WAIT_SECONDS, timeline)

    def reach(self, point: str, workflow_id: str, timeline: Timeline) -> None:
        """Show the workflow until it is held at a fault point."""

        def is_held() -> bool:
            workflow = self.client.get(f"/workflows/{workflow_id}", steps="true")
            timeline.show(workflow)
            if workflow["state"] not in ("accepted", "running"):
                raise DemoFailed(f"the workflow {workflow['state']} before it came to {point}: {workflow['error']}")
            return self.platform.hits(point) > 0

        until(f"the workflow comes to {point}", is_held, WAIT_SECONDS)
        timeline.show(self.client.get(f"/workflows/{workflow_id}", steps="true"))

    def successor(self, victim: int) -> int | None:
        pid = self.platform.agent()
        return pid if pid != victim else None

    def answer(self, instance: dict[str, Any]) -> None:
        """Show where it runs, and that it serves."""
        now = self.client.get(f"/instances/{instance['id']}")
        port = now["ports"][0]["host_port"]
        if now["status"] != "running" or not port:
            raise DemoFailed(f"{now['name']} is {now['status']} with port {port}, expected it to run")
        self.done(f"{now['name']} runs at {now['private_ip']}, published on 127.0.0.1:{port}")
        url = f"http://127.0.0.1:{port}/"
        status, text = answer_of(url)
        self.done(f"GET {url} {self.arrow} {status} {text}")

    def count(self, instance: dict[str, Any], expected: int, meaning: str) -> list[Any]:
        """Compare with what the engine itself has of the instance."""
        found = self.platform.containers(instance["id"])
        if len(found) != expected:
            names = [container.name for container in found]
            raise DemoFailed(f"expected {expected} containers of {instance['name']}, found {names}")
        self.done(meaning)
        return found

    def require(self, workflow: dict[str, Any], state: str) -> None:
        if workflow["state"] != state:
            raise DemoFailed(f"{workflow['kind']} ended {workflow['state']}, expected {state}: {workflow['error']}")

    def title(self, text: str) -> None:
        self.console.print()
        self.console.print(text, style="bold")

    def say(self, text: str) -> None:
        self.console.print(Text(INDENT + text), soft_wrap=True)

    def done(self, text: str) -> None:
        self.console.print(Text(INDENT).append(self.good, style="green").append(f" {text}"), soft_wrap=True)
