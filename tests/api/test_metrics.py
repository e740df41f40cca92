"""What the API counts: bounded, and right."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from tests.api.conftest import BODY, Api

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(api: Api, **headers: str) -> Samples:
    answer = await api.http.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def grown(before: Samples, after: Samples, name: str, **labels: str) -> float:
    key = (name, tuple(sorted(labels.items())))
    return after.get(key, 0) - before.get(key, 0)


async def test_requests_are_counted_by_template_and_unknown_paths_as_one(api: Api) -> None:
    before = await scrape(api)
    for _ in range(3):
        await api.http.get(f"/v1/instances/{uuid.uuid4()}")
        await api.http.get(f"/v1/{uuid.uuid4()}/nothing")
        await api.http.request("PROPFIND", f"/{uuid.uuid4()}")
    after = await scrape(api)
    known = {"method": "GET", "route": "/v1/instances/{instance_id}"}
    assert grown(before, after, "cairn_http_requests_total", **known, status="4xx") == 3
    assert grown(before, after, "cairn_http_request_seconds_count", **known) == 3
    unknown = {"route": "unknown", "status": "4xx"}
    assert grown(before, after, "cairn_http_requests_total", method="GET", **unknown) == 3
    assert grown(before, after, "cairn_http_requests_total", method="OTHER", **unknown) == 3
    assert len({key for key in after if key[0] == "cairn_http_requests_total"} - set(before)) <= 4, (
        "three, and the first look at them"
    )


async def test_acceptance_is_timed_once_and_not_where_it_is_waited_for(api: Api) -> None:
    before = await scrape(api)
    await api.launch("one")
    await api.launch("two")
    waited = await api.http.post("/v1/instances", json=BODY | {"name": "three"}, headers={"Prefer": "wait=1"})
    assert waited.status_code == 202
    refused = await api.http.post("/v1/instances", json=BODY | {"name": "one"})
    assert refused.status_code == 409
    after = await scrape(api)
    assert grown(before, after, "cairn_acceptance_seconds_count") == 2
    assert grown(before, after, "cairn_workflows_accepted_total", kind="ProvisionInstance") == 3
    assert 0 < grown(before, after, "cairn_acceptance_seconds_sum") < 2


async def test_a_workflow_that_ends_before_it_starts_is_counted_as_cancelled(api: Api) -> None:
    api.app.state.dispatcher.start = lambda order: None
    before = await scrape(api)
    called_off = await api.launch("one")
    await api.http.post(f"/v1/workflows/{called_off['meta']['workflow_id']}/cancel")
    deleted = await api.launch("two")
    await api.http.delete(f"/v1/instances/{deleted['data']['id']}")
    after = await scrape(api)
    ended = {"kind": "ProvisionInstance", "outcome": "cancelled"}
    assert grown(before, after, "cairn_workflow_seconds_count", **ended) == 2


async def test_streams_of_events_are_shown_with_their_lag(api: Api) -> None:
    before = await scrape(api)
    async with api.http.stream("GET", "/v1/events") as answer:
        lines = answer.aiter_lines()
        await api.launch()
        async with asyncio.timeout(60):
            async for line in lines:
                if line.startswith("data"):
                    break
        during = await scrape(api)
    assert during["cairn_event_followers", ()] == 1
    assert grown(before, during, "cairn_events_lag_seconds_count") >= 1
    assert during["cairn_database_pool_size", ()] >= during["cairn_database_pool_in_use", ()] >= 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Authorization": "Bearer metrics-token"}, 200)],
)
async def test_metrics_may_ask_for_a_token(api: Api, headers: dict[str, str], status: int) -> None:
    settings = api.app.state.settings
    api.app.state.settings = settings.model_copy(update={"metrics_token": SecretStr("metrics-token")})
    del api.http.headers["x-api-key"]
    assert (await api.http.get("/metrics", headers=headers)).status_code == status


async def test_no_label_holds_an_id_or_a_name(api: Api) -> None:
    launched = await api.launch("a-name-of-a-user")
    shown = (await api.http.get("/metrics")).text
    for told in ("a-name-of-a-user", launched["data"]["id"], launched["meta"]["workflow_id"], str(api.db.project_id)):
        assert told not in shown
