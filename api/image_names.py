"""What the ``image`` of a launch means."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, select

from api import secrets
from api.caller import Caller
from api.instance_schemas import check_reference
from model.errors import ImageNotFound, InvalidState, ValidationFailed
from model.images import Image, ImageStatus, engine_name

# Held until the commit, so that no delete of it is accepted meanwhile.
_NAMED = (
    select(Image.__table__)
    .where(
        Image.project_id == bindparam("project_id"),
        Image.status != ImageStatus.DELETED,
        (Image.name == bindparam("name")) | (Image.id == bindparam("id")),
    )
    .with_for_update(read=True)
)


async def named_image(caller: Caller, image: str, backend: str, registry_secret: str | None) -> dict[str, Any]:
    """Columns of an instance: of the live image of the project with this id, else with this name, with the login that
    it has; none of these: a reference of a registry, with the login that is asked for.

    Raises InvalidState, ImageNotFound, ValidationFailed, Forbidden.
    """
    id = _id(image)
    rows = (await caller.execute(_NAMED, {"project_id": caller.project_id, "name": image, "id": id})).all()
    if not rows:
        if id is not None:
            raise ImageNotFound(f"there is no image {id}", image=image)
        try:
            check_reference(image)
        except ValueError as error:
            said = f"there is no image of this name, and as a reference: {error}"
            raise ValidationFailed(f"image: {said}", fields=[{"field": "image", "message": said}]) from None
        login = await secrets.login(caller, registry_secret)
        none = dict.fromkeys(("image_id", "image_reference", "image_format", "image_digest"))
        return none | {"registry_secret": login}
    row = next((row for row in rows if row.id == id), rows[0])
    if registry_secret is not None:
        said = f"image {row.name} is one of the project's, and is pulled with its own login: leave this out"
        raise ValidationFailed(f"registry_secret: {said}", fields=[{"field": "registry_secret", "message": said}])
    if row.status != ImageStatus.AVAILABLE:
        raise InvalidState(
            f"image {row.name} is {row.status}, not available",
            state=row.status,
            **({"workflow_id": str(row.workflow_id)} if row.status == ImageStatus.IMPORTING else {}),
        )
    if row.format == "qcow2":
        said = f"image {row.name} is a disk (qcow2): {backend} hosts run containers"
        raise ValidationFailed(said, fields=[{"field": "image", "message": said}])
    reference = row.reference if row.format is None else engine_name(row.id, row.digest)
    return {
        "image_id": row.id,
        "image_reference": reference,
        "image_format": row.format,
        "image_digest": row.digest,
        "registry_secret": row.registry_secret,
    }


def _id(image: str) -> UUID | None:
    try:
        return UUID(image) if len(image) == len(str(UUID(int=0))) else None
    except ValueError:
        return None
