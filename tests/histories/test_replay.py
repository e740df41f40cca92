"""Every history that was ever recorded replays on this code: what runs when an upgrade comes goes on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from tests.histories.record import UNSTOPPED
from worker.temporal_client import DATA_CONVERTER
from workflows.plans import PLANS

FILES = sorted(Path(__file__).parent.glob("*/*.json"))
#: Those of a release and a kind are replayed together.
GROUPS: dict[tuple[str, str], list[Path]] = {}
for _path in FILES:
    GROUPS.setdefault((_path.parent.name, _path.stem.partition("-")[0]), []).append(_path)
BY_NAME = {plan.__name__: plan for plan in PLANS}
#: What nobody asked for is not called off, and is not settled.
SYSTEM = {
    "CoarsenSamples",
    "CollectImages",
    "CompareCronJobs",
    "CompareQuotas",
    "DeliverWebhook",
    "Purge",
    "ReconcileHost",
    "SealAudit",
    "ReencryptSecrets",
    "SurveyHost",
    "SweepBlobs",
    "Tick",
}
#: A delete that has begun is not stopped by a cancel.


@workflow.defn(name="StopInstance", sandboxed=False)
class Other:
    """A plan with other steps than those recorded."""

    @workflow.run
    async def run(self, order: object) -> None:
        await workflow.sleep(1)


def read(path: Path) -> WorkflowHistory:
    return WorkflowHistory.from_json(path.stem, path.read_text())


async def failures(paths: list[Path], plan: type) -> dict[str, BaseException]:
    """The histories that do not replay, by their names. By one worker: to make one takes longer than to replay."""

    async def histories() -> AsyncIterator[WorkflowHistory]:
        for path in paths:
            yield read(path)

    replayer = Replayer(workflows=[plan], data_converter=DATA_CONVERTER)
    async with replayer.workflow_replay_iterator(histories()) as replayed:
        results = [result async for result in replayed]
    assert [result.history.workflow_id for result in results] == [path.stem for path in paths]
    return {result.history.workflow_id: result.replay_failure for result in results if result.replay_failure}


@pytest.mark.parametrize(("release", "kind"), GROUPS)
async def test_histories_replay(release: str, kind: str) -> None:
    assert await failures(GROUPS[release, kind], BY_NAME[kind]) == {}


async def test_replayer_notices_another_order_of_steps() -> None:
    """That the test above can fail, and names what fails."""
    names = "StopInstance-completed", "StopInstance-failed", "StopInstance-completed"
    paths = [next(path for path in FILES if path.stem == name) for name in names]
    found = await failures(paths, Other)
    assert {name: type(error) for name, error in found.items()} == dict.fromkeys(names, workflow.NondeterminismError)


def test_every_plan_has_histories_of_all_its_ends() -> None:
    ends: dict[str, set[str]] = {}
    for path in FILES:
        kind, _, outcome = path.stem.partition("-")
        ends.setdefault(kind, set()).add(outcome)
    for plan in PLANS:
        wanted = (
            {"completed", "retried"} if plan.__name__ in SYSTEM else {"completed", "failed", "cancelled", "retried"}
        )
        assert wanted <= ends[plan.__name__]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_history_is_of_the_end_that_its_name_says(path: Path) -> None:
    kind, _, outcome = path.stem.partition("-")
    events = json.loads(path.read_text())["events"]
    first, last = events[0]["workflowExecutionStartedEventAttributes"], events[-1]["eventType"]
    assert first["workflowType"]["name"] == kind
    ends = {
        "failed": "FAILED",
        "deadline": "FAILED",
        "ended-elsewhere": "FAILED",
        "cancelled": "CANCELED",
        "cancel-swallowed": "CANCELED",
        "port-replaced-failed": "FAILED",
        "fixed-port-taken": "FAILED",
        "undo-failed": "FAILED",
        "ended-instead": "FAILED",
        "uploaded-failed": "FAILED",
        "on-several-failed": "FAILED",
        "paused-failed": "FAILED",
        "restarted-failed": "FAILED",
        "recreated-failed": "FAILED",
        "not-recreated": "FAILED",
        "stuck": "FAILED",
        "given-up": "FAILED",
        "not-emptied": "FAILED",
        "activated": "FAILED",
        **dict.fromkeys(("not-joined", "moved"), "FAILED"),
        **dict.fromkeys(("not-launched", "not-deleted", "drained-failed"), "FAILED"),
        "fenced-off": "FAILED",
        "workflow-refused": "FAILED",
        "workflow-failed": "FAILED",
        "workflow-cancelled": "CANCELED",
        **dict.fromkeys(("cancelled-at-first", "cancelled-at-first-warm", "cancelled-taken-over"), "CANCELED"),
        "continued": "CONTINUED_AS_NEW",
    }
    # A delete that has begun runs to its end.
    expected = "COMPLETED" if kind in UNSTOPPED and outcome.startswith("cancel") else ends.get(outcome)
    assert last == f"EVENT_TYPE_WORKFLOW_EXECUTION_{expected or 'COMPLETED'}"
