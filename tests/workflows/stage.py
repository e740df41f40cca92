"""Plans on a real Temporal server, with the real sandbox, and stand-ins for all activities.

A ``Stage`` writes down what is called, in order, and does in each activity what a test put into
``script``: raise an error, wait at a gate, or something of its own.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

from temporalio import activity
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

import activities.interceptor
from activities.audit import Sealed
from activities.balancer_ends import BalancerEnd
from activities.balancers import Configuration
from activities.cache_volume_ends import CacheVolumeEnd
from activities.chats import CHATS
from activities.commits import CommitBegun, Committed
from activities.cron_calls import API, CRON
from activities.drains import DrainEnd, Round
from activities.groups import GroupEnd, GroupRound, Release
from activities.hosts import Inventory
from activities.image_records import ImageEnd, Import
from activities.images import IMAGES, HostImages, ImageFacts
from activities.instances import Placement, PlaceRequest, Settlement, StopRequest
from activities.project_ends import ProjectEnd
from activities.purge import Purged
from activities.quotas import Compared
from activities.reencryption import Reencrypted
from activities.registry import methods
from activities.restores import Adoption, Decision, RestoreEnd, Survey
from activities.rounds import Emptying
from activities.runs import CONTROL, host_queue, start
from activities.samples import Coarsened
from activities.session_ends import SessionEnd
from activities.sessions import Sandbox
from activities.sweeper import Swept
from activities.user_ends import UserEnd
from activities.webhooks import WEBHOOKS, Batch
from activities.workspace_ends import WorkspaceEnd
from activities.workspaces import Placed
from model.balancers import AppliedSpec, BalancerSettings, BalancerSpec, DrainRequest
from model.base import new_id
from model.cache_volumes import CacheHosts, CacheSpec
from model.cron import CronEnd, CronTurn, TargetKind
from model.health import HealthCheck
from model.images import ImageFound, ImageWanted
from model.instances import MachineSpec, MachineState, OwnedMachine, Port
from model.pools import Join
from model.restores import FoundMachine
from model.sessions import CommitSpec, SessionTree
from model.webhooks import WebhookRef
from model.workflows import Failure, Order
from model.workspaces import WorkspaceFacts, WorkspaceSpec
from tests.workflows.chat_stage import ChatApi, ChatControl
from tests.workflows.cron_stage import CronApi, CronControl, CronTargets
from worker.temporal import DYNAMIC_CONFIG, SEARCH_ATTRIBUTES, find_binary
from worker.temporal_client import DATA_CONVERTER
from workflows.plans import PLANS

HOST = "one"
#: Events of a history after which the server suggests that it goes on in a new one: so many that no short run sees it.
LONG = 150
Act = Callable[[], Awaitable[Any]]


class Gate:
    """Where an activity waits, and a test knows that it does."""

    def __init__(self, *, swallow: bool = False, error: Exception | None = None) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self._swallow = swallow
        self._error = error

    async def __call__(self) -> None:
        self.reached.set()
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            if self._error is not None:
                raise self._error from None
            if not self._swallow:
                raise


def fails(error: Exception) -> Act:
    async def act() -> None:
        raise error

    return act


class Stage:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.settled: list[Settlement] = []
        #: activity → what its next attempts do; without an entry they succeed.
        self.script: dict[str, list[Act]] = defaultdict(list)
        self.always: dict[str, Act] = {}
        self.ports: Iterator[int] = iter(range(20000, 30000))
        self.specs: list[MachineSpec] = []
        self.adjusted: list[MachineSpec] = []
        self.placed = True
        #: Of a session: it has claimed a sandbox that runs.
        self.warm = False
        #: Its delete removes what a session that is called off has.
        self.taken_over = False
        #: What the image is found to be.
        self.digest: str | None = f"sha256:{'1' * 64}"
        #: Whether the instance ran before, and whether its old host can be reached.
        self.was_running = True
        self.was_paused = False
        self.health_check: HealthCheck | None = None
        self.leaves: str | None = HOST
        #: What is to be imported, and how it ended.
        self.source: dict[str, Any] = {"source": "url", "url": "https://images.example.org/base.tar"}
        self.pulled: list[ImageWanted] = []
        self.imported: list[ImageEnd] = []
        self.rounds: list[Round] = []
        self.drained: list[DrainEnd] = []
        #: What is deleted of a project, round by round, and whether nothing had come meanwhile.
        self.emptying: list[Emptying] = []
        self.forgotten: list[bool] = []
        self.projects_ended: list[ProjectEnd] = []
        #: The same of a user.
        self.leaving: list[Emptying] = []
        self.users_ended: list[UserEnd] = []
        #: What a run of a group does, round by round.
        self.group_rounds: list[GroupRound] = []
        self.groups_ended: list[GroupEnd] = []
        #: The changes of balancers that members wait for before they go, look by look.
        self.releases: list[list[Order]] = []
        self.leftovers: list[list[OwnedMachine]] = []
        self.purged: list[Purged] = []
        self.sealed: list[Sealed] = []
        self.reencrypted: list[Reencrypted] = []
        #: What a webhook still has to be sent, in rounds: seconds that each of them asks to wait.
        self.rounds_of_deliveries: list[float] = []
        #: What a cron job calls (None: the time has had its run), and how the workflow that it starts ends.
        self.cron_kind: TargetKind | None = "http"
        self.cron_failure: Failure | None = None
        self.turns: list[CronTurn] = []
        self.cron_ends: list[CronEnd] = []
        #: The servers that leave a balancer, look by look; how its runs ended.
        self.draining: list[list[str]] = []
        self.balanced: list[BalancerEnd] = []
        #: How runs of work sessions ended.
        self.sessions_ended: list[SessionEnd] = []
        self.fetched: list[WorkspaceEnd] = []
        #: Where a cache volume is, and how runs on it ended.
        self.cached = [HOST]
        self.cleared: list[CacheVolumeEnd] = []
        #: Whether a cancelled activity ends as if nothing had happened.
        self.swallow = False

    async def play(self, note: str = "") -> None:
        name = activity.info().activity_type
        undo = "undo " if activity.info().activity_id.startswith("undo") else ""
        self.calls.append(f"{undo}{name}{note}")
        script = self.script[name]
        if script and not undo:
            await script.pop(0)()
        elif ((act := self.always.get(name)) and not undo) or (undo and (act := self.always.get(f"undo {name}"))):
            await act()

    def sandbox(self, order: Order) -> Sandbox:
        tree = SessionTree(session=order.resource_id, workspace=new_id(), commit="1" * 40)
        return Sandbox(host=HOST if self.placed else None, tree=tree, warm=self.spec(order, 1) if self.warm else None)

    def part(self, kind: str) -> Order | None:
        """What a balancer's run does to its proxy, a session's to its sandbox; None where that is gone."""
        return order(kind) if self.placed else None

    def spec(self, order: Order, generation: int, port: int | None = None) -> MachineSpec:
        ports = [Port(host_port=port, container_port=80)] if port else []
        size: dict[str, Any] = {"vcpus": 1, "memory_mb": 512}
        return MachineSpec(
            id=order.resource_id,
            project_id=order.project_id,
            generation=generation,
            name=order.name,
            image="cairn/base",
            ports=ports,
            health_check=self.health_check,
            **size,
        )


class Control:
    """Stands in for the activities of the control queue."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @activity.defn(name="instance.place")
    async def place(self, request: PlaceRequest) -> Placement:
        avoided = f" avoiding {len(request.avoid_ports)}" if request.avoid_ports else ""
        await self._stage.play(avoided)
        port = request.order.fixed_ports[0] if request.order.fixed_ports else next(self._stage.ports)
        spec = self._stage.spec(request.order, len(request.avoid_ports) + 1, port)
        self._stage.specs.append(spec)
        return Placement(host=HOST, spec=spec)

    @activity.defn(name="instance.claim")
    async def claim(self, order: Order) -> Placement:
        await self._stage.play()
        host = HOST if self._stage.placed else None
        stage = self._stage
        return Placement(
            host=host, spec=stage.spec(order, 1), was_running=stage.was_running, was_paused=stage.was_paused
        )

    @activity.defn(name="instance.hold_size")
    async def hold_size(self, order: Order) -> Placement:
        await self._stage.play()
        stage = self._stage
        return Placement(
            host=HOST if stage.placed else None,
            spec=stage.spec(order, 2 if order.recreate else 1).model_copy(update={"memory_mb": 1024}),
            was_running=stage.was_running,
            was_paused=stage.was_paused,
            leaves=HOST,
            old_spec=stage.spec(order, 1),
        )

    @activity.defn(name="instance.place_beside")
    async def place_beside(self, request: PlaceRequest) -> Placement:
        order = request.order
        await self._stage.play(f" avoiding {len(request.avoid_ports)}" if request.avoid_ports else "")
        return Placement(
            host=HOST,
            spec=self._stage.spec(order, 2 + len(request.avoid_ports)),
            was_running=self._stage.was_running,
            leaves=self._stage.leaves,
            old_spec=self._stage.spec(order, 1),
        )

    @activity.defn(name="instance.switch")
    async def switch(self, order: Order) -> None:
        await self._stage.play()

    @activity.defn(name="instance.stay")
    async def stay(self, order: Order) -> None:
        await self._stage.play()

    @activity.defn(name="drain.next")
    async def next(self, order: Order) -> Round:
        await self._stage.play()
        return self._stage.rounds.pop(0) if self._stage.rounds else Round(moves=[], busy=0, stuck=[])

    @activity.defn(name="drain.settle")
    async def end(self, end: DrainEnd) -> None:
        await self._stage.play(f" {end.outcome}")
        self._stage.drained.append(end)

    @activity.defn(name="project.next")
    async def next_deletions(self, order: Order) -> Emptying:
        await self._stage.play()
        return self._stage.emptying.pop(0) if self._stage.emptying else Emptying()

    @activity.defn(name="project.forget")
    async def forget_project(self, order: Order) -> bool:
        await self._stage.play()
        return self._stage.forgotten.pop(0) if self._stage.forgotten else True

    @activity.defn(name="project.settle")
    async def settle_project(self, ended: ProjectEnd) -> None:
        await self._stage.play(f" {ended.outcome}")
        self._stage.projects_ended.append(ended)

    @activity.defn(name="user.next")
    async def next_projects(self, order: Order) -> Emptying:
        await self._stage.play()
        return self._stage.leaving.pop(0) if self._stage.leaving else Emptying()

    @activity.defn(name="user.forget")
    async def forget_user(self, order: Order) -> bool:
        await self._stage.play()
        return self._stage.forgotten.pop(0) if self._stage.forgotten else True

    @activity.defn(name="user.settle")
    async def settle_user(self, ended: UserEnd) -> None:
        await self._stage.play(f" {ended.outcome}")
        self._stage.users_ended.append(ended)

    @activity.defn(name="group.next")
    async def next_of_group(self, order: Order) -> GroupRound:
        await self._stage.play()
        return self._stage.group_rounds.pop(0) if self._stage.group_rounds else GroupRound()

    @activity.defn(name="group.release")
    async def release(self, release: Release) -> list[Order]:
        await self._stage.play(f" {len(release.removals)}")
        return self._stage.releases.pop(0) if self._stage.releases else []

    @activity.defn(name="group.settle")
    async def settle_group(self, ended: GroupEnd) -> None:
        await self._stage.play(f" {ended.outcome}")
        self._stage.groups_ended.append(ended)

    @activity.defn(name="lb.claim")
    async def claim_balancer(self, order: Order) -> Order | None:
        await self._stage.play()
        return self._stage.part("ProvisionInstance")

    @activity.defn(name="lb.configure")
    async def configure(self, order: Order) -> Configuration:
        await self._stage.play()
        stage = self._stage
        spec = BalancerSpec(
            machine=stage.spec(order, 1), revision=1, text="", structure="", weights={}, settle_seconds=0
        )
        draining = stage.draining.pop(0) if stage.draining else []
        about = {"host": HOST, "digest": "1", "settings": BalancerSettings(drain_seconds=1), "draining": draining}
        return Configuration(spec=spec if stage.placed else None, **about)

    @activity.defn(name="lb.drained")
    async def drained(self, order: Order) -> None:
        await self._stage.play()

    @activity.defn(name="lb.remove")
    async def remove_proxy(self, order: Order) -> Order | None:
        await self._stage.play()
        return self._stage.part("DeprovisionInstance")

    @activity.defn(name="session.begin")
    async def begin_session(self, order: Order) -> Sandbox:
        await self._stage.play()
        return self._stage.sandbox(order)

    @activity.defn(name="session.launch")
    async def launch_sandbox(self, order: Order) -> Order | None:
        await self._stage.play()
        return self._stage.part("ProvisionInstance")

    @activity.defn(name="session.change")
    async def change_sandbox(self, order: Order) -> Order | None:
        await self._stage.play()
        return self._stage.part("StopInstance" if order.kind == "StopSession" else "StartInstance")

    @activity.defn(name="session.remove")
    async def remove_sandbox(self, order: Order) -> Sandbox | None:
        await self._stage.play()
        if self._stage.taken_over:
            return None
        return self._stage.sandbox(order).model_copy(update={"change": self._stage.part("DeprovisionInstance")})

    @activity.defn(name="commit.begin")
    async def begin_commit(self, order: Order) -> CommitBegun:
        await self._stage.play()
        tree = self._stage.sandbox(order).tree
        about = {"id": order.workflow_id, "project_id": order.project_id, "tree": tree, "parent": tree.commit, "at": 0}
        return CommitBegun(host=HOST, spec=CommitSpec(message=order.message, author=order.author, **about))

    @activity.defn(name="commit.advance")
    async def advance(self, committed: Committed) -> None:
        await self._stage.play()

    @activity.defn(name="session.settle")
    async def settle_session(self, ended: SessionEnd) -> None:
        await self._stage.play(f" {ended.outcome}")
        self._stage.sessions_ended.append(ended)

    @activity.defn(name="lb.settle")
    async def settle_balancer(self, ended: BalancerEnd) -> None:
        await self._stage.play(f" {ended.outcome}")
        self._stage.balanced.append(ended)

    @activity.defn(name="workspace.claim")
    async def claim_workspace(self, order: Order) -> None:
        await self._stage.play()

    @activity.defn(name="workspace.place")
    async def place_workspace(self, order: Order) -> Placed:
        await self._stage.play()
        about = {"id": order.resource_id, "project_id": order.project_id, "name": order.name}
        return Placed(host=HOST if self._stage.placed else None, spec=WorkspaceSpec.model_validate(about))

    @activity.defn(name="workspace.settle")
    async def settle_workspace(self, ended: WorkspaceEnd) -> None:
        await self._stage.play(f" {ended.outcome}")
        self._stage.fetched.append(ended)

    @activity.defn(name="cache_volume.claim")
    async def claim_cache_volume(self, order: Order) -> CacheHosts:
        await self._stage.play()
        spec = CacheSpec(id=order.resource_id, project_id=order.project_id)
        return CacheHosts(hosts=self._stage.cached if self._stage.placed else [], spec=spec)

    @activity.defn(name="cache_volume.settle")
    async def settle_cache_volume(self, ended: CacheVolumeEnd) -> None:
        await self._stage.play(f" {ended.outcome}")
        self._stage.cleared.append(ended)

    @activity.defn(name="instance.settle")
    async def settle(self, settlement: Settlement) -> None:
        await self._stage.play(f" {settlement.outcome}")
        self._stage.settled.append(settlement)

    @activity.defn(name="image.claim")
    async def claim_image(self, order: Order) -> Import:
        await self._stage.play()
        return Import(order=order, **self._stage.source)

    @activity.defn(name="image.discard")
    async def discard(self, order: Order) -> None:
        await self._stage.play()

    @activity.defn(name="image.settle")
    async def settle_image(self, ended: ImageEnd) -> None:
        await self._stage.play(f" {ended.outcome}")
        self._stage.imported.append(ended)

    @activity.defn(name="image.caches")
    async def caches(self, found: HostImages) -> None:
        await self._stage.play()

    @activity.defn(name="image.sweep")
    async def sweep_blobs(self) -> int:
        await self._stage.play()
        return 0

    @activity.defn(name="host.reconcile")
    async def reconcile(self, inventory: Inventory) -> list[OwnedMachine]:
        await self._stage.play(f" {len(inventory.machines)}")
        return self._stage.leftovers.pop(0) if self._stage.leftovers else []

    @activity.defn(name="tick.sweep")
    async def sweep(self) -> Swept:
        await self._stage.play()
        return Swept()

    @activity.defn(name="webhook.take")
    async def take(self, ref: WebhookRef) -> Batch:
        await self._stage.play()
        return Batch(webhook=ref, deliveries=[new_id()] if self._stage.rounds_of_deliveries else [])

    @activity.defn(name="restore.note")
    async def note(self, survey: Survey) -> None:
        await self._stage.play(f" {len(survey.machines)}")

    @activity.defn(name="restore.claim")
    async def claim_restore(self, order: Order) -> Decision:
        await self._stage.play()
        machine = OwnedMachine(engine_id="e-1", id=order.resource_id, generation=1, running=True)
        return Decision(host=HOST, machine=machine) if self._stage.placed else Decision(host=None, machine=None)

    @activity.defn(name="restore.adopt")
    async def adopt(self, adoption: Adoption) -> None:
        await self._stage.play(f" {len(adoption.machines)}")

    @activity.defn(name="restore.forget")
    async def forget(self, order: Order) -> None:
        await self._stage.play()

    @activity.defn(name="restore.finish")
    async def finish(self, order: Order) -> None:
        await self._stage.play()

    @activity.defn(name="restore.settle")
    async def settle_restore(self, ended: RestoreEnd) -> None:
        await self._stage.play(f" {ended.outcome}")

    @activity.defn(name="samples.coarsen")
    async def coarsen(self) -> Coarsened:
        await self._stage.play()
        return Coarsened()

    @activity.defn(name="audit.seal")
    async def seal(self) -> Sealed:
        await self._stage.play()
        return self._stage.sealed.pop(0) if self._stage.sealed else Sealed()

    @activity.defn(name="quota.compare")
    async def compare_quotas(self) -> Compared:
        await self._stage.play()
        return Compared()

    @activity.defn(name="rows.purge")
    async def purge(self) -> Purged:
        await self._stage.play()
        return self._stage.purged.pop(0) if self._stage.purged else Purged()

    @activity.defn(name="secrets.reencrypt")
    async def reencrypt(self) -> Reencrypted:
        await self._stage.play()
        return self._stage.reencrypted.pop(0) if self._stage.reencrypted else Reencrypted()


