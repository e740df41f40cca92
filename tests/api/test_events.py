"""Event streams: in commit order, nothing lost, resumable."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx
import psycopg
import pytest
from httpx_sse import aconnect_sse
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from api.open_streams import OpenStreams
from tests.api.conftest import Api
from tests.api.test_accept import settle
from tests.services import SUPERUSER, eventually

INSERT = "INSERT INTO events (project_id, type, resource_type, resource_id) VALUES (%s, %s, 'test', %s)"


async def stream(http: httpx.AsyncClient, path: str, after: str | None = None) -> AsyncIterator[Any]:
    headers = {"Last-Event-ID": after} if after else {}
    async with aconnect_sse(http, "GET", path, headers=headers) as source:
        assert source.response.status_code == 200
        assert source.response.headers["content-type"].startswith("text/event-stream")
        async for event in source.aiter_sse():
            if event.data:
                yield event


async def take(
    http: httpx.AsyncClient, count: int, path: str = "/v1/events", after: str | None = None, seconds: float = 60
) -> list[Any]:
    """The first ``count`` events."""
    found: list[Any] = []
    async with asyncio.timeout(seconds):
        async with aclosing(stream(http, path, after)) as events:
            async for event in events:
                found.append(event)
                if len(found) == count:
                    return found
    return found


async def test_stream_begins_now(api: Api) -> None:
    await api.launch("before")
    await asyncio.to_thread(api.db.settle)
    taking = asyncio.create_task(take(api.http, 1))
    assert await eventually(lambda: api.app.state.bells._waiting.get(""))
    launched = await api.launch("after")
    (event,) = await taking
    data = json.loads(event.data)
    assert event.event == data["type"] == "instance.pending"
    assert event.id == data["id"]
    assert data["resource_id"] == launched["data"]["id"]
    assert data["workflow_id"] == launched["meta"]["workflow_id"]
    assert data["data"] == {"name": "after", "from": None, "to": "pending"}


async def test_first_frame_is_where_to_resume_from(api: Api) -> None:
    await api.launch("before")
    await asyncio.to_thread(api.db.settle)
    async with aconnect_sse(api.http, "GET", "/v1/events") as source:
        event = await anext(aiter(source.aiter_sse()))
    assert (event.data, event.retry) == ("", 1000)
    launched = await api.launch("while-away")
    (missed,) = await take(api.http, 1, after=event.id)
    assert json.loads(missed.data)["resource_id"] == launched["data"]["id"]


async def test_resumes_after_any_event(api: Api) -> None:
    for number in range(6):
        await api.launch(f"web-{number}")
    everything = await take(api.http, 6, after="0-0-0")
    names = [json.loads(event.data)["data"]["name"] for event in everything]
    assert names == [f"web-{number}" for number in range(6)]
    for position, event in enumerate(everything[:-1]):
        rest = await take(api.http, 5 - position, after=event.id)
        assert [later.id for later in rest] == [later.id for later in everything[position + 1 :]]


async def test_transaction_that_commits_late_is_not_lost(api: Api) -> None:
    project = api.db.project_id
    taking = asyncio.create_task(take(api.http, 4))
    assert await eventually(lambda: api.app.state.bells._waiting.get(""))

    def commit_late() -> None:
        with psycopg.connect(api.db.url(SUPERUSER)) as slow, psycopg.connect(api.db.url(SUPERUSER)) as quick:
            slow.execute(INSERT, (project, "slow.1", project))
            quick.execute(INSERT, (project, "quick.1", project))
            quick.commit()
            quick.execute(INSERT, (project, "quick.2", project))
            quick.execute("SELECT pg_notify('cairn', '')")
            quick.commit()
            # A reader that goes by ids alone has passed the slow one by now.
            slow.execute("SELECT pg_sleep(1.2)")
            slow.execute(INSERT, (project, "slow.2", project))
            slow.commit()

    await asyncio.to_thread(commit_late)
    events = await taking
    assert sorted(event.event for event in events) == ["quick.1", "quick.2", "slow.1", "slow.2"]
    # What was seen once is seen in the same order by whoever resumes.
    again = await take(api.http, 4, after="0-0-0")
    assert [event.id for event in again] == [event.id for event in events]


async def test_stream_that_begins_beside_an_open_transaction_gets_it(api: Api) -> None:
    project = api.db.project_id
    with psycopg.connect(api.db.url(SUPERUSER)) as slow:
        slow.execute(INSERT, (project, "in.flight", project))
        taking = asyncio.create_task(take(api.http, 1))
        assert await eventually(lambda: api.app.state.bells._waiting.get(""))
        await asyncio.sleep(0.2)
    assert [event.event for event in await taking] == ["in.flight"]


async def test_many_writers_every_event_once(api: Api) -> None:
    taking = asyncio.create_task(take(api.http, 60))
    assert await eventually(lambda: api.app.state.bells._waiting.get(""))
    launched = await asyncio.gather(*(api.launch(f"web-{number}") for number in range(60)))
    events = await taking
    assert {json.loads(event.data)["resource_id"] for event in events} == {body["data"]["id"] for body in launched}
    assert len({event.id for event in events}) == 60


async def test_older_epoch_is_deliverable_whatever_its_transaction_ids(api: Api) -> None:
    """After a restore into a new cluster the old ids mean nothing there."""
    project = api.db.project_id
    api.db.rows("UPDATE installation SET epoch = epoch + 1")
    api.db.rows(
        "INSERT INTO events (epoch, xid, project_id, type, resource_type, resource_id)"
        " SELECT epoch - 1, 9000000000, %s, 'old.one', 'test', %s FROM installation",
        *(project, project),
    )
    await api.launch()
    events = await take(api.http, 2, after="0-0-0")
    assert [event.event for event in events] == ["old.one", "instance.pending"]


async def test_workflow_stream_ends_with_the_workflow(api: Api) -> None:
    body = await api.launch()
    workflow_id = body["meta"]["workflow_id"]
    await api.launch("another")
    taking = asyncio.create_task(take(api.http, 99, f"/v1/workflows/{workflow_id}/events"))
    await asyncio.sleep(0.3)
    assert not taking.done()
    assert (await api.http.post(f"/v1/workflows/{workflow_id}/cancel")).status_code == 202
    events = await taking
    assert [event.event for event in events] == ["instance.pending", "instance.error", "workflow.cancelled", "end"]
    # Of one that has ended, the whole story at once; and the rest of it after any event.
    again = await take(api.http, 99, f"/v1/workflows/{workflow_id}/events")
    assert [event.event for event in again] == [event.event for event in events]
    rest = await take(api.http, 99, f"/v1/workflows/{workflow_id}/events", after=events[1].id)
    assert [event.event for event in rest] == ["workflow.cancelled", "end"]


async def test_workflow_that_ended_without_events_ends_its_stream(api: Api) -> None:
    workflow_id = (await api.launch())["meta"]["workflow_id"]
    await asyncio.to_thread(settle, api.db, workflow_id, "completed", "running")
    events = await take(api.http, 99, f"/v1/workflows/{workflow_id}/events")
    assert [event.event for event in events] == ["instance.pending", "end"]


async def test_strangers_events_are_not_shown(api: Api) -> None:
    async with api.as_(api.db.project("stranger")) as stranger:
        taking = asyncio.create_task(take(stranger, 1, after="0-0-0"))
        await api.launch("mine")
        await asyncio.sleep(0.7)
        assert not taking.done()
        await stranger.post("/v1/instances", json={"name": "theirs", "image": "cairn/base"})
        (event,) = await taking
        assert json.loads(event.data)["data"]["name"] == "theirs"


async def test_stream_survives_a_cut_connection_of_the_listener(api: Api) -> None:
    taking = asyncio.create_task(take(api.http, 1))
    assert await eventually(lambda: api.app.state.bells._waiting.get(""))
    api.db.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid()"
    )
    await api.launch()
    assert [event.event for event in await taking] == ["instance.pending"]


def socket(api: Api) -> Any:
    url = f"{api.url.replace('http', 'ws', 1)}/v1/ws/events"
    return connect(url, additional_headers={"X-API-Key": api.db.api_key}, proxy=None)


async def routes(api: Api) -> list[str]:
    body = await api.launch()
    return [
        "/v1/events",
        f"/v1/instances/{body['data']['id']}/events",
        f"/v1/workflows/{body['meta']['workflow_id']}/events",
    ]


async def test_project_has_so_many_streams_of_events_and_others_beside_them(api: Api) -> None:
    api.app.state.open_streams = streams = OpenStreams(api.app.state.engine, 1, events=2)
    paths = await routes(api)
    for path in paths:
        async with api.http.stream("GET", path) as first, socket(api):
            assert first.status_code == 200
            for other in paths:
                answer = await api.http.get(other)
                assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_streams")
                assert int(answer.headers["retry-after"]) > 0
            with pytest.raises(InvalidStatus) as refused:
                await socket(api)
            assert refused.value.response.status_code == 429
        assert await eventually(lambda: not streams._count), "what has ended gives its place back"


async def test_streams_of_events_end_when_the_key_that_opened_them_is_revoked(api: Api) -> None:
    paths = await routes(api)
    following = [asyncio.create_task(take(api.http, 99, path, after="0-0-0")) for path in paths]
    async with socket(api) as connection:
        streams = api.app.state.open_streams
        assert await eventually(lambda: sum(streams._count.values()) == 4)
        await asyncio.sleep(0.3)
        await streams.look()
        assert not any(task.done() for task in following)
        api.db.rows("UPDATE api_keys SET revoked_at = now()")
        await streams.look()
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(connection.recv(), 5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401
        for events in await asyncio.wait_for(asyncio.gather(*following), 6):
            assert (events[-1].event, json.loads(events[-1].data)["code"]) == ("cut", "unauthenticated")
    assert await eventually(lambda: not streams._count)


async def test_gap_is_told_on_every_stream(api: Api) -> None:
    paths = await routes(api)
    api.db.rows("INSERT INTO event_horizons (project_id, epoch, xid, event_id) VALUES (%s, 1, 5, 5)", api.db.project_id)
    for path in paths:
        (gap,) = await take(api.http, 1, path, after="1-4-4")
        assert (gap.event, json.loads(gap.data)) == ("gap", {"purged_until": "1-5-5"})
        if path != "/v1/events":
            (first,) = await take(api.http, 1, path, after="0-0-0")
            assert first.event == "instance.pending"
