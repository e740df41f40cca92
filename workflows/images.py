"""The plans of images."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

from workflows.options import REMOVE, SILENCE, on_control, on_host, on_images, remaining
from workflows.saga import Saga, Settle, Undo, call, carry_out

with workflow.unsafe.imports_passed_through():
    from activities.image_records import ImageEnd, ImageRecords
    from activities.images import ImageEngine, ImageFacts
    from model.images import ImageWanted
    from model.workflows import Failure, Order, Outcome

#: A pass over a host's images, or over the blob store, that takes longer has been overtaken by the next.
PASS = timedelta(minutes=10)


def settling(order: Order) -> Settle:
    async def settle(outcome: Outcome, failure: Failure | None, facts: ImageFacts | None, undone: bool) -> None:
        ended = ImageEnd(order=order, outcome=outcome, failure=failure, facts=facts)
        await call(ImageRecords.settle, ended, "settle", on_control())

    return settle


@workflow.defn
class ImportImage:
    """Of a registry: have a host pull it, which tells its digest. Of a file: bring it, and look at all of it."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> ImageFacts:
            asked = await saga.step(ImageRecords.claim, order, on_control(remaining(order), poll=True))
            if asked.host is not None:
                whose = {"project_id": order.project_id, "login_of": order.resource_id} if asked.login else {}
                wanted = ImageWanted(reference=asked.reference or "", **whose)
                there = on_host(asked.host, remaining(order), taken_up_within=SILENCE)
                found = await saga.step(ImageEngine.pull, wanted, there)
                return ImageFacts(digest=found.digest, size_bytes=found.size_bytes, host=asked.host)
            undo = [Undo(ImageRecords.discard, order, on_control(REMOVE))]
            if asked.url is not None:
                digest = await saga.step(ImageRecords.download, asked, on_images(remaining(order)), undo=undo)
                asked, undo = asked.model_copy(update={"digest": digest}), []
            return await saga.step(ImageRecords.verify, asked, on_images(remaining(order)), undo=undo)

        await carry_out(order, plan, settling(order))


@workflow.defn
class DeleteImage:
    """Wait until the run in the way has ended, then remove the file. A cancel does not stop it."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            await saga.step(ImageRecords.claim, order, on_control(remaining(order), poll=True))
            await saga.step(ImageRecords.discard, order, on_control(remaining(order)))

        await carry_out(order, plan, settling(order), cancellable=False)


@workflow.defn
class CollectImages:
    """Remove what Cairn brought to a host and nothing has used for long; write down what it has. By the tick."""

    @workflow.run
    async def run(self, host: str, unused_for: timedelta) -> None:
        found = await workflow.execute_activity_method(ImageEngine.collect, unused_for, **on_host(host, PASS))
        await workflow.execute_activity_method(ImageRecords.caches, found, **on_control(PASS))


@workflow.defn
class SweepBlobs:
    """Started by the tick where it is due."""

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity_method(ImageRecords.sweep, **on_control(PASS, long=True))


PLANS = [ImportImage, DeleteImage, CollectImages, SweepBlobs]
