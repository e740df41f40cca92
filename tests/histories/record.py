"""Record the histories of this folder: ``python tests/histories/record.py VERSION``.

Runs every plan to each of its ends, on a real server with stand-ins for the activities, and writes what
the server recorded to ``VERSION/<kind>-<outcome>.json``. A file that exists is never written again.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from temporalio.client import WorkflowHandle

from activities.audit import Sealed
from activities.drains import Round
from activities.groups import GroupRound
from activities.purge import Purged
from activities.reencryption import Reencrypted
from activities.rounds import Emptying
from activities.runs import CONTROL, RunEnded
from model.base import new_id
from model.cron import CronTime, TargetKind
from model.errors import (
    EngineRefused,
    EngineUnavailable,
    FetchFailed,
    ImageRefused,
    InstanceExited,
    LeaseLapsed,
    NeedsRecreate,
    NeedsStop,
    NotReady,
    PortTaken,
    WorkspaceMoved,
)
from model.instances import OwnedMachine
from model.webhooks import WebhookRef
from model.workflows import Failure
from tests.services import eventually
from tests.workflows.stage import HOST, Gate, Stage, Theatre, fails, order, server, theatre

DAYS = timedelta(days=14)
FOLDER = Path(__file__).parent
#: The step in the middle of each plan, where it fails, is retried, or is cancelled.
MIDDLE = {
    "ProvisionInstance": "instance.start",
    "StartInstance": "instance.start",
    "StopInstance": "instance.stop",
    "DeprovisionInstance": "instance.delete",
    "HealInstance": "instance.start",
    "MoveInstance": "instance.start",
    "DrainHost": "drain.next",
    "RestartInstance": "instance.start",
    "PauseInstance": "instance.pause",
    "ResumeInstance": "instance.resume",
    "ResizeInstance": "instance.adjust",
    "ImportImage": "image.verify",
    "DeleteImage": "image.discard",
    "AdoptInstance": "machine.survey",
    "DiscardMachine": "machine.discard",
    "ForgetDifference": "restore.forget",
    "FinishRestore": "restore.finish",
    "DeprovisionProject": "project.forget",
    "DeprovisionUser": "user.forget",
    "ScaleGroup": "group.next",
    "DeprovisionGroup": "group.next",
    "ProvisionLoadBalancer": "lb.apply",
    "UpdateLoadBalancer": "lb.apply",
    "DeprovisionLoadBalancer": "lb.remove",
    "InitSession": "session.prepare",
    "StopSession": "session.change",
    "StartSession": "session.change",
    "CommitSession": "commit.write",
    "DeprovisionSession": "session.discard",
    "ChatTurn": "chat.deliver",
    **dict.fromkeys(("InitWorkspace", "SyncWorkspace"), "workspace.bring"),
    "DeprovisionWorkspace": "workspace.remove",
    "ClearCacheVolume": "cache_volume.clear",
    "DeprovisionCacheVolume": "cache_volume.remove",
}
FIRST = {
    "ProvisionInstance": "instance.place",
    "MoveInstance": "instance.place_beside",
    "DrainHost": "drain.next",
    "ResizeInstance": "instance.hold_size",
    "ImportImage": "image.claim",
    "DeleteImage": "image.claim",
    "DeprovisionProject": "project.next",
    "DeprovisionUser": "user.next",
    **dict.fromkeys(("ScaleGroup", "DeprovisionGroup"), "group.next"),
    "ProvisionLoadBalancer": "lb.claim",
    "UpdateLoadBalancer": "lb.configure",
    "DeprovisionLoadBalancer": "lb.remove",
    "InitSession": "session.begin",
    **dict.fromkeys(("StopSession", "StartSession"), "session.change"),
    "CommitSession": "commit.begin",
    "DeprovisionSession": "session.remove",
    "ChatTurn": "chat.begin",
    **dict.fromkeys(("InitWorkspace", "SyncWorkspace", "DeprovisionWorkspace"), "workspace.claim"),
    **dict.fromkeys(("ClearCacheVolume", "DeprovisionCacheVolume"), "cache_volume.claim"),
    **dict.fromkeys(("AdoptInstance", "DiscardMachine", "ForgetDifference", "FinishRestore"), "restore.claim"),
}
#: What has begun runs to its end.
UNSTOPPED = (
    *("DeprovisionInstance", "DeprovisionProject", "DeprovisionUser", "DeprovisionGroup", "DeprovisionLoadBalancer"),
    *("DeleteImage", "DeprovisionWorkspace", "DeprovisionSession", "DeprovisionCacheVolume"),
)
HOOK = WebhookRef(project_id=new_id(), webhook_id=new_id())
Prepare = Callable[[Stage], object]
Case = tuple[str, str, Prepare, dict[str, Any]]


def of_every_plan() -> list[Case]:
    """(kind, outcome, what the activities do, what the order says): what can happen to all of them."""
    found: list[Case] = []
    for kind, step in MIDDLE.items():
        first = FIRST.get(kind, "instance.claim")

        def failed(stage: Stage, step: str = step) -> None:
            stage.script[step].append(fails(EngineRefused("no")))

        def retried(stage: Stage, step: str = step, first: str = first) -> None:
            stage.script[first].append(fails(ConnectionError("database away")))
            stage.script[step] += [fails(EngineUnavailable("away")), fails(EngineUnavailable("away"))]
            nouns = ("instance", "drain", "image", "restore", "project", "user", "group", "lb", "workspace", "session")
            nouns += ("cache_volume",)
            for noun in nouns:
                stage.script[f"{noun}.settle"].append(fails(ConnectionError("database away")))

        def late(stage: Stage, step: str = step) -> None:
            stage.always[step] = fails(EngineUnavailable("away"))

        def ended(stage: Stage, first: str = first) -> None:
            stage.always[first] = fails(RunEnded("it ended"))

        def cancelled(stage: Stage, step: str = step) -> None:
            stage.script[step].append(Gate(swallow=stage.swallow))

        found += [
            (kind, "completed", lambda stage: None, {}),
            (kind, "failed", failed, {}),
            (kind, "retried", retried, {}),
            (kind, "deadline", late, {"deadline_seconds": 0.5}),
            (kind, "ended-elsewhere", ended, {}),
            (kind, "cancelled", cancelled, {}),
            (kind, "cancel-swallowed", cancelled, {}),
        ]
    return found


def particular_cases() -> list[Case]:
    """Those that only some plans have."""

    def replaced(stage: Stage) -> None:
        stage.script["instance.start"] += [fails(PortTaken("taken", port=port)) for port in (20000, 20001)]

    def replaced_in_vain(stage: Stage) -> None:
        stage.script["instance.start"] += [fails(PortTaken("taken", port=20000)), fails(InstanceExited("gone"))]

    def lapsed(stage: Stage) -> None:
        stage.script["instance.start"].append(fails(LeaseLapsed("the host's lease has lapsed")))

    def undo_failed(stage: Stage) -> None:
        stage.script["instance.start"].append(fails(InstanceExited("gone")))
        stage.always["undo instance.delete"] = fails(EngineRefused("no"))

    def waited(stage: Stage) -> None:
        stage.script["instance.claim"] += [fails(NotReady("another works on it"))] * 3

    def refused(stage: Stage) -> None:
        stage.always["instance.delete"] = fails(EngineRefused("no"))

    def nowhere(stage: Stage) -> None:
        stage.placed = False

    def lost(stage: Stage) -> None:
        stage.leaves = None

    def stopped(stage: Stage) -> None:
        stage.was_running = False

    def paused(stage: Stage) -> None:
        stage.was_running, stage.was_paused = False, True

    def paused_and_ended(stage: Stage) -> None:
        paused(stage)
        stage.script["instance.pause"].append(fails(InstanceExited("it does not run")))

    def paused_and_refused(stage: Stage) -> None:
        paused(stage)
        stage.script["instance.stop"].append(fails(EngineRefused("no")))

    def needs(error: Exception, *then: str) -> Prepare:
        def prepare(stage: Stage) -> None:
            stage.script["instance.adjust"].append(fails(error))
            for step in then:
                stage.script[step].append(fails(InstanceExited("gone")))

        return prepare

    def crashing(stage: Stage) -> None:
        for step in ("instance.start", "undo instance.start"):
            stage.always[step] = fails(InstanceExited("gone"))

    def moves(stage: Stage) -> None:
        stage.rounds = [
            Round(moves=[order("MoveInstance"), order("MoveInstance")], busy=0, stuck=[]),
            Round(moves=[], busy=1, stuck=[]),
        ]

    def continued(stage: Stage) -> None:
        stage.rounds = [Round(moves=[order("MoveInstance") for _ in range(4)], busy=0, stuck=[]) for _ in range(8)]

    def stuck(stage: Stage) -> None:
        moves(stage)
        stage.script["instance.create"].append(fails(EngineRefused("no")))
        stage.rounds.append(Round(moves=[], busy=0, stuck=["web"]))

    def uploaded(stage: Stage) -> None:
        stage.source = {"source": "upload", "digest": f"sha256:{'3' * 64}"}

    def of_registry(stage: Stage, **more: Any) -> None:
        stage.source = {"source": "registry", "reference": "web:1", "host": HOST} | more

    def bad_upload(stage: Stage) -> None:
        uploaded(stage)
        stage.script["image.verify"].append(fails(ImageRefused("a bomb")))

    return [
        ("ImportImage", "apart", lambda stage: None, {}),  # of when images got a queue of their own
        ("ImportImage", "uploaded", uploaded, {}),
        ("ImportImage", "uploaded-failed", bad_upload, {}),
        ("ImportImage", "of-registry", of_registry, {}),
        ("ImportImage", "of-registry-with-login", partial(of_registry, login=True), {}),
        ("HealInstance", "recreated", lambda stage: None, {"recreate": True}),
        ("HealInstance", "stopped", stopped, {}),
        ("HealInstance", "paused", paused, {}),
        ("HealInstance", "paused-and-ended", paused_and_ended, {}),
        ("StopInstance", "paused", paused, {}),
        ("StopInstance", "paused-failed", paused_and_refused, {}),
        ("RestartInstance", "undo-failed", crashing, {}),
        ("RestartInstance", "ended-instead", crashing, {}),
        ("HealInstance", "restarted", needs(NeedsStop("no")), {}),
        ("ResizeInstance", "stopped", stopped, {}),
        ("ResizeInstance", "paused", paused, {}),
        ("ResizeInstance", "restarted", needs(NeedsStop("no")), {}),
        ("ResizeInstance", "restarted-failed", needs(NeedsStop("no"), "instance.start"), {}),
        ("ResizeInstance", "recreated", needs(NeedsRecreate("no")), {"recreate": True}),
        ("ResizeInstance", "recreated-failed", needs(NeedsRecreate("no"), "instance.start"), {"recreate": True}),
        ("ResizeInstance", "not-recreated", needs(NeedsRecreate("no")), {}),
        ("MoveInstance", "host-lost", lost, {"host_lost": True}),
        ("MoveInstance", "stopped", stopped, {}),
        ("ProvisionInstance", "lease-lapsed", lapsed, {}),
        ("MoveInstance", "lease-lapsed", lapsed, {}),
        ("HealInstance", "fenced-off", lapsed, {}),
        ("DrainHost", "moves", moves, {}),
        ("DrainHost", "stuck", stuck, {}),
        ("DrainHost", "continued", continued, {}),
        ("ProvisionInstance", "port-replaced", replaced, {}),
        ("ProvisionInstance", "port-replaced-failed", replaced_in_vain, {}),
        ("ProvisionInstance", "fixed-port-taken", replaced, {"fixed_ports": [20000]}),
        ("ProvisionInstance", "undo-failed", undo_failed, {}),
        ("DeprovisionInstance", "waited", waited, {}),
        ("DeprovisionInstance", "forced", refused, {"force": True}),
        ("DeprovisionInstance", "nowhere", nowhere, {}),
    ]


def cases_of_projects() -> list[Case]:
    def emptied(stage: Stage) -> None:
        """In rounds, the last of them for what came meanwhile."""
        first = Emptying(deletions=[order("DeprovisionInstance"), order("DeprovisionInstance")], busy=1)
        last = Emptying(deletions=[order("DeleteImage", resource_type="image")])
        stage.emptying = [first, Emptying(busy=1), last, Emptying(), Emptying(deletions=[order("DeprovisionInstance")])]
        stage.forgotten = [False, True]

    def not_emptied(stage: Stage) -> None:
        stage.emptying = [Emptying(deletions=[order("DeprovisionInstance")]), Emptying(stuck=["web"], left=1)]
        stage.script["instance.delete"].append(fails(EngineRefused("no")))

    def long(stage: Stage) -> None:
        stage.emptying = [Emptying(deletions=[order("DeprovisionInstance") for _ in range(6)]) for _ in range(8)]

    def left(stage: Stage) -> None:
        """Two projects at once, one that is deleted already, and then the personal one."""
        project = {"resource_type": "project"}
        first = Emptying(deletions=[order("DeprovisionProject", **project), order("DeprovisionProject", **project)])
        last = Emptying(deletions=[order("DeprovisionProject", **project)])
        stage.leaving = [first, Emptying(busy=1), last]

    def not_left(stage: Stage) -> None:
        stage.leaving = [Emptying(stuck=["project 1"], left=1)]

    def back(stage: Stage) -> None:
        stage.forgotten = [False]

    return [
        ("DeprovisionUser", "emptied", left, {}),
        ("DeprovisionUser", "not-emptied", not_left, {}),
        ("DeprovisionUser", "activated", back, {}),
        ("DeprovisionProject", "emptied", emptied, {}),
        ("DeprovisionProject", "not-emptied", not_emptied, {}),
        ("DeprovisionProject", "continued", long, {}),
    ]


def cases_of_groups() -> list[Case]:
    def launches(number: int) -> GroupRound:
        return GroupRound(launches=[order("ProvisionInstance") for _ in range(number)])

    def scaled(stage: Stage) -> None:
        """Out, and then in; the second round has some of the first again, and something to wait for."""
        first = launches(6)
        second = GroupRound(launches=[*first.launches[4:], order("ProvisionInstance")])
        removed = GroupRound(removals=[order("DeprovisionInstance"), order("DeprovisionInstance")])
        stage.group_rounds = [first, second, GroupRound(waits=True), removed]

    def replaced(stage: Stage) -> None:
        """A launch that fails is deleted, and another takes its place."""
        stage.script["instance.start"].append(fails(InstanceExited("gone")))
        both = GroupRound(launches=launches(1).launches, removals=[order("DeprovisionInstance")])
        stage.group_rounds = [launches(1), both]

    def given_up(stage: Stage) -> None:
        replaced(stage)
        why = Failure(code="instance_exited", message="gave up")
        stage.group_rounds.append(GroupRound(failure=why))

    def released(stage: Stage) -> None:
        """Members leave two balancers, one of which is asked again."""
        stage.group_rounds = [GroupRound(removals=[order("DeprovisionInstance"), order("DeprovisionInstance")])]
        stage.draining = [["t-1"], ["t-2"]]
        stage.releases = [[order("UpdateLoadBalancer"), order("UpdateLoadBalancer")], [order("UpdateLoadBalancer")]]

    def long(stage: Stage) -> None:
        stage.group_rounds = [launches(4) for _ in range(8)]

    return [
        ("ScaleGroup", "scaled", scaled, {}),
        ("ScaleGroup", "replaced", replaced, {}),
        ("ScaleGroup", "given-up", given_up, {}),
        ("ScaleGroup", "released", released, {}),
        ("ScaleGroup", "continued", long, {}),
        ("DeprovisionGroup", "scaled", scaled, {}),
        ("DeprovisionGroup", "continued", long, {}),
    ]


def cases_of_balancers() -> list[Case]:
    def draining(stage: Stage) -> None:
        stage.draining = [["t-1", "t-2"]]

    def not_launched(stage: Stage) -> None:
        stage.script["instance.create"].append(fails(EngineRefused("no")))

    def waited(stage: Stage) -> None:
        stage.script["lb.configure"] += [fails(NotReady("its instance moves"))] * 2

    def same(stage: Stage) -> None:
        stage.placed = False

    def draining_failed(stage: Stage) -> None:
        draining(stage)
        stage.script["lb.drain"].append(fails(EngineRefused("no")))

    def not_deleted(stage: Stage) -> None:
        stage.script["instance.delete"].append(fails(EngineRefused("no")))

    return [
        ("ProvisionLoadBalancer", "not-launched", not_launched, {}),
        ("UpdateLoadBalancer", "waited", waited, {}),
        ("UpdateLoadBalancer", "nothing-to-do", same, {}),
        ("UpdateLoadBalancer", "drained", draining, {}),
        ("UpdateLoadBalancer", "drained-failed", draining_failed, {}),
        ("DeprovisionLoadBalancer", "gone", same, {}),
        ("DeprovisionLoadBalancer", "not-deleted", not_deleted, {}),
    ]


def cases_of_sessions() -> list[Case]:
    def not_launched(stage: Stage) -> None:
        stage.script["instance.create"].append(fails(EngineRefused("no")))

    def same(stage: Stage) -> None:
        stage.placed = False

    def waited(stage: Stage) -> None:
        stage.script["session.change"] += [fails(NotReady("its sandbox is worked on"))] * 2

    def refused(stage: Stage) -> None:
        stage.script["session.discard"].append(fails(EngineRefused("no")))

    def moved(stage: Stage) -> None:
        stage.script["commit.advance"].append(fails(WorkspaceMoved("the workspace is at another commit")))

    def not_published(stage: Stage) -> None:
        stage.script["commit.publish"].append(fails(EngineRefused("no")))

    def warm(stage: Stage) -> None:
        stage.warm = True

    def not_joined(stage: Stage) -> None:
        stage.warm = True
        stage.script["session.join"].append(fails(EngineRefused("no")))

    def called_off(stage: Stage) -> None:
        stage.script["session.begin"].append(Gate())

    def called_off_warm(stage: Stage) -> None:
        stage.warm = True
        called_off(stage)

    def taken_over(stage: Stage) -> None:
        stage.taken_over = True
        called_off(stage)

    return [
        ("InitSession", "cancelled-at-first", called_off, {}),
        ("InitSession", "cancelled-at-first-warm", called_off_warm, {}),
        ("InitSession", "cancelled-taken-over", taken_over, {}),
        ("InitSession", "warm", warm, {}),
        ("InitSession", "not-joined", not_joined, {}),
        ("InitSession", "not-launched", not_launched, {}),
        ("InitSession", "nowhere", same, {}),
        ("StopSession", "waited", waited, {}),
        ("StopSession", "nothing-to-do", same, {}),
        ("DeprovisionSession", "gone", same, {}),
        ("DeprovisionSession", "forced", refused, {"force": True}),
        ("CommitSession", "unchanged", same, {}),
        ("CommitSession", "moved", moved, {"message": "Mend it", "author": "Ada <ada@example.org>"}),
        ("CommitSession", "not-published", not_published, {"message": "Mend it"}),
    ]


def cases_of_workspaces() -> list[Case]:
    def nowhere(stage: Stage) -> None:
        stage.placed = False

    def refused(stage: Stage) -> None:
        stage.script["workspace.remove"].append(fails(EngineRefused("no")))

    def undo_failed(stage: Stage) -> None:
        stage.script["workspace.bring"].append(fails(FetchFailed("no such repository")))
        stage.always["undo workspace.remove"] = fails(EngineRefused("no"))

    def waited(stage: Stage) -> None:
        stage.script["workspace.claim"] += [fails(NotReady("another run"))] * 2
        stage.script["workspace.place"].append(fails(NotReady("silent")))

    return [
        ("InitWorkspace", "waited", waited, {}),
        ("InitWorkspace", "undo-failed", undo_failed, {}),
        ("DeprovisionWorkspace", "nowhere", nowhere, {}),
        ("DeprovisionWorkspace", "forced", refused, {"force": True}),
        ("DeprovisionWorkspace", "waited", waited, {}),
    ]


def cases_of_cache_volumes() -> list[Case]:
    def nowhere(stage: Stage) -> None:
        stage.placed = False

    def on_several(stage: Stage) -> None:
        stage.cached = [HOST] * 3

    def not_everywhere(step: str) -> Prepare:
        def prepare(stage: Stage) -> None:
            on_several(stage)
            stage.script[step].append(fails(EngineRefused("no")))

        return prepare

    def waited(stage: Stage) -> None:
        stage.script["cache_volume.claim"] += [fails(NotReady("another run"))] * 2

    return [
        ("ClearCacheVolume", "nowhere", nowhere, {}),
        ("ClearCacheVolume", "on-several", on_several, {}),
        ("ClearCacheVolume", "on-several-failed", not_everywhere("cache_volume.clear"), {}),
        ("DeprovisionCacheVolume", "nowhere", nowhere, {}),
        ("DeprovisionCacheVolume", "on-several", on_several, {}),
        ("DeprovisionCacheVolume", "forced", not_everywhere("cache_volume.remove"), {"force": True}),
        ("DeprovisionCacheVolume", "waited", waited, {}),
    ]


async def record(play: Theatre, kind: str, outcome: str, prepare: Prepare, values: dict[str, Any]) -> str:
    play.stage.swallow = outcome == "cancel-swallowed"
    prepare(play.stage)
    handle = await play.start(kind, **values)
    if outcome.startswith("cancel"):
        (gate,) = [act for acts in play.stage.script.values() for act in acts if isinstance(act, Gate)]
        await gate.reached.wait()
        await handle.cancel()
        if kind in UNSTOPPED:
            await asyncio.sleep(0.5)
            gate.opened.set()
    await asyncio.wait([asyncio.ensure_future(handle.result())], timeout=30)
    # The first of its runs, where it goes on in others.
    return await written(play.client.get_workflow_handle(handle.id, run_id=handle.first_execution_run_id))


async def record_system(play: Theatre, name: str, prepare: Prepare, *args: Any) -> str:
    prepare(play.stage)
    handle = await play.client.start_workflow(name, args=list(args), id=str(new_id()), task_queue=CONTROL)
    await handle.result()
    return await written(handle)


async def record_cron(play: Theatre, kind: TargetKind | None, prepare: Prepare, held: str | None = None) -> str:
    """A run of a cron job; ``held``: the step in which it is called off."""
    play.stage.cron_kind = kind
    prepare(play.stage)
    time = CronTime(project_id=new_id(), job_id=new_id(), run_id=new_id())
    gate = Gate()
    if held is not None:
        play.stage.script[held].append(gate)
    handle = await play.client.start_workflow("RunCronJob", time, id=str(new_id()), task_queue=CONTROL)
    if held is not None:
        await gate.reached.wait()
        await handle.cancel()
    await asyncio.wait([asyncio.ensure_future(handle.result())], timeout=30)
    return await written(handle)


def of_cron_jobs() -> dict[str, Callable[[Theatre], Awaitable[str]]]:
    def nothing(stage: Stage) -> None: ...

    def failed(stage: Stage) -> None:
        stage.script["cron.request"].append(fails(EngineRefused("no")))
        stage.script["cron.act"].append(fails(EngineRefused("no")))

    def ended_badly(stage: Stage) -> None:
        stage.cron_failure = Failure(code="no_capacity", message="full")

    return {
        "RunCronJob-completed": lambda play: record_cron(play, "http", nothing),
        "RunCronJob-nothing-to-do": lambda play: record_cron(play, None, nothing),
        "RunCronJob-failed": lambda play: record_cron(play, "http", failed),
        "RunCronJob-retried": lambda play: record_cron(play, "workflow", passing),
        "RunCronJob-cancelled": lambda play: record_cron(play, "http", nothing, "cron.request"),
        "RunCronJob-exec": lambda play: record_cron(play, "exec", nothing),
        "RunCronJob-workflow-refused": lambda play: record_cron(play, "workflow", failed),
        "RunCronJob-workflow-failed": lambda play: record_cron(play, "workflow", ended_badly),
        "RunCronJob-workflow-cancelled": lambda play: record_cron(play, "workflow", nothing, "cron.watch"),
        "CompareCronJobs-completed": lambda play: record_system(play, "CompareCronJobs", nothing),
        "CompareCronJobs-retried": lambda play: record_system(play, "CompareCronJobs", passing),
    }


async def written(handle: WorkflowHandle[Any, Any]) -> str:
    async def closed() -> bool:
        return (await handle.describe()).close_time is not None

    assert await eventually(closed)
    return json.dumps(without_traces((await handle.fetch_history()).to_json_dict()), indent=1)


def without_traces(part: Any) -> Any:
    """Failures say where in the source they came from, which is of no use to a replay."""
    if isinstance(part, dict):
        return {name: without_traces(value) for name, value in part.items() if name != "stackTrace"}
    return [without_traces(value) for value in part] if isinstance(part, list) else part


def leftovers(stage: Stage) -> None:
    stage.leftovers = [[OwnedMachine(engine_id="e", id=new_id(), generation=1, running=False)]]


def deliveries(stage: Stage) -> None:
    """Two rounds that go well, and one whose receiver asks for time."""
    stage.rounds_of_deliveries = [0, 0.5, 0]


def passing(stage: Stage) -> None:
    stage.rounds_of_deliveries = [0]
    for name in (
        "host.inventory",
        "machine.survey",
        "image.collect",
        "image.caches",
        "image.sweep",
        "samples.coarsen",
        "rows.purge",
        "audit.seal",
        "quota.compare",
        "secrets.reencrypt",
        "tick.sweep",
        "webhook.take",
        "webhook.deliver",
        "cron.begin",
        "cron.request",
        "cron.act",
        "cron.watch",
        "cron.settle",
        "cron.compare",
    ):
        stage.script[name].append(fails(EngineUnavailable("away")))


def much(stage: Stage) -> None:
    stage.purged = [Purged(events=1000, more=True), Purged(events=1)]
    stage.sealed = [Sealed(links=20_000, more=True), Sealed(links=1)]
    stage.reencrypted = [Reencrypted(versions=200, more=True), Reencrypted(keys=1)]


async def main(version: str) -> None:
    folder = FOLDER / version
    folder.mkdir(exist_ok=True)
    recorders: dict[str, Callable[[Theatre], Awaitable[str]]] = {
        f"{kind}-{outcome}": lambda play, case=(kind, outcome, prepare, values): record(play, *case)
        for kind, outcome, prepare, values in [
            *(*of_every_plan(), *particular_cases(), *cases_of_projects()),
            *(
                *cases_of_groups(),
                *cases_of_balancers(),
                *cases_of_workspaces(),
                *cases_of_cache_volumes(),
                *cases_of_sessions(),
            ),
        ]
    } | {
        "SurveyHost-completed": lambda play: record_system(play, "SurveyHost", lambda _: None, HOST),
        "SurveyHost-retried": lambda play: record_system(play, "SurveyHost", passing, HOST),
        "SweepBlobs-completed": lambda play: record_system(play, "SweepBlobs", lambda _: None),
        "SweepBlobs-retried": lambda play: record_system(play, "SweepBlobs", passing),
        "CollectImages-completed": lambda play: record_system(play, "CollectImages", lambda _: None, HOST, DAYS),
        "CollectImages-retried": lambda play: record_system(play, "CollectImages", passing, HOST, DAYS),
        "Tick-completed": lambda play: record_system(play, "Tick", lambda _: None),
        "Tick-retried": lambda play: record_system(play, "Tick", passing),
        "CoarsenSamples-completed": lambda play: record_system(play, "CoarsenSamples", lambda _: None),
        "CoarsenSamples-retried": lambda play: record_system(play, "CoarsenSamples", passing),
        "SealAudit-completed": lambda play: record_system(play, "SealAudit", lambda _: None),
        "SealAudit-retried": lambda play: record_system(play, "SealAudit", passing),
        "SealAudit-again": lambda play: record_system(play, "SealAudit", much),
        "Purge-completed": lambda play: record_system(play, "Purge", lambda _: None),
        "Purge-retried": lambda play: record_system(play, "Purge", passing),
        "Purge-again": lambda play: record_system(play, "Purge", much),
        "CompareQuotas-completed": lambda play: record_system(play, "CompareQuotas", lambda _: None),
        "CompareQuotas-retried": lambda play: record_system(play, "CompareQuotas", passing),
        "ReencryptSecrets-completed": lambda play: record_system(play, "ReencryptSecrets", lambda _: None),
        "ReencryptSecrets-retried": lambda play: record_system(play, "ReencryptSecrets", passing),
        "ReencryptSecrets-again": lambda play: record_system(play, "ReencryptSecrets", much),
        "DeliverWebhook-completed": lambda play: record_system(play, "DeliverWebhook", deliveries, HOOK),
        "DeliverWebhook-retried": lambda play: record_system(play, "DeliverWebhook", passing, HOOK),
        "ReconcileHost-completed": lambda play: record_system(play, "ReconcileHost", lambda _: None, HOST),
        "ReconcileHost-retried": lambda play: record_system(play, "ReconcileHost", passing, HOST),
        "ReconcileHost-leftovers": lambda play: record_system(play, "ReconcileHost", leftovers, HOST),
    }
    recorders |= of_cron_jobs()
    async with server() as environment:
        for name, recorder in recorders.items():
            path = folder / f"{name}.json"
            if path.exists():
                continue
            async with theatre(environment.client) as play:
                path.write_text(await recorder(play) + "\n")
                print(path.relative_to(FOLDER), "; ".join(play.stage.calls))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
