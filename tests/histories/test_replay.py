"""Every history that was ever recorded replays on this code: what runs when an upgrade comes goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from worker.temporal_client import DATA_CONVERTER
from workflows.plans import PLANS

FILES = sorted(Path(__file__).parent.glob("*/*.json"))
#: What nobody asked for is not called off, and is not settled.
SYSTEM = {
    "CoarsenSamples",
    "CollectImages",
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


@workflow.defn(name="StopInstance", sandboxed=False)
class Other:
    """A plan with other steps than those recorded."""

    @workflow.run
    async def run(self, order: object) -> None:
        await workflow.sleep(1)


def read(path: Path) -> WorkflowHistory:
    return WorkflowHistory.from_json(path.stem, path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
async def test_history_replays(path: Path) -> None:
    replayer = Replayer(workflows=PLANS, data_converter=DATA_CONVERTER)
    await replayer.replay_workflow(read(path))


async def test_replayer_notices_another_order_of_steps() -> None:
    """That the test above can fail."""
    replayer = Replayer(workflows=[Other], data_converter=DATA_CONVERTER)
    path = next(path for path in FILES if path.stem == "StopInstance-completed")
    with pytest.raises(workflow.NondeterminismError):
        await replayer.replay_workflow(read(path))


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
        "paused-failed": "FAILED",
        "restarted-failed": "FAILED",
        "recreated-failed": "FAILED",
        "not-recreated": "FAILED",
        "stuck": "FAILED",
        "not-emptied": "FAILED",
        "fenced-off": "FAILED",
        "continued": "CONTINUED_AS_NEW",
    }
    # A delete that has begun runs to its end.
    expected = (
        "COMPLETED"
        if kind in ("DeprovisionInstance", "DeleteImage", "DeprovisionProject") and outcome.startswith("cancel")
        else ends.get(outcome)
    )
    assert last == f"EVENT_TYPE_WORKFLOW_EXECUTION_{expected or 'COMPLETED'}"
