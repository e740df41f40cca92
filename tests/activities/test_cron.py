"""Runs of cron jobs, with a real target and a real Temporal: how they begin, what they call, how they end."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from itertools import takewhile
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp
from psycopg.types.json import Jsonb
from sqlalchemy import Engine, text
from temporalio.api.workflowservice.v1 import ListScheduleMatchingTimesRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import ActivityEnvironment

from activities import purge
from activities.cron import CronRecords
from activities.cron_calls import ACTS_OF_PROJECT, CallAgain, CallFailed, CronActs, CronCalls
from activities.cron_schedules import CronSchedules, _schedule
from activities.database import transaction
from activities.reencryption import newest_key
from activities.secrets import Opened, SecretUnusable
from activities.shares import OthersFirst
from model import cron_times
from model.base import new_id
from model.cron import MOST_OUTPUT, MOST_RUNS, CronCall, CronEnd, CronJob, CronTime, CronTurn, schedule_id
from model.envelope import encrypt
from model.errors import CairnError, NotReady, UrlRefused
from model.keyring import Keyring, new_master_key
from model.vault import SealedValue
from model.workflows import Failure
from tests.activities.test_secrets import OWNERS, keep
from tests.receiver import Receiver
from tests.services import Database, TemporalServer, eventually
from worker.cron_acts import AT_ONE_API

KEYRING = Keyring(new_master_key("test"))
SECRET = "a secret of sixteen and more"
BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"
AT = dt.datetime(2027, 3, 28, 1, tzinfo=dt.UTC)
HTTP: dict[str, Any] = {
    **{"method": "POST", "headers": {}, "body": {"a": 1}, "timeout": 2.0, "retries": 2, "secret": None},
}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


class Jobs:
    """Jobs as the API writes them, and their runs as Temporal has them."""

    def __init__(self, db: Database, engine: Engine) -> None:
        self.db = db
        self.engine = engine
        self.records = CronRecords(engine)
        self.calls = CronCalls(engine, KEYRING, [ip_network("127.0.0.0/8")])

    def make(self, target: dict[str, Any] | None = None, **columns: Any) -> UUID:
        values = {
            "id": new_id(),
            "project_id": self.db.project_id,
            "name": f"job-{new_id()}",
            "schedule": "@hourly",
            "time_zone": "UTC",
            "target": Jsonb(target or {"exec": {"name": "web", "cmd": ["true"], "timeout": 5}}),
            "overlap": "skip",
            "catchup_seconds": 60,
            "owner": "test",
            "user_id": self.db.one("SELECT user_id FROM bindings LIMIT 1")["user_id"],
        } | columns
        names = ", ".join(values)
        self.db.rows(f"INSERT INTO cron_jobs ({names}) VALUES ({', '.join(['%s'] * len(values))})", *values.values())
        id: UUID = values["id"]
        made = SealedValue(id=new_id(), project_id=self.db.project_id, cron_job_id=id)
        with transaction(self.engine, self.db.project_id) as session:
            key_id = newest_key(session, KEYRING, self.db.project_id)
            key = Opened(session, KEYRING, self.db.project_id).key(key_id)
            encrypted = encrypt(key, SECRET.encode(), made.what)
            made.data_key_id, made.nonce, made.ciphertext = key_id, encrypted.nonce, encrypted.ciphertext
            session.add(made)
        return id

    def begin(self, job: UUID, at: dt.datetime = AT, run_id: str = "run-1", own: UUID | None = None) -> CronCall | None:
        environment = ActivityEnvironment()
        environment.info = replace(environment.info, workflow_run_id=run_id, workflow_id=f"cron-{run_id}")
        time = CronTime(project_id=self.db.project_id, job_id=job, run_id=own)
        found: CronCall | None = environment.run(self.records.begin, CronTurn(time=time, at=None if own else at))
        return found

    def begun(self, job: UUID, at: dt.datetime = AT, run_id: str = "run-1") -> CronCall:
        call = self.begin(job, at, run_id)
        assert call is not None
        return call

    def http(self, receiver: Receiver, **more: Any) -> CronCall:
        return self.begun(self.make({"http": HTTP | {"url": receiver.url} | more}))

    async def call(self, call: CronCall) -> None:
        await ActivityEnvironment().run(self.calls.request, call)

    def run(self, call: CronCall) -> dict[str, Any]:
        return self.db.one("SELECT * FROM cron_runs WHERE id = %s", call.run_id)

    def settle(self, call: CronCall, outcome: Any = "completed", failure: Failure | None = None) -> None:
        ActivityEnvironment().run(self.records.settle, CronEnd(call=call, outcome=outcome, failure=failure))


@pytest.fixture
def jobs(database: Database, worker_engine: Engine) -> Jobs:
    return Jobs(database, worker_engine)


@pytest_asyncio.fixture
async def temporal(temporal_server: TemporalServer) -> Client:
    return await temporal_server.client()


def test_a_time_has_one_run_whoever_asks(jobs: Jobs) -> None:
    job = jobs.make()
    first = jobs.begun(job)
    assert jobs.begun(job) == first, "the same run, which died before it was answered"
    assert jobs.begin(job, run_id="run-2") is None
    assert jobs.begin(job, AT + dt.timedelta(seconds=1), "run-2") is not None
    jobs.settle(first)
    assert jobs.begin(job) is None
    jobs.db.rows("UPDATE cron_jobs SET deleted_at = now()")
    assert jobs.begin(job, AT + dt.timedelta(seconds=2), "run-3") is None
    assert len(jobs.db.rows("SELECT id FROM cron_runs")) == 2


def test_nothing_begins_while_the_platform_is_restored(jobs: Jobs) -> None:
    job = jobs.make()
    jobs.db.rows("INSERT INTO restores (id, backup_at, epoch) VALUES (%s, now(), 2)", new_id())
    with pytest.raises(NotReady):
        jobs.begin(job)
    assert jobs.db.rows("SELECT id FROM cron_runs") == []


def test_the_end_is_written_once_and_a_failure_is_an_event(jobs: Jobs) -> None:
    call = jobs.begun(jobs.make())
    failure = Failure(code="call_failed", message="it answered 500")
    jobs.settle(call, "failed", failure)
    jobs.settle(call, "completed")
    assert (jobs.run(call)["state"], jobs.run(call)["error"]["code"]) == ("failed", "call_failed")
    (event,) = jobs.db.rows("SELECT type, data FROM events")
    assert event["type"] == "cron_job.failed" and event["data"]["run_id"] == str(call.run_id)


def test_a_run_that_the_next_terminates_is_looked_at(jobs: Jobs) -> None:
    """It is not ended: what the platform made up for of itself, Temporal did not terminate."""
    job = jobs.make(overlap="terminate_other")
    first = jobs.begun(job)
    second = jobs.begun(job, AT + dt.timedelta(seconds=1), "run-2")
    assert [jobs.run(call)["state"] for call in (first, second)] == ["running", "running"]
    (row,) = jobs.db.rows("SELECT id FROM cron_runs WHERE checked_at < now() - interval '31 s'")
    assert row["id"] == first.run_id


async def test_a_request_carries_its_key_and_is_signed(jobs: Jobs, receiver: Receiver) -> None:
    call = jobs.http(receiver, headers={"X-Mine": "yes"})
    await jobs.call(call)
    (got,) = receiver.received
    assert got.headers["idempotency-key"] == f"cron-{call.job_id}-2027-03-28T01:00:00Z"
    assert got.headers["x-cairn-scheduled-at"] == "2027-03-28T01:00:00+00:00"
    assert (got.headers["x-mine"], got.headers["content-type"], got.body) == ("yes", "application/json", b'{"a":1}')
    assert got.is_signed_with(SECRET)
    run = jobs.run(call)
    assert (run["attempts"], run["status_code"], run["error"]) == (1, 204, None)
    await jobs.call(call)  # its answer was lost
    assert len(receiver.received) == 1


async def test_what_may_pass_is_tried_again_so_often_and_under_one_key(jobs: Jobs, receiver: Receiver) -> None:
    receiver.script.extend([500, 0])
    receiver.usual = 503
    call = jobs.http(receiver)
    waits = []
    for _ in range(2):
        with pytest.raises(CallAgain) as again:
            await jobs.call(call)
        waits.append(again.value.details["retry_after_seconds"])
    assert waits == [1, 2]
    with pytest.raises(CallFailed):
        await jobs.call(call)
    assert jobs.run(call)["attempts"] == 3 == len(receiver.received)
    assert len({got.headers["idempotency-key"] for got in receiver.received}) == 1


async def test_one_project_has_not_all_places_of_an_api(jobs: Jobs) -> None:
    going, go = Counter[UUID](), asyncio.Event()

    async def act(call: CronCall) -> bool:
        going[call.project_id] += 1
        await go.wait()
        return False

    acts = CronActs(act)

    def asked(project: UUID) -> asyncio.Future[bool]:
        call = CronCall(project_id=project, job_id=new_id(), run_id=new_id(), kind="exec", seconds=10)
        return asyncio.ensure_future(ActivityEnvironment().run(acts.act, call))

    greedy, other = new_id(), new_id()
    many, one = [asked(greedy) for _ in range(AT_ONE_API)], asked(other)
    assert await eventually(lambda: going.total() == ACTS_OF_PROJECT + 1)
    go.set()
    found = await asyncio.gather(*many, one, return_exceptions=True)
    assert going == {greedy: ACTS_OF_PROJECT, other: 1}
    assert sum(isinstance(each, OthersFirst) for each in found) == AT_ONE_API - ACTS_OF_PROJECT
    assert not await asked(greedy), "the places are free again"


@pytest.mark.parametrize("status", [404, 301])
async def test_what_will_not_pass_is_not_tried_again(jobs: Jobs, receiver: Receiver, status: int) -> None:
    receiver.usual = (status, {"Location": receiver.url})
    call = jobs.http(receiver)
    with pytest.raises(CallFailed):
        await jobs.call(call)
    assert len(receiver.received) == 1 and jobs.run(call)["status_code"] == status


async def test_what_a_url_holds_stands_in_no_error(jobs: Jobs) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"what is no HTTP\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        call = jobs.begun(jobs.make({"http": HTTP | {"url": f"http://127.0.0.1:{port}/?signature=s3cr3t"}}))
        with pytest.raises(CallAgain) as error:
            await jobs.call(call)
    assert "s3cr3t" not in str(error.value) + str(jobs.run(call)["error"])


async def test_a_target_inside_is_not_called(jobs: Jobs, receiver: Receiver) -> None:
    call = jobs.http(receiver)
    jobs.calls = CronCalls(jobs.engine, KEYRING, [])
    with pytest.raises(UrlRefused):
        await jobs.call(call)
    assert receiver.received == []


@pytest.mark.parametrize(
    ("lost", "code"),
    [
        ("UPDATE users SET deactivated_at = now()", "forbidden"),
        ("DELETE FROM bindings", "forbidden"),
        ("UPDATE bindings SET role_name = 'operator'", "forbidden"),
        ("UPDATE cron_jobs SET scopes = '{instances:read}'", "forbidden"),
        ("UPDATE projects SET deactivated_at = now()", "project_inactive"),
    ],
)
async def test_a_target_is_called_only_while_the_owner_may(
    jobs: Jobs, receiver: Receiver, lost: str, code: str
) -> None:
    call = jobs.http(receiver)
    jobs.db.rows(lost)
    with pytest.raises(CairnError) as refused:
        await jobs.call(call)
    assert (refused.value.code, receiver.received) == (code, [])


async def test_secrets_are_opened_for_a_request_alone(jobs: Jobs, receiver: Receiver) -> None:
    OWNERS[jobs.engine] = jobs.db
    try:
        secret = keep(jobs.engine, jobs.db.project_id, KEYRING, "token", "planted-9dK3w")
    finally:
        del OWNERS[jobs.engine]
    use = {"secret": "token", "secret_id": str(secret)}
    await jobs.call(jobs.http(receiver, headers={"Authorization": use}, secret=use))
    (got,) = receiver.received
    assert got.headers["authorization"] == "planted-9dK3w" and got.is_signed_with("planted-9dK3w")
    gone = jobs.begun(jobs.make({"http": HTTP | {"url": receiver.url, "secret": use | {"secret_id": str(new_id())}}}))
    with pytest.raises(SecretUnusable):
        await jobs.call(gone)
    assert len(receiver.received) == 1


async def test_the_beginning_of_an_answer_is_kept(jobs: Jobs) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b"\x00\xff" + b"x" * (2 * MOST_OUTPUT)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        call = jobs.begun(jobs.make({"http": HTTP | {"url": f"http://127.0.0.1:{port}/", "body": None}}))
        await jobs.call(call)
    run = jobs.run(call)
    assert run["truncated"] and run["output"][:3] == "\ufffd\ufffdx" and len(run["output"]) == MOST_OUTPUT


def test_runs_that_are_old_and_those_behind_the_newest_are_purged(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    job, other = jobs.make(), jobs.make()
    for minute in range(4):
        for one in (job, other):
            jobs.settle(jobs.begun(one, AT + dt.timedelta(minutes=minute)))
    still = jobs.begun(job, AT - dt.timedelta(days=99))
    jobs.db.rows("UPDATE cron_runs SET finished_at = now() - interval '31 days' WHERE job_id = %s", other)
    few = str(purge._MANY_CRON_RUNS).replace(f"OFFSET {MOST_RUNS}", "OFFSET 2")
    monkeypatch.setattr(purge, "_MANY_CRON_RUNS", text(few))
    kept = dt.timedelta(days=7)
    records = purge.PurgeRecords(jobs.engine, purge.Retention(deleted=kept, events=kept, workflows=kept))
    assert ActivityEnvironment().run(records.purge).deliveries == 7
    left = jobs.db.rows("SELECT id, finished_at FROM cron_runs ORDER BY id")
    assert len(left) == 2 and left[-1]["id"] == still.run_id


@pytest.mark.parametrize(
    ("schedule", "zone", "after"),
    [
        *(("30 2 * * *", zone, day) for zone in ("Europe/Berlin", "America/New_York") for day in ("03-12", "10-29")),
        *(
            ("*/15 1-3 * * *", zone, day)
            for zone in ("Europe/Berlin", "America/New_York")
            for day in ("03-27", "11-06")
        ),
        ("0 1 * * *", BERLIN, "10-30"),
        ("*/30 * * * *", BERLIN, "10-30"),
        ("0 0 29 2 *", BERLIN, "01-01"),
        ("@every 7s", "UTC", "01-01"),
    ],
)
async def test_temporal_begins_runs_when_it_is_shown(
    jobs: Jobs, temporal: Client, schedule: str, zone: str, after: str
) -> None:
    begin = dt.datetime.fromisoformat(f"2027-{after}T00:00:00+00:00")
    ends = begin + dt.timedelta(minutes=5) if "every" in schedule else begin + dt.timedelta(days=20)
    ends = begin + dt.timedelta(days=2000) if "29 2" in schedule else ends
    plan = cron_times.plan(schedule, zone, begin)
    job = CronJob(id=new_id(), project_id=new_id(), name="j", schedule=schedule, time_zone=zone, overlap="skip")
    job.catchup_seconds, job.version, job.paused = 60, 1, True
    handle = await temporal.create_schedule(f"times-{job.id}", _schedule(f"times-{job.id}", job, plan))
    try:
        request = ListScheduleMatchingTimesRequest(namespace=temporal.namespace, schedule_id=handle.id)
        request.start_time.CopyFrom(stamp(begin))
        request.end_time.CopyFrom(stamp(ends))
        answer = await temporal.workflow_service.list_schedule_matching_times(request)
    finally:
        await handle.delete()
    told = [one.ToDatetime(tzinfo=dt.UTC) for one in answer.start_time]
    shown = list(takewhile(lambda time: time <= ends, cron_times.times(schedule, zone, begin)))
    assert told and told == shown[: len(told)] and len(told) >= min(len(shown), 40)


def stamp(at: dt.datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(at)
    return made


async def test_temporal_is_told_what_changes_and_its_next_times_are_those_shown(jobs: Jobs, temporal: Client) -> None:
    schedules = CronSchedules(jobs.engine, temporal)
    job = jobs.make(schedule="30 2 * * *", time_zone="Europe/Berlin", overlap="buffer_one")
    assert await schedules.look() == 0
    handle = temporal.get_schedule_handle(schedule_id(installation(jobs), job))
    told = await handle.describe()
    now = dt.datetime.now(dt.UTC)
    assert told.info.next_action_times == cron_times.next_runs("30 2 * * *", "Europe/Berlin", now)
    row = jobs.db.one("SELECT applied_version, good_until, in_hand_until FROM cron_jobs")
    assert row["applied_version"] == 1 and row["good_until"] > now and row["in_hand_until"] is None
    jobs.db.rows("UPDATE cron_jobs SET schedule = '@every 1h', paused = true, version = 2")
    assert await schedules.look() == 0
    told = await handle.describe()
    assert told.schedule.state.paused and told.schedule.spec.intervals[0].every == dt.timedelta(hours=1)
    assert not told.schedule.spec.calendars and told.schedule.state.note == "version 2"
    jobs.db.rows("UPDATE cron_jobs SET schedule = '@daily', version = 3")
    await schedules.look()
    jobs.db.rows("UPDATE cron_jobs SET good_until = now() - interval '1 s'")
    await schedules.look()
    assert jobs.db.one("SELECT good_until > now() AS good FROM cron_jobs")["good"], "it is told more in time"
    jobs.db.rows("UPDATE cron_jobs SET deleted_at = now(), version = 4")
    assert await schedules.look() == 0
    with pytest.raises(RPCError, match="not found"):
        await handle.describe()
    assert jobs.db.rows("SELECT id FROM cron_jobs") == []


async def test_a_job_that_is_not_understood_here_keeps_no_other_waiting(jobs: Jobs, temporal: Client) -> None:
    schedules = CronSchedules(jobs.engine, temporal)
    odd, good = jobs.make(time_zone="Mars/Olympus"), jobs.make()
    assert await schedules.look() == 1
    rows = jobs.db.rows("SELECT id, applied_version FROM cron_jobs")
    assert {row["id"]: row["applied_version"] for row in rows} == {odd: 0, good: 1}
    await temporal.get_schedule_handle(schedule_id(installation(jobs), good)).delete()


async def test_comparing_removes_what_is_ours_alone_and_makes_again_what_is_missing(
    jobs: Jobs, temporal: Client
) -> None:
    schedules = CronSchedules(jobs.engine, temporal)
    kept, lost, orphan, paused = (jobs.make(schedule="@yearly") for _ in range(4))
    assert await schedules.look() == 0
    ours = installation(jobs)
    foreign = new_id()
    job = CronJob(id=new_id(), project_id=new_id(), name="j", schedule="@yearly", time_zone="UTC", overlap="skip")
    job.catchup_seconds, job.version, job.paused = 60, 1, True
    plan = cron_times.plan("@yearly", "UTC", dt.datetime.now(dt.UTC))
    strange = schedule_id(foreign, job.id)
    await temporal.create_schedule(strange, _schedule(strange, job, plan))
    jobs.db.rows("UPDATE cron_jobs SET updated_at = now() - interval '1 hour'")
    jobs.db.rows("DELETE FROM cron_jobs WHERE id = %s", orphan)
    await temporal.get_schedule_handle(schedule_id(ours, lost)).delete()
    await temporal.get_schedule_handle(schedule_id(ours, paused)).pause()

    async def compared() -> bool:
        """Temporal's list comes a little later."""
        done = await ActivityEnvironment().run(schedules.compare)
        return bool(done.again == 2 and done.removed == 1)

    for _ in range(50):
        jobs.db.rows("UPDATE cron_jobs SET applied_version = version")
        if await compared():
            break
        await asyncio.sleep(0.1)
    again = jobs.db.rows("SELECT id FROM cron_jobs WHERE applied_version = 0")
    assert {row["id"] for row in again} == {lost, paused}
    await schedules.look()
    for job_id in (kept, lost, paused):
        assert not (await temporal.get_schedule_handle(schedule_id(ours, job_id)).describe()).schedule.state.paused
        await temporal.get_schedule_handle(schedule_id(ours, job_id)).delete()
    with pytest.raises(RPCError, match="not found"):
        await temporal.get_schedule_handle(schedule_id(ours, orphan)).describe()
    await temporal.get_schedule_handle(strange).delete()  # which is still there


