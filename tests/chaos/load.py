"""Users of a platform that launch and delete all the time, and count what they are answered."""

from __future__ import annotations

import random
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import httpx

from tests.platform import IMAGE, Json, Platform

#: Of each user: as many instances are there at once.
LIVE = 6
#: A delete comes at an instance that is busy: a defined answer, and it is asked for again later.
BUSY = "invalid_state"


class User:
    """One after the other: launches, some waited for, and deletes of the oldest.

    ``answers`` counts statuses, ``again`` what a request was repeated for, under its key: ``503`` that says when to
    come again, and in a platform that is being killed (``patient``) also what a proxy says of an API that has died.
    ``failures``: everything else.
    """

    def __init__(self, platform: Platform, seed: int, *, patient: bool, docker: bool) -> None:
        self.platform = platform
        self.chance = random.Random(seed)  # noqa: S311 - a test's choice, to be repeated
        self.patient = patient
        self.docker = docker
        self.live: list[str] = []
        self.workflows: list[str] = []
        self.answers: Counter[str] = Counter()
        self.again: Counter[str] = Counter()
        self.failures: list[str] = []
        self.slowest = 0.0

    def work(self, stop: Event) -> None:
        while not stop.is_set():
            if (len(self.live) < LIVE and self.chance.random() < 0.7) or not self.live:
                self._launch(stop)
            elif self._ask(stop, "DELETE", f"/instances/{self.live[0]}"):
                del self.live[0]
            else:
                self.live.append(self.live.pop(0))
            stop.wait(self.chance.uniform(0.3, 1.2))

    def _launch(self, stop: Event) -> None:
        backend = "docker" if self.docker and self.chance.random() < 0.1 else "simulated"
        body = {"name": f"load-{uuid.uuid4().hex[:12]}", "image": IMAGE, "backend": backend, "ports": "0:80"}
        headers = {"Prefer": "wait=5"} if self.chance.random() < 0.2 else {}
        if launched := self._ask(stop, "POST", "/instances", headers, json=body):
            self.live.append(launched["data"]["id"])

    def _ask(
        self, stop: Event, method: str, path: str, headers: dict[str, str] | None = None, **more: object
    ) -> Json | None:
        """None where it was refused, or failed, or everything ended first."""
        headers = (headers or {}) | {"Idempotency-Key": uuid.uuid4().hex}
        while True:
            began = time.monotonic()
            try:
                answer = self.platform.request(method, path, headers=headers, **more)
            except httpx.TransportError as error:
                said, why = type(error).__name__, str(error)
                may_be_repeated = self.patient or isinstance(error, httpx.ConnectError)
            else:
                said, why = str(answer.status_code), answer.text
                may_be_repeated = (answer.status_code == 503 and "Retry-After" in answer.headers) or (
                    self.patient and answer.status_code in (502, 503, 504)
                )
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.answers[said] += 1
                if answer.is_success:
                    envelope: Json = answer.json()
                    if workflow := envelope["meta"].get("workflow_id"):  # none where it was gone already
                        self.workflows.append(workflow)
                    return envelope
                if answer.status_code == 409 and answer.json()["error"]["code"] == BUSY:
                    return None
            if not may_be_repeated:
                self.failures.append(f"{method} {path} after {time.monotonic() - began:.2f} s: {said} {why[:300]}")
                return None
            self.again[said] += 1
            if stop.wait(0.2):
                return None


class Load:
    """Several users, of one seed."""

    def __init__(self, platform: Platform, users: int, seed: int, *, patient: bool, docker: bool) -> None:
        chance = random.Random(seed)  # noqa: S311 - to be repeated
        self.users = [User(platform, chance.randrange(1 << 30), patient=patient, docker=docker) for _ in range(users)]

    @contextmanager
    def running(self) -> Iterator[None]:
        stop = Event()
        with ThreadPoolExecutor(len(self.users)) as threads:
            working: list[Future[None]] = [threads.submit(user.work, stop) for user in self.users]
            try:
                yield
            finally:
                stop.set()
            for future in working:
                future.result()

    @property
    def workflows(self) -> set[str]:
        return {id for user in self.users for id in user.workflows}

    @property
    def answers(self) -> Counter[str]:
        return sum((user.answers for user in self.users), Counter())

    @property
    def again(self) -> Counter[str]:
        return sum((user.again for user in self.users), Counter())

    @property
    def failures(self) -> list[str]:
        return [failure for user in self.users for failure in user.failures]

    @property
    def slowest(self) -> float:
        return max(user.slowest for user in self.users)
