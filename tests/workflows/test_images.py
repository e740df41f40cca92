"""The plans of images, step by step."""

from __future__ import annotations

import pytest
from temporalio.client import WorkflowFailureError

from activities.runs import summarise
from model.errors import ImageRefused, Unavailable
from model.images import ImageWanted
from tests.services import eventually
from tests.workflows.stage import HOST, Gate, Theatre, fails


async def run(play: Theatre, kind: str = "ImportImage") -> str:
    """The calls of one run."""
    handle = await play.start(kind)
    try:
        await handle.result()
    except WorkflowFailureError:
        assert play.stage.imported[-1].outcome != "completed"
    return "; ".join(play.stage.calls)


async def test_url_is_downloaded_and_verified(play: Theatre) -> None:
    assert await run(play) == "image.claim; image.download; image.verify sha256:2; image.settle completed"
    facts = play.stage.imported[-1].facts
    assert facts is not None
    assert facts.format == "rootfs-tar"


async def test_upload_is_verified(play: Theatre) -> None:
    play.stage.source = {"source": "upload", "digest": "sha256:333"}
    assert await run(play) == "image.claim; image.verify sha256:3; image.settle completed"


async def test_registry_is_asked_by_a_host(play: Theatre) -> None:
    play.stage.source = {"source": "registry", "reference": "web:1", "host": HOST}
    assert await run(play) == "image.claim; image.pull; image.settle completed"
    facts = play.stage.imported[-1].facts
    assert facts is not None
    assert (facts.digest, facts.host) == (play.stage.digest, HOST)
    assert play.stage.pulled[-1] == ImageWanted(reference="web:1")


async def test_host_that_is_to_pull_with_a_login_is_told_whose_and_not_which(play: Theatre) -> None:
    play.stage.source = {"source": "registry", "reference": "web:1", "host": HOST, "login": True}
    assert await run(play) == "image.claim; image.pull; image.settle completed"
    (wanted,) = play.stage.pulled
    assert wanted.login_of == play.stage.imported[-1].order.resource_id
    assert wanted.project_id == play.stage.imported[-1].order.project_id


async def test_what_is_refused_is_discarded(play: Theatre) -> None:
    play.stage.script["image.verify"].append(fails(ImageRefused("a bomb")))
    assert (await run(play)).endswith("image.verify sha256:2; undo image.discard; image.settle failed")
    failure = play.stage.imported[-1].failure
    assert failure is not None
    assert (failure.code, failure.step) == ("image_refused", "image.verify")


async def test_what_led_to_an_error_does_not_push_it_out(play: Theatre) -> None:
    async def break_off() -> None:
        try:
            raise OSError("a long story " * 1000)
        except OSError as error:
            raise Unavailable("the download broke off: " + "x" * 10_000) from error

    play.stage.always["image.download"] = break_off
    handle = await play.start("ImportImage")

    async def said() -> str | None:
        return next((step.error for step in await summarise(handle, running=True) if step.error), None)

    found = await eventually(said)
    await handle.terminate()
    assert found.startswith("the download broke off: xxx")


@pytest.mark.parametrize("step", ["image.download", "image.verify"])
async def test_cancel_discards_what_came(play: Theatre, step: str) -> None:
    gate = Gate()
    play.stage.script[step].append(gate)
    handle = await play.start("ImportImage")
    await gate.reached.wait()
    await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert play.stage.calls[-2:] == ["undo image.discard", "image.settle cancelled"]


async def test_delete(play: Theatre) -> None:
    assert await run(play, "DeleteImage") == "image.claim; image.discard; image.settle completed"
