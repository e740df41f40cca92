"""``POST /v1/images/{id}/upload``: a file of any size, straight into the blob store."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from activities import image_limits
from activities.blob_claims import CLAIM_UPLOAD, HOLD, parameters
from api.accept import Acceptance, check_if_match, was_answered
from api.authentication import may_unread
from api.caller import Caller
from api.envelope import Envelope
from api.errors import RESPONSES
from api.image_schemas import ImageView
from api.images import check_limits, import_order, lock_image, own, show_image
from drivers.blobs import Blobs
from drivers.locked_file import LockedFile
from drivers.pace import Pace
from drivers.pace import said as pace_said
from model.errors import (
    BodyTooLarge,
    ChecksumMismatch,
    InvalidState,
    Malformed,
    TooManyStreams,
    Unavailable,
    ValidationFailed,
)
from model.images import ImageStatus
from model.settings import Settings

router = APIRouter(prefix="/v1/images", tags=["images"], responses=RESPONSES)
#: Uploads at once in one process, and those of one project.
AT_ONCE, OF_PROJECT = 64, 4
#: What is written at once; how long a sender may be silent.
PIECE, SILENCE_SECONDS = 1 << 20, 60
_SHA_256 = re.compile(r":([A-Za-z0-9+/=]{44}):(?:;.*)?")
_UPLOADS: Counter[UUID] = Counter()


@router.post(
    "/{image_id}/upload",
    status_code=202,
    response_model=Envelope[ImageView],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def upload(request: Request, image_id: UUID, caller: Annotated[Caller, may_unread("images:create")]) -> Response:
    """Send the image's file: a docker or OCI archive, the tar of a root file system, or a qcow2 disk, plain or packed
    with gzip or zstd. It is checked by the workflow that starts then.

    `Content-Digest` (RFC 9530, sha-256), `X-Checksum-SHA256` or the checksum of the image say what must arrive. What
    is cut off, too large or another leaves nothing behind, and may be sent again.
    """
    settings: Settings = request.app.state.settings
    announced = int(request.headers.get("content-length", 0))
    if announced > settings.image_max_bytes:
        raise BodyTooLarge(f"an image may have {settings.image_max_bytes} bytes (CAIRN_IMAGE_MAX_BYTES)")
    image = await lock_image(caller, image_id)
    check_if_match(request, image.version)
    if not await was_answered(request, caller, image_id):  # else this is a repetition
        _check_waits(image)
    if _waits(image):
        await check_limits(request, caller, image_id, size=max(announced, 1))
    expected = [value for value in (image.checksum, *_checksums(request)) if value]
    await caller.release()  # nothing is held while it comes
    with _place(caller.project_id):
        blobs: Blobs = request.app.state.blobs
        with await asyncio.to_thread(blobs.receive) as file:
            await _receive(request, file, announced, settings.image_max_bytes)
            for digest in expected:
                if file.digest != digest:
                    raise ChecksumMismatch(
                        f"what came has the checksum {file.digest}, not {digest}: send it again",
                        expected=digest,
                        actual=file.digest,
                    )
            return await _accept(request, caller, image_id, blobs, file)


@contextmanager
def _place(project_id: UUID) -> Iterator[None]:
    """Raises TooManyStreams."""
    if _UPLOADS[project_id] >= OF_PROJECT:
        raise TooManyStreams(f"{OF_PROJECT} uploads of the project are under way already: try again in a moment")
    if _UPLOADS.total() >= AT_ONCE:
        raise TooManyStreams(f"{AT_ONCE} uploads are under way already: try again in a moment")
    _UPLOADS[project_id] += 1
    try:
        yield
    finally:
        _UPLOADS[project_id] -= 1
        if not _UPLOADS[project_id]:
            del _UPLOADS[project_id]


async def _receive(request: Request, file: LockedFile, announced: int, most: int) -> None:
    pieces = request.stream()
    waiting: list[bytes] = []
    held = 0
    pace = Pace()
    try:
        file.check_room(announced)
        while True:
            async with asyncio.timeout(SILENCE_SECONDS):
                piece = await anext(pieces, None)
            if piece:
                waiting.append(piece)
                held += len(piece)
                if pace.is_too_slow(file.size + held):
                    raise Malformed(f"{pace_said()}: nothing was kept")
            if held >= PIECE or piece is None:
                if file.size + held > most:
                    raise BodyTooLarge(f"an image may have {most} bytes (CAIRN_IMAGE_MAX_BYTES)")
                await asyncio.to_thread(file.write, b"".join(waiting))
                waiting, held = [], 0
            if piece is None:
                break
    except ClientDisconnect:
        raise Malformed("the body was cut off: nothing of it was kept") from None
    except TimeoutError:
        raise Malformed(f"nothing came for {SILENCE_SECONDS} s: nothing was kept") from None
    except OSError as error:
        raise Unavailable(f"the blob store cannot be written to: {error.strerror}") from error
    if not file.size:
        raise ValidationFailed("the body is empty: send the file", fields=[{"field": "body", "message": "empty"}])


async def _accept(request: Request, caller: Caller, image_id: UUID, blobs: Blobs, file: LockedFile) -> Response:
    async with caller.reopened() as first:
        before = await lock_image(first, image_id)
        # First the row says that it needs the file, then the file is there: so nobody removes it meanwhile.
        await first.execute(HOLD, {"digest": file.digest})
        claimed = (await first.execute(CLAIM_UPLOAD, parameters(image_id, file.digest))).one_or_none()
        if claimed is not None:
            await check_limits(request, first, image_id, importing=False, size=file.size)
            await first.execute(image_limits.TAKE, {"id": image_id, "size": file.size})
            if before.status != ImageStatus.PENDING:
                data = {"name": before.name, "from": before.status, "to": ImageStatus.PENDING}
                await Acceptance(request, first).record("image.pending", "image", image_id, None, data)
        await first.release()  # what is accepted in the end is audited there
    if claimed is not None:  # else it was answered before, or it is refused below
        await asyncio.to_thread(blobs.put, file)
    async with caller.reopened() as second:
        acceptance = Acceptance(request, second)
        image = await lock_image(second, image_id)
        if answered := await acceptance.answered_before(image_id, {"digest": file.digest}):
            return await acceptance.answer(show_image, answered)
        _check_waits(image)
        if image.digest != file.digest:
            # Its file may have gone meanwhile: no row named it any more.
            raise InvalidState(
                f"another upload to image {image.name} ended at the same time: this one was left out",
                state=image.status,
            )
        order = import_order(request, second, acceptance, image_id, image.name)
        await own(
            second,
            image_id,
            order,
            ImageStatus.IMPORTING,
            digest=file.digest,
            size_bytes=file.size,
            error=None,
        )
        data = {"name": image.name, "from": image.status, "to": ImageStatus.IMPORTING}
        await acceptance.write(order, "image.importing", data, prior_status=image.status)
        return await acceptance.answer(show_image)


def _waits(image: Any) -> bool:
    return image.source == "upload" and image.status in (ImageStatus.PENDING, ImageStatus.ERROR)


def _check_waits(image: Any) -> None:
    if not _waits(image):
        raise InvalidState(
            f"image {image.name} is {image.status}, from {image.source}: it waits for no upload", state=image.status
        )


def _checksums(request: Request) -> list[str]:
    """What the headers say. Raises ValidationFailed."""
    found = []
    for member in ",".join(request.headers.getlist("content-digest")).split(","):
        # Other algorithms are for others (RFC 9530, section 2).
        name, _, value = member.strip().partition("=")
        if name == "sha-256":
            match = _SHA_256.fullmatch(value)
            if match is None:
                raise _bad_header("Content-Digest", "expected sha-256=:…:, in base64")
            try:
                found.append(f"sha256:{base64.b64decode(match[1], validate=True).hex()}")
            except binascii.Error:
                raise _bad_header("Content-Digest", "expected base64") from None
    if said := request.headers.get("x-checksum-sha256"):
        if not re.fullmatch(r"[0-9A-Fa-f]{64}", said):
            raise _bad_header("X-Checksum-SHA256", "expected 64 hexadecimal digits")
        found.append(f"sha256:{said.lower()}")
    return found


def _bad_header(name: str, message: str) -> ValidationFailed:
    return ValidationFailed(f"{name}: {message}", fields=[{"field": name, "message": message}])
