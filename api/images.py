"""``/v1/images``: import, read, delete. Uploads are in ``api.image_uploads``."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import ColumnElement, Row, func, insert, select, update
from sqlalchemy.dialects.postgresql import aggregate_order_by

from activities import image_limits
from api import secrets, user_urls
from api.accept import Acceptance, Answered, check_if_match, etag
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.image_schemas import ImageCreate, ImageView, RegistrySource, UploadSource, UrlSource
from api.instance_changes import cancel_others
from api.paging import OfName, Paging, page_of
from api.resources import is_readable, listed, one, unique_name
from drivers import registries
from model.base import new_id
from model.errors import InUse, UrlRefused
from model.groups import Configuration, Group, GroupStatus
from model.hosts import Host
from model.images import Image, ImageCache, ImageStatus, without_query
from model.instances import Instance, Status
from model.settings import Settings
from model.workflows import Order

router = APIRouter(prefix="/v1/images", tags=["images"], responses=RESPONSES)
_hosts = (
    select(func.array_agg(aggregate_order_by(Host.name, Host.name)))
    .join(ImageCache, ImageCache.host_id == Host.id)
    .where(ImageCache.image_id == Image.id)
    .correlate(Image)
    .scalar_subquery()
    .label("hosts")
)
_query = select(*Image.__table__.columns, _hosts)
#: How many users an error names.
SHOWN = 5


@router.post(
    "",
    status_code=202,
    response_model=Envelope[ImageView],
    responses={201: {"model": Envelope[ImageView], "description": "An upload is waited for; no workflow yet"}},
)
async def create(request: Request, body: ImageCreate, caller: Annotated[Caller, may("images:create")]) -> Response:
    """Import an image: from a registry, from a URL, or (`201`) from a file that is uploaded next."""
    if not isinstance(body.source, UrlSource):
        return await _create(request, body, caller)
    if user_urls.has_credentials(body.source.url):
        raise UrlRefused("the URL carries a password, which everybody who reads the image would see")
    await user_urls.check(request, caller, body.source.url)
    async with caller.reopened() as again:
        return await _create(request, body, again)


async def _create(request: Request, body: ImageCreate, caller: Caller) -> Response:
    acceptance = Acceptance(request, caller, created=True)
    image_id = new_id()
    source = body.source
    asked = body.model_dump(mode="json", exclude_unset=True)
    if answered := await acceptance.answered_before(image_id, asked):
        if isinstance(source, UploadSource):
            return await _created(request, caller, answered.resource_id)
        return await acceptance.answer(show_image, answered)
    login = None
    if isinstance(source, RegistrySource):
        login = await secrets.login(caller, source.registry_secret, "source.registry_secret")
        settings: Settings = request.app.state.settings
        await registries.check_address(source.reference, settings.outbound_allow)
    uploaded = isinstance(source, UploadSource)
    order = import_order(request, caller, acceptance, image_id, body.name)
    values = {
        "id": image_id,
        "project_id": caller.project_id,
        "name": body.name,
        "status": ImageStatus.PENDING if uploaded else ImageStatus.IMPORTING,
        "source": source.type,
        "reference": source.reference if isinstance(source, RegistrySource) else None,
        "registry_secret": login,
        "url": source.url if isinstance(source, UrlSource) else None,
        "format": None if isinstance(source, RegistrySource) else source.format,
        "checksum": None if isinstance(source, RegistrySource) else source.checksum,
        "workflow_id": None if uploaded else order.workflow_id,
    }
    with unique_name("an image", body.name):
        await caller.execute(insert(Image).values(**values))
    data = {"name": body.name, "from": None, "to": values["status"]}
    caller.changed("image", image_id, after={"name": body.name, "source": source.model_dump(mode="json")})
    if uploaded:
        await acceptance.record("image.pending", "image", image_id, None, data)
        await check_limits(request, caller, image_id, anew=True, importing=False)
        return await _created(request, caller, image_id)
    await acceptance.write(order, "image.importing", data)
    await check_limits(request, caller, image_id, anew=True, of_bytes=not isinstance(source, RegistrySource))
    return await acceptance.answer(show_image)


async def _created(request: Request, caller: Caller, image_id: UUID) -> Response:
    data = await show_image(caller, image_id)
    headers = {"Location": f"/v1/images/{image_id}", "ETag": etag(data["version"])}
    return answer(request, data, 201, headers=headers)


@router.get("", response_model=Envelope[list[ImageView]])
async def index(
    request: Request,
    caller: Annotated[Caller, may("images:read")],
    page: Paging,
    status: Annotated[ImageStatus | None, Query()] = None,
    name: OfName = None,
) -> Response:
    """Images of the project, newest first; those deleted within 24 hours only with `?status=deleted`."""
    query = listed(_query, Image, caller, status=status, name=name)
    return await page_of(request, caller, query, Image.__table__.c.id, page, view)


@router.get("/{image_id}", response_model=Envelope[ImageView])
async def show(request: Request, image_id: UUID, caller: Annotated[Caller, may("images:read")]) -> Response:
    """One image, with the hosts that have it. A deleted one stays readable for 24 hours."""
    data = await show_image(caller, image_id)
    return answer(request, data, headers={"ETag": etag(data["version"])})


@router.delete("/{image_id}", status_code=202, response_model=Envelope[ImageView])
async def delete(request: Request, image_id: UUID, caller: Annotated[Caller, may("images:delete")]) -> Response:
    """Delete an image that no instance is made of; an import under way is cancelled and undone first."""
    acceptance = Acceptance(request, caller)
    image = await lock_image(caller, image_id)
    if image.status == ImageStatus.DELETED:
        return answer(request, await show_image(caller, image_id), headers={"ETag": etag(image.version)})
    if image.status == ImageStatus.DELETING:
        return await acceptance.answer(show_image, Answered(image_id, image.workflow_id))
    check_if_match(request, image.version)
    await _check_unused(caller, image)
    await cancel_others(caller, acceptance, image_id)
    order = import_order(request, caller, acceptance, image_id, image.name)
    order = order.model_copy(update={"kind": "DeleteImage"})
    await own(caller, image_id, order, ImageStatus.DELETING)
    data = {"name": image.name, "from": image.status, "to": ImageStatus.DELETING}
    await acceptance.write(order, "image.deleting", data, prior_status=image.status)
    return await acceptance.answer(show_image)


async def _check_unused(caller: Caller, image: Row[Any]) -> None:
    users = select(Instance.name).where(
        Instance.project_id == caller.project_id, Instance.image_id == image.id, Instance.status != Status.DELETED
    )
    now = (Configuration.group_id == Group.id) & (Configuration.revision == Group.revision)
    groups = select(Group.name).join(Configuration, now)
    groups = groups.where(
        Group.project_id == caller.project_id,
        Group.status != GroupStatus.DELETED,
        Configuration.template["image_id"].astext == str(image.id),
    )
    names = (await caller.execute(users.union(groups).order_by("name").limit(SHOWN + 1))).scalars().all()
    if names:
        shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
        raise InUse(f"image {image.name} is used by {shown}: delete these first", instances=list(names[:SHOWN]))


async def check_limits(
    request: Request,
    caller: Caller,
    image_id: UUID,
    *,
    anew: bool = False,
    importing: bool = True,
    of_bytes: bool = True,
    size: int = 1,
) -> None:
    """Whether the project may have this image beside its others. Raises QuotaExceeded, TooManyImports.

    ``anew``: it is one more; ``importing``: it is one more import; ``of_bytes``: its file has at least ``size``.
    Last in a transaction.
    """
    settings: Settings = request.app.state.settings
    limits = (await caller.execute(image_limits.LIMITS, {"project": caller.project_id})).one()
    held = (await caller.execute(image_limits.HELD, {"project": caller.project_id, "but": image_id})).one()
    if anew:
        image_limits.check_number(limits, held)
    if of_bytes:
        image_limits.check_bytes(limits, held, size)
    if importing:
        image_limits.check_imports(held, settings.project_imports)


async def own(caller: Caller, image_id: UUID, order: Order, status: ImageStatus, **more: Any) -> None:
    """The order's workflow owns the image from here on."""
    await caller.execute(
        update(Image)
        .where(Image.id == image_id)
        .values(
            status=status,
            workflow_id=order.workflow_id,
            version=Image.version + 1,
            updated_at=func.now(),
            **more,
        )
    )


