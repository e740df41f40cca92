"""``/v1/instance-types``: the sizes that instances come in."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import NAMESPACE_URL, uuid5

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from api.accept import Acceptance
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES, also
from api.instance_schemas import Name
from model.errors import InUse, NameTaken, NotFound
from model.hosts import InstanceType

router = APIRouter(prefix="/v1/instance-types", tags=["instance-types"], responses=RESPONSES)

TypeName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", examples=["basic-1"])]
Vcpus = Annotated[float, Field(strict=True, ge=0.01, le=1024, allow_inf_nan=False)]
Memory = Annotated[int, Field(strict=True, ge=16, le=2**30)]
Disk = Annotated[int, Field(strict=True, ge=0, le=2**20)]
#: Of every project, where a query of a request sees its own alone.
_IN_USE = text("SELECT instance_type_in_use(:name)")


class InstanceTypeCreate(BaseModel):
    """``POST /v1/instance-types``. Memory in MiB, disk in GiB."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "tiny-1", "vcpus": 0.5, "memory_mb": 128, "disk_gb": 4}]},
    )

    name: Name
    vcpus: Vcpus
    memory_mb: Memory
    disk_gb: Disk


class InstanceTypePatch(BaseModel):
    """``PATCH /v1/instance-types/{name}``: what is not named stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"memory_mb": 256}]})

    vcpus: Vcpus | None = None
    memory_mb: Memory | None = None
    disk_gb: Disk | None = None


class InstanceTypeView(BaseModel):
    name: str
    vcpus: float
    memory_mb: int
    disk_gb: int


_columns = [InstanceType.__table__.c[name] for name in InstanceTypeView.model_fields]
_query = select(*_columns).where(InstanceType.retired_at.is_(None))


@router.get("", response_model=Envelope[list[InstanceTypeView]])
async def index(request: Request, caller: Annotated[Caller, may("instance_types:read")]) -> Response:
    """The sizes that instances come in, smallest first."""
    order = (InstanceType.vcpus, InstanceType.memory_mb, InstanceType.disk_gb, InstanceType.name)
    rows = await caller.execute(_query.order_by(*order))
    return answer(request, [dict(row._mapping) for row in rows])


@router.get("/{type_name}", response_model=Envelope[InstanceTypeView])
async def show(
    request: Request, type_name: TypeName, caller: Annotated[Caller, may("instance_types:read")]
) -> Response:
    """One instance type."""
    return answer(request, await _find(caller, type_name))


@router.post("", status_code=201, response_model=Envelope[InstanceTypeView])
async def create(
    request: Request, body: InstanceTypeCreate, caller: Annotated[Caller, may("instance_types:manage")]
) -> Response:
    """Add an instance type. The name of one that was removed is free."""
    acceptance = Acceptance(request, caller)
    if await acceptance.answered_before(uuid5(NAMESPACE_URL, body.name), body.model_dump(mode="json")):
        return answer(request, await _find(caller, body.name), 201)
    values = body.model_dump()
    made = insert(InstanceType).values(**values)
    made = made.on_conflict_do_update(
        index_elements=["name"],
        set_={name: made.excluded[name] for name in values} | {"retired_at": None},
        where=InstanceType.retired_at.is_not(None),
    )
    if (await caller.execute(made.returning(InstanceType.name))).one_or_none() is None:
        raise NameTaken(f"there is an instance type '{body.name}' already", name=body.name)
    caller.changed("instance_type", body.name, after=values)
    return answer(request, await _find(caller, body.name), 201)


@router.patch("/{type_name}", response_model=Envelope[InstanceTypeView])
async def patch(
    request: Request,
    type_name: TypeName,
    body: InstanceTypePatch,
    caller: Annotated[Caller, may("instance_types:manage")],
) -> Response:
    """Change an instance type for launches from now on. Instances keep the size that they were launched with."""
    if values := body.model_dump(exclude_none=True):
        before = await _find(caller, type_name)
        caller.changed("instance_type", type_name, {name: before[name] for name in values}, values)
        await caller.execute(
            update(InstanceType)
            .where(InstanceType.name == type_name, InstanceType.retired_at.is_(None))
            .values(**values)
        )
    return answer(request, await _find(caller, type_name))


@router.delete("/{type_name}", status_code=204, responses=also(409))
async def remove(type_name: TypeName, caller: Annotated[Caller, may("instance_types:manage")]) -> Response:
    """Remove an instance type that no instance has. 409 `in_use` otherwise.

    The row stays, for the deleted instances that name it, and so that the next start does not seed it again. A launch
    that is accepted at the same moment has its copy of the size.
    """
    caller.changed("instance_type", type_name, before=await _find(caller, type_name))
    await caller.execute(update(InstanceType).where(InstanceType.name == type_name).values(retired_at=func.now()))
    if (await caller.execute(_IN_USE, {"name": type_name})).scalar_one():
        raise InUse(f"there are instances of the type '{type_name}': delete or resize them first", name=type_name)
    return Response(status_code=204)


async def _find(caller: Caller, name: str) -> dict[str, Any]:
    row = (await caller.execute(_query.where(InstanceType.name == name))).one_or_none()
    if row is None:
        raise NotFound(f"there is no instance type '{name}'")
    return dict(row._mapping)