async def test_what_temporal_did_not_take_is_told_again_soon(
    jobs: Jobs, temporal: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedules = CronSchedules(jobs.engine, temporal)
    by_hand = jobs.make(applied_version=1)
    jobs.make()
    wait(jobs, by_hand, AT, manual=True)

    async def away(*_: object, **__: object) -> None:
        raise RPCError("away", RPCStatusCode.UNAVAILABLE, b"")

    with monkeypatch.context() as broken:
        broken.setattr(temporal, "create_schedule", away)
        broken.setattr(temporal, "start_workflow", away)
        assert await schedules.look() == 2
    soon = "now() + interval '11 s'"
    assert len(jobs.db.rows(f"SELECT id FROM cron_jobs WHERE in_hand_until < {soon}")) == 1
    assert len(jobs.db.rows(f"SELECT id FROM cron_runs WHERE checked_at < {soon} AND state = 'pending'")) == 1
    jobs.db.rows("UPDATE cron_jobs SET in_hand_until = now()")
    jobs.db.rows("UPDATE cron_runs SET checked_at = now()")
    assert await schedules.look() == 0
    assert jobs.db.rows("SELECT id FROM cron_jobs WHERE applied_version <> version") == []


async def test_back_fills_begin_one_after_the_other_and_by_hand_at_once(jobs: Jobs, temporal: Client) -> None:
    schedules = CronSchedules(jobs.engine, temporal)
    job, free = jobs.make(applied_version=1), jobs.make(applied_version=1, overlap="allow_all")
    for minute in (3, 1, 2):
        for one in (job, free):
            wait(jobs, one, AT + dt.timedelta(minutes=minute))
    by_hand = wait(jobs, job, AT, manual=True)
    await schedules.look()
    await schedules.look()
    found = "SELECT job_id, scheduled_at, manual FROM cron_runs WHERE checked_at > now() ORDER BY scheduled_at"
    taken = [row["scheduled_at"].minute for row in jobs.db.rows(found) if row["job_id"] == job]
    assert taken == [0, 1]
    assert len([row for row in jobs.db.rows(found) if row["job_id"] == free]) == 3
    handle = temporal.get_workflow_handle(f"cron-{installation(jobs)}-{job}-manual-{by_hand}")
    assert (await handle.describe()).workflow_type == "RunCronJob"


async def test_a_run_that_ended_elsewhere_is_ended(jobs: Jobs, temporal: Client) -> None:
    schedules = CronSchedules(jobs.engine, temporal)
    job = jobs.make(applied_version=1)
    run = wait(jobs, job, AT, manual=True)
    await schedules.look()
    handle = temporal.get_workflow_handle(f"cron-{installation(jobs)}-{job}-manual-{run}")
    described = await handle.describe()
    old = "UPDATE cron_runs SET state = 'running', checked_at = now() - interval '1 min', temporal_id = %s, run_id = %s"
    jobs.db.rows(old, handle.id, described.run_id)
    await schedules.look()
    assert jobs.db.one("SELECT state FROM cron_runs")["state"] == "running"
    await handle.terminate("by hand")
    jobs.db.rows(old, handle.id, described.run_id)
    await schedules.look()
    row = jobs.db.one("SELECT state, error FROM cron_runs")
    assert (row["state"], row["error"]["code"]) == ("cancelled", "run_terminated")
    # Not out of turn, of a job whose runs terminate the one before.
    jobs.db.rows("UPDATE cron_jobs SET overlap = 'terminate_other'")
    jobs.db.rows(f"{old}, manual = false, finished_at = NULL", handle.id, described.run_id)
    await schedules.look()
    row = jobs.db.one("SELECT state, error FROM cron_runs")
    assert (row["state"], row["error"]["code"]) == ("cancelled", "cancelled")


def wait(jobs: Jobs, job: UUID, at: dt.datetime, *, manual: bool = False) -> UUID:
    """What a back-fill, or a trigger, writes."""
    id = new_id()
    row = (id, jobs.db.project_id, job, at, manual)
    jobs.db.rows(
        "INSERT INTO cron_runs (id, project_id, job_id, scheduled_at, manual) VALUES (%s, %s, %s, %s, %s)", *row
    )
    return id


def installation(jobs: Jobs) -> UUID:
    id: UUID = jobs.db.one("SELECT id FROM installation")["id"]
    return id