async def lock_image(caller: Caller, image_id: UUID) -> Row[Any]:
    locked = select(Image.__table__).where(_mine(caller, image_id)).with_for_update()
    return await one(caller, locked, "image", image_id)


def import_order(request: Request, caller: Caller, acceptance: Acceptance, image_id: UUID, name: str) -> Order:
    settings: Settings = request.app.state.settings
    return Order(
        workflow_id=acceptance.workflow_id,
        project_id=caller.project_id,
        kind="ImportImage",
        resource_type="image",
        resource_id=image_id,
        name=name,
        request_id=request.state.request_id,
        deadline_seconds=settings.deadline_import,
    )


async def show_image(caller: Caller, image_id: UUID) -> dict[str, Any]:
    return view(await one(caller, _query.where(_mine(caller, image_id)), "image", image_id))


def _mine(caller: Caller, image_id: UUID) -> ColumnElement[bool]:
    return (Image.project_id == caller.project_id) & (Image.id == image_id) & is_readable(Image)


def view(row: Row[Any]) -> dict[str, Any]:
    """The JSON of an image, from a row of ``_query``."""
    return {
        "id": row.id,
        "project_id": row.project_id,
        "name": row.name,
        "status": row.status,
        "source": {
            "type": row.source,
            "reference": row.reference,
            "registry_secret": row.registry_secret["secret"] if row.registry_secret else None,
            "url": without_query(row.url) if row.url is not None else None,
            "checksum": row.checksum,
        },
        "format": row.format,
        "digest": row.digest,
        "size_bytes": row.size_bytes,
        "hosts": row.hosts or [],
        "error": row.error,
        "version": row.version,
        "workflow_id": row.workflow_id,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "deleted_at": row.deleted_at,
    }
