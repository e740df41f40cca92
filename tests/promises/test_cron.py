"""Cron jobs on a whole platform: every time has one run, whatever dies; overlaps are as declared."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import httpx
import pytest

from model.cron import OPEN
from tests.promises.test_groups import group, is_whole, scale
from tests.promises.test_groups import path as group_path
from tests.receiver import Receiver
from tests.stack import Json, Stack, wait_for

#: Of the job that runs each second: a whole minute in ``make chaos``.
SECONDS = 60 if os.environ.get("CAIRN_CHAOS") == "all" else 20
SLOW_SECONDS, LONG_SECONDS = 2.5, 10


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one


class Slow(BaseHTTPRequestHandler):
    """A target that takes its time."""

    def do_POST(self) -> None:
        time.sleep(LONG_SECONDS if self.path == "/long" else SLOW_SECONDS)
        with contextlib.suppress(OSError):  # who called may have gone
            self.send_response(204)
            self.end_headers()

    def log_message(self, *_: object) -> None:
        """The tests look at the runs."""


@pytest.fixture
def slow() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


def make(stack: Stack, target: Json, schedule: str = "@every 1s", **more: object) -> Json:
    """A job that Temporal has."""
    body = {"name": f"job-{uuid.uuid4().hex[:8]}", "schedule": schedule, "target": target} | more
    job: Json = stack.accept("POST", "/cron/jobs", body)["data"]
    wait_for("Temporal has it", lambda: stack.get(path(job))["applied"])
    return job


def path(job: Json) -> str:
    return f"/cron/jobs/{job['id']}"


def runs(stack: Stack, job: Json) -> list[Json]:
    """The oldest first."""
    return sorted(stack.list(f"{path(job)}/runs"), key=lambda run: run["scheduled_at"])


def cut_off(found: list[Json]) -> int:
    return [run["state"] for run in found].count("cancelled")


def remove(stack: Stack, job: Json) -> None:
    assert stack.request("DELETE", path(job)).status_code == httpx.codes.NO_CONTENT
    wait_for("it is gone", lambda: not stack.sql("SELECT id FROM cron_jobs WHERE id = %s", job["id"]))


def ended(stack: Stack, job: Json, seconds: float = 90) -> list[Json]:
    """Its runs, once it is paused and none is open."""
    stack.accept("POST", f"{path(job)}/pause")
    wait_for("Temporal has it paused", lambda: stack.get(path(job))["applied"], 100)
    wait_for("no run is open", lambda: all(run["state"] not in OPEN for run in runs(stack, job)), seconds)
    return runs(stack, job)


def test_each_second_has_one_run_though_the_control_worker_is_killed_twice(stack: Stack, receiver: Receiver) -> None:
    target = {"http": {"url": receiver.url, "body": {"hello": "there"}, "timeout": 5}}
    job = make(stack, target, overlap="allow_all")
    began = time.monotonic()
    for after in (SECONDS / 3, 2 * SECONDS / 3):
        time.sleep(max(0.0, began + after - time.monotonic()))
        stack.kill("control_worker")
    time.sleep(max(0.0, began + SECONDS - time.monotonic()))
    found = ended(stack, job)
    assert {run["state"] for run in found} == {"completed"}, Counter(run["state"] for run in found)
    times = [dt.datetime.fromisoformat(run["scheduled_at"]) for run in found]
    assert len(times) >= SECONDS
    assert {b - a for a, b in pairwise(times)} == {dt.timedelta(seconds=1)}, times
    keys = {run["idempotency_key"] for run in found}
    assert keys == {f"cron-{job['id']}-{at:%Y-%m-%dT%H:%M:%SZ}" for at in times}
    assert {one.headers["idempotency-key"] for one in receiver.received} == keys
    assert all(one.is_signed_with(job["secret"]) and one.body == b'{"hello":"there"}' for one in receiver.received)
    remove(stack, job)


def test_overlaps_are_as_declared(stack: Stack, slow: str) -> None:
    """Runs of two and a half seconds, each second."""
    target = {"http": {"url": slow}}
    jobs = {overlap: make(stack, target, overlap=overlap) for overlap in ("skip", "buffer_one", "allow_all")}
    # However late the next comes, it finds one to cut off.
    long = {"http": {"url": f"{slow}long"}}
    jobs |= {overlap: make(stack, long, overlap=overlap) for overlap in ("cancel_other", "terminate_other")}
    began = time.monotonic()
    for overlap in ("cancel_other", "terminate_other"):
        # However slowly a busy machine starts them.
        wait_for(f"{overlap} cuts runs off", lambda o=overlap: cut_off(runs(stack, jobs[o])) > 2, 180)  # type: ignore[misc]
    time.sleep(max(0.0, began + 8 - time.monotonic()))
    # Of its last run the platform learns only where another comes: what cut it off told nobody.
    seen = len(runs(stack, jobs["terminate_other"]))

    def are_known() -> list[Json] | None:
        of_job = runs(stack, jobs["terminate_other"])[:seen]
        return of_job if cut_off(of_job) >= seen - 2 else None

    found = {"terminate_other": wait_for("it is known which were cut off", are_known, 90)}
    threads = [
        threading.Thread(target=lambda o=overlap, j=job: found.update({o: ended(stack, j)}))  # type: ignore[misc]
        for overlap, job in jobs.items()
        if overlap not in found
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for overlap in ("skip", "buffer_one"):
        assert {run["state"] for run in found[overlap]} == {"completed"}, found[overlap]
        spans = [(run["started_at"], run["finished_at"]) for run in found[overlap]]
        assert all(a[1] <= b[0] for a, b in pairwise(spans)), "no two at once"
    assert len(found["skip"]) < len(found["allow_all"]), "times that came while one ran are left out"
    assert {run["state"] for run in found["allow_all"]} == {"completed"}
    spans = [(run["started_at"], run["finished_at"]) for run in found["allow_all"]]
    assert any(a[1] > b[0] for a, b in pairwise(spans)), "several at once"
    for overlap in ("cancel_other", "terminate_other"):
        # All but the last, where the next was waiting for its end when the job was paused; and one whose end was
        # faster, on a machine that does much else.
        assert cut_off(found[overlap]) >= len(found[overlap]) - 2, found[overlap]
    for job in jobs.values():
        remove(stack, job)


def test_a_command_runs_through_the_agent_and_its_output_is_kept(stack: Stack) -> None:
    instance = stack.running(backend="docker")
    command = ["sh", "-c", "echo begun; echo wrong >&2; exit 3"]
    job = make(stack, {"exec": {"name": instance["name"], "cmd": command}}, schedule="@yearly")
    triggered = stack.accept("POST", f"{path(job)}/trigger")["data"]
    wait_for("it fails", lambda: stack.get(f"{path(job)}/runs/{triggered['id']}")["state"] == "failed")
    run = stack.get(f"{path(job)}/runs/{triggered['id']}")
    assert (run["output"], run["status_code"], run["truncated"]) == ("begun\nwrong\n", 3, False)
    assert run["error"]["code"] == "call_failed"
    remove(stack, job)
    stack.completed(stack.act("delete", instance))


def test_a_time_starts_a_workflow_and_shows_how_it_ended(stack: Stack) -> None:
    instance = stack.running()
    target = {"workflow": {"kind": "StopInstance", "resource_id": instance["id"]}}
    job = make(stack, target, schedule="@yearly")
    triggered = stack.accept("POST", f"{path(job)}/trigger")["data"]

    def is_over() -> Json | None:
        run: Json = stack.get(f"{path(job)}/runs/{triggered['id']}")
        return run if run["state"] not in OPEN else None

    run = wait_for("the run ends", is_over)
    assert run["state"] == "completed", run
    workflow = stack.get(f"/workflows/{run['workflow_id']}")
    assert (workflow["kind"], workflow["state"], workflow["actor"]) == (
        *("StopInstance", "completed"),
        f"cron:{job['name']}",
    )
    assert stack.instance(instance)["status"] == "stopped"
    again = stack.accept("POST", f"{path(job)}/trigger")["data"]
    wait_for("it fails", lambda: stack.get(f"{path(job)}/runs/{again['id']}")["state"] == "failed")
    assert stack.get(f"{path(job)}/runs/{again['id']}")["error"]["code"] == "invalid_state"
    remove(stack, job)
    stack.completed(stack.act("delete", instance))


def test_a_group_is_scaled_at_its_times_and_its_history_says_why(stack: Stack) -> None:
    with group(stack, 1) as accepted:
        stack.completed(accepted)
        numbers = {"desired_count": 3}
        target = {"workflow": {"kind": "ScaleGroup", "resource_id": accepted["data"]["id"], "parameters": numbers}}
        # What the first of its times is answered is lost.
        stack.fault("cron.act.after_commit", "lose_answer")
        job = make(stack, target, schedule="@every 2s")
        wait_for("it has three", lambda: is_whole(stack, accepted, 3), 60)
        assert [one["id"] for one in stack.list("/cron/jobs", resource_id=accepted["data"]["id"])] == [job["id"]]
        idle = ("completed", None)
        wait_for("one of its times has nothing to do", lambda: idle in [outcome(run) for run in runs(stack, job)])
        scale(stack, accepted, 1)
        wait_for("it is back", lambda: changes(stack, accepted, job) == [(1, 3), (3, 1), (1, 3)], 60)
        found = ended(stack, job)
        wait_for("it has three again", lambda: is_whole(stack, accepted, 3), 60)
        begun = [
            row for row in stack.list(f"{group_path(accepted)}/activities") if row["cause"] == f"cron:{job['name']}"
        ]
        # Each once; where there are three, or three are on their way, nothing is begun.
        assert sorted(row["workflow_id"] for row in begun) == sorted(
            filter(None, (run["workflow_id"] for run in found))
        )
    # The group is gone, and its job says so.
    late = stack.accept("POST", f"{path(job)}/trigger")["data"]
    wait_for("it fails", lambda: stack.get(f"{path(job)}/runs/{late['id']}")["state"] == "failed")
    said = stack.get(f"{path(job)}/runs/{late['id']}")["error"]
    assert (said["code"], said["message"]) == ("invalid_state", f"group {accepted['data']['name']} is deleted")
    remove(stack, job)


def outcome(run: Json) -> tuple[str, str | None]:
    return run["state"], run["workflow_id"]


def changes(stack: Stack, accepted: Json, job: Json) -> list[tuple[int, int]]:
    """How many members were desired before and after each wish that changed that, the oldest first. Those for more are
    the job's."""
    found = reversed(stack.list(f"{group_path(accepted)}/activities"))
    changed = [row for row in found if row["desired_before"] != row["desired_after"] and row["action"] == "scale"]
    for row in changed:
        assert (row["cause"] == f"cron:{job['name']}") == (row["desired_after"] > row["desired_before"]), row
    return [(row["desired_before"], row["desired_after"]) for row in changed]


def test_a_back_fill_runs_what_was_missed_one_after_the_other(stack: Stack, receiver: Receiver) -> None:
    job = make(
        stack, {"http": {"url": receiver.url, "method": "POST"}}, schedule="0 * * * *", time_zone="Europe/Berlin"
    )
    asked = {"start": "2026-03-29T00:00:00Z", "end": "2026-03-29T02:00:00Z"}
    assert stack.accept("POST", f"{path(job)}/backfill", asked)["data"] == {"runs": 3}
    wait_for("all have run", lambda: [run["state"] for run in runs(stack, job)].count("completed") >= 3)
    found = [run for run in runs(stack, job) if run["scheduled_at"] < "2026-04"]
    assert all(a["finished_at"] <= b["started_at"] for a, b in pairwise(found))
    assert [one.headers["x-cairn-scheduled-at"][11:13] for one in receiver.received][:3] == ["00", "01", "02"]
    remove(stack, job)
