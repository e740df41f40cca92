"""Everything is killed again and again, at no chosen point, under load: in the end all of it converges."""

from __future__ import annotations

import os
import random
import time
import uuid
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import httpx
import pytest

from tests import invariants
from tests.chaos.test_matrix import PART, SEED
from tests.stack import IMAGE, TERMINAL, Json, Stack, wait_for

SECONDS, CLIENTS = (120, 6) if PART == "all" else (10, 4)
VICTIMS = ("api", "control_worker", "host_agent", "temporal", "postgres")
VERBS = ["launch"] * 3 + ["start", "stop", "restart", "pause", "resume", "resize", "tag", "delete", "delete", "cancel"]
#: How often what is asked for comes at an instance that is busy: a defined answer, and not an error of ours.
REFUSALS = {"invalid_state", "not_found", "name_taken"}


class User:
    """Asks for things at random, patiently, and remembers what was accepted."""

    def __init__(self, stack: Stack, seed: int) -> None:
        self.stack = stack
        self.chance = random.Random(seed)  # noqa: S311 - a test's choice, to be repeated
        self.accepted: list[str] = []
        self.mine: list[str] = []
        self.answers: Counter[str] = Counter()

    def work(self, stop: Event) -> None:
        while not stop.is_set():
            verb = self.chance.choice(VERBS)
            if verb == "launch" or not self.mine:
                backend = self.chance.choice(["simulated", "simulated", "simulated", "docker"])
                name = f"storm-{uuid.uuid4().hex[:12]}"
                body = {"name": name, "image": IMAGE, "backend": backend, "ports": "0:80"}
                if launched := self._ask(stop, "POST", "/instances", json=body):
                    self.mine.append(launched["data"]["id"])
            elif verb == "cancel":
                if self.accepted:
                    self._ask(stop, "POST", f"/workflows/{self.chance.choice(self.accepted[-4:])}/cancel")
            elif verb == "delete":
                self._ask(stop, "DELETE", f"/instances/{self.chance.choice(self.mine)}")
            elif verb == "resize":
                body = {"instance_type": self.chance.choice(["basic-1", "basic-2", "standard-1"])}
                self._ask(stop, "POST", f"/instances/{self.chance.choice(self.mine)}/resize", json=body)
            elif verb == "tag":
                body = {"tags": [uuid.uuid4().hex[:6]], "labels": {"storm": uuid.uuid4().hex[:6]}}
                self._ask(stop, "PATCH", f"/instances/{self.chance.choice(self.mine)}", json=body)
            else:
                self._ask(stop, "POST", f"/instances/{self.chance.choice(self.mine)}/{verb}")
            time.sleep(self.chance.uniform(0.02, 0.3))

    def _ask(self, stop: Event, method: str, path: str, **more: object) -> Json | None:
        """Repeated under one key while nobody answers; None where it was refused, or the storm ended first."""
        key = uuid.uuid4().hex
        while not stop.is_set():
            try:
                answer = self.stack.request(method, path, headers={"Idempotency-Key": key}, **more)
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            self.answers[str(answer.status_code)] += 1
            if answer.is_success:
                envelope: Json = answer.json()
                if workflow := envelope["meta"].get("workflow_id"):
                    self.accepted.append(workflow)
                return envelope
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                assert answer.json()["error"]["code"] in REFUSALS, answer.text
                return None
            time.sleep(0.1)
        return None


@pytest.mark.chaos
@pytest.mark.engine
def test_storm(capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(SEED)  # noqa: S311 - to be repeated
    stack = Stack(CAIRN_DEADLINE_LAUNCH="60").start()
    try:
        stack.ready()
        users = [User(stack, chance.randrange(1 << 30)) for _ in range(CLIENTS)]
        killed: Counter[str] = Counter()
        stop = Event()
        with ThreadPoolExecutor(CLIENTS) as threads:
            working: list[Future[None]] = [threads.submit(user.work, stop) for user in users]
            try:
                end = time.monotonic() + SECONDS
                while time.monotonic() < end and not any(future.done() for future in working):
                    time.sleep(chance.uniform(0.3, 2))
                    victim = chance.choice(VICTIMS)
                    if victim in stack.pids():
                        stack.kill(victim, wait=False)
                        killed[victim] += 1
            finally:
                stop.set()
            for future in working:
                future.result()
        # The last blow: the supervisor, and with it everything.
        stack.kill("supervisor", wait=False)
        assert stack.process is not None
        stack.process.wait(10)
        stack.start().ready()
        began = time.monotonic()
        asked = [id for user in users for id in user.accepted]
        states = Counter(wait_for("it ends", lambda id=id: _end(stack, id), 120) for id in dict.fromkeys(asked))
        invariants.settle(stack, 60)
        with capsys.disabled():
            answers = sum((user.answers for user in users), Counter())
            print(
                f"\nstorm of {SECONDS} s: killed {dict(killed)}; answers {dict(answers)}; workflows {dict(states)}; "
                f"at rest {time.monotonic() - began:.1f} s later; CAIRN_CHAOS_SEED={SEED}"
            )
        assert states["completed"]
        stack.delete_all(120)
        invariants.settle(stack, 60)
        assert invariants.machines(stack) == {}
    finally:
        if os.environ.get("CAIRN_CHAOS_KEEP"):
            stack.stop()
        else:
            stack.remove()


def _end(stack: Stack, workflow_id: str) -> str | None:
    state: str = stack.get(f"/workflows/{workflow_id}")["state"]
    return state if state in TERMINAL else None