class Importer:
    """Stands in for the activities of the queue of images."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @activity.defn(name="image.download")
    async def download(self, asked: Import) -> str:
        await self._stage.play()
        return f"sha256:{'2' * 64}"

    @activity.defn(name="image.verify")
    async def verify(self, asked: Import) -> ImageFacts:
        await self._stage.play(f" {str(asked.digest)[:8]}")
        return ImageFacts(digest=asked.digest, size_bytes=1, format="rootfs-tar")


class Receivers:
    """Stands in for the activities of the queue of deliveries."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @activity.defn(name="webhook.deliver")
    async def deliver(self, batch: Batch) -> float:
        await self._stage.play()
        return self._stage.rounds_of_deliveries.pop(0)


class Engine:
    """Stands in for the activities of a host's queue."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @activity.defn(name="image.ensure")
    async def ensure(self, spec: MachineSpec) -> ImageFound:
        await self._stage.play()
        return ImageFound(digest=spec.image_digest or self._stage.digest)

    @activity.defn(name="image.pull")
    async def pull(self, wanted: ImageWanted) -> ImageFound:
        self._stage.pulled.append(wanted)
        await self._stage.play()
        return ImageFound(digest=self._stage.digest)

    @activity.defn(name="image.collect")
    async def collect(self, unused_for: timedelta) -> HostImages:
        await self._stage.play()
        return HostImages(host=HOST, images=[])

    @activity.defn(name="session.prepare")
    async def prepare(self, tree: SessionTree) -> None:
        await self._stage.play()

    @activity.defn(name="session.join")
    async def join(self, join: Join) -> None:
        await self._stage.play()

    @activity.defn(name="session.discard")
    async def discard_tree(self, tree: SessionTree) -> None:
        await self._stage.play()

    @activity.defn(name="commit.write")
    async def write(self, spec: CommitSpec) -> str | None:
        await self._stage.play()
        return "2" * 40 if self._stage.placed else None

    @activity.defn(name="commit.publish")
    async def publish(self, committed: Committed) -> None:
        await self._stage.play()

    @activity.defn(name="commit.discard")
    async def discard_commit(self, spec: CommitSpec) -> None:
        await self._stage.play()

    @activity.defn(name="lb.apply")
    async def apply(self, spec: BalancerSpec) -> AppliedSpec:
        await self._stage.play()
        return AppliedSpec(engine_id="e-1", revision=spec.revision)

    @activity.defn(name="lb.drain")
    async def drain(self, request: DrainRequest) -> None:
        await self._stage.play(f" {len(request.servers)}")

    @activity.defn(name="workspace.bring")
    async def bring(self, spec: WorkspaceSpec) -> WorkspaceFacts:
        await self._stage.play()
        return WorkspaceFacts(commit="c" * 40, ref="main", size_bytes=7)

    @activity.defn(name="workspace.remove")
    async def remove_workspace(self, spec: WorkspaceSpec) -> None:
        await self._stage.play()

    @activity.defn(name="cache_volume.clear")
    async def clear_cache(self, cache: CacheSpec) -> None:
        await self._stage.play()

    @activity.defn(name="cache_volume.remove")
    async def remove_cache(self, cache: CacheSpec) -> None:
        await self._stage.play()

    @activity.defn(name="instance.create")
    async def create(self, spec: MachineSpec) -> str:
        await self._stage.play()
        return "e-1"

    @activity.defn(name="instance.adjust")
    async def adjust(self, spec: MachineSpec) -> None:
        await self._stage.play(f" to {spec.memory_mb}")
        self._stage.adjusted.append(spec)

    @activity.defn(name="instance.pause")
    async def pause(self, spec: MachineSpec) -> None:
        await self._stage.play()

    @activity.defn(name="instance.resume")
    async def resume(self, spec: MachineSpec) -> None:
        await self._stage.play()

    @activity.defn(name="instance.start")
    async def start(self, spec: MachineSpec) -> MachineState:
        await self._stage.play(" until healthy" if spec.health_check else "")
        return MachineState(engine_id="e-1", private_ip="10.0.0.9")

    @activity.defn(name="instance.stop")
    async def stop(self, request: StopRequest) -> None:
        await self._stage.play()

    @activity.defn(name="instance.delete")
    async def delete(self, spec: MachineSpec) -> None:
        await self._stage.play(f" generation {spec.generation}")

    @activity.defn(name="machine.survey")
    async def survey(self, machine: UUID | None) -> Survey:
        await self._stage.play()
        found = FoundMachine(engine_id="e-1", id=machine or new_id(), generation=1, running=True)
        return Survey(host=HOST, machines=[found])

    @activity.defn(name="machine.discard")
    async def discard(self, machine: OwnedMachine) -> None:
        await self._stage.play(f" generation {machine.generation}")

    @activity.defn(name="host.inventory")
    async def inventory(self, leftovers: list[OwnedMachine]) -> Inventory:
        await self._stage.play(f" removing {len(leftovers)}")
        return Inventory(host=HOST, machines=[])


def order(kind: str, **more: Any) -> Order:
    values: dict[str, Any] = {
        "workflow_id": new_id(),
        "project_id": new_id(),
        "kind": kind,
        "resource_type": "instance",
        "resource_id": new_id(),
        "name": "web",
        "request_id": "test",
        "deadline_seconds": 60,
    }
    return Order(**(values | more))


class Theatre:
    """The stage, its workers, and a client."""

    def __init__(self, client: Client, stage: Stage) -> None:
        self.client = client
        self.stage = stage

    async def start(self, kind: str, **more: Any) -> WorkflowHandle[Any, Any]:
        return await start(self.client, order(kind, **more))

    async def run(self, kind: str, **more: Any) -> Failure | None:
        """Run to the end; the failure it was settled with."""
        return await self.end(await self.start(kind, **more))

    async def end(self, handle: WorkflowHandle[Any, Any]) -> Failure | None:
        try:
            async with asyncio.timeout(30):
                await handle.result()
        except WorkflowFailureError:
            assert self.stage.settled, "a failed run was settled"
        return self.stage.settled[-1].failure if self.stage.settled else None


@asynccontextmanager
async def server() -> AsyncIterator[WorkflowEnvironment]:
    attributes = [part for name, kind in SEARCH_ATTRIBUTES.items() for part in ("--search-attribute", f"{name}={kind}")]
    config = DYNAMIC_CONFIG | {"limit.historyCount.suggestContinueAsNew": str(LONG)}
    tuned = [part for key, value in config.items() for part in ("--dynamic-config-value", f"{key}={value}")]
    async with await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(find_binary()),
        dev_server_extra_args=[*attributes, *tuned],
        data_converter=DATA_CONVERTER,
        identity="tests",
    ) as environment:
        yield environment


@contextmanager
def quick_heartbeats() -> Iterator[None]:
    """A cancel reaches an activity with its next heartbeat."""
    usual = activities.interceptor.HEARTBEAT_SECONDS
    activities.interceptor.HEARTBEAT_SECONDS = 0.1
    try:
        yield
    finally:
        activities.interceptor.HEARTBEAT_SECONDS = usual


@asynccontextmanager
async def theatre(client: Client, *, cached: int = 100, agent: bool = True) -> AsyncIterator[Theatre]:
    """Workers as control worker and agent have them, on stand-ins; ``agent`` False: nobody serves the host."""
    stage = Stage()
    common: dict[str, Any] = {
        "interceptors": [activities.interceptor.ActivityInterceptor()],
        "max_heartbeat_throttle_interval": timedelta(milliseconds=100),
        "identity": "tests",
    }
    control = Worker(
        client,
        task_queue=CONTROL,
        workflows=PLANS,
        activities=[*methods(Control(stage)), *methods(CronControl(stage)), *methods(ChatControl(stage))],  # type: ignore[list-item]
        max_cached_workflows=cached,
        **common,
    )
    with quick_heartbeats():
        async with AsyncExitStack() as workers:
            await workers.enter_async_context(control)
            elsewhere = {WEBHOOKS: Receivers(stage), IMAGES: Importer(stage), CRON: CronTargets(stage)}
            for queue, stands_in in (elsewhere | {API: CronApi(stage), CHATS: ChatApi(stage)}).items():
                served = methods(stands_in)
                one = Worker(client, task_queue=queue, activities=served, **common)  # type: ignore[arg-type]
                await workers.enter_async_context(one)
            if agent:
                served = methods(Engine(stage))
                host = Worker(client, task_queue=host_queue(HOST), activities=served, **common)  # type: ignore[arg-type]
                await workers.enter_async_context(host)
            yield Theatre(client, stage)
