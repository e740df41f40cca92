"""What cron jobs do: what it needs of who says so, and the request that it is."""

from __future__ import annotations

import datetime as dt
from typing import Any, NamedTuple
from uuid import UUID

from pydantic import BaseModel, ValidationError
from sqlalchemy import select

from api import secrets
from api.caller import Caller
from api.cron_schemas import HttpTarget, Kind, NamedSecret, Target, WorkflowTarget
from api.group_numbers import scaled
from api.group_schemas import DeploymentScale, GroupScale
from api.image_schemas import ImageCreate, UploadSource
from api.instance_schemas import InstanceCreate, InstanceResize, SecretRef
from model.cron import CronRun
from model.errors import ValidationFailed
from model.groups import Group, GroupStatus
from model.images import Image
from model.instances import Instance

#: Of a name, characters that are left for it where the time is put behind it.
_NAMED = 48


class Route(NamedTuple):
    """The request that starts a workflow; ``{}`` in its path: the resource. ``body``: what it takes."""

    permission: str
    method: str
    path: str
    body: type[BaseModel] | None = None


ROUTES: dict[Kind, Route] = {
    "ProvisionInstance": Route("instances:create", "POST", "/v1/instances", InstanceCreate),
    "StartInstance": Route("instances:operate", "POST", "/v1/instances/{}/start"),
    "StopInstance": Route("instances:operate", "POST", "/v1/instances/{}/stop"),
    "RestartInstance": Route("instances:operate", "POST", "/v1/instances/{}/restart"),
    "PauseInstance": Route("instances:operate", "POST", "/v1/instances/{}/pause"),
    "ResumeInstance": Route("instances:operate", "POST", "/v1/instances/{}/resume"),
    "ResizeInstance": Route("instances:update", "POST", "/v1/instances/{}/resize", InstanceResize),
    "DeprovisionInstance": Route("instances:delete", "DELETE", "/v1/instances/{}"),
    "ScaleGroup": Route("groups:scale", "PUT", "/v1/autoscaling/groups/{}/scale", GroupScale),
    "ImportImage": Route("images:create", "POST", "/v1/images", ImageCreate),
    "DeleteImage": Route("images:delete", "DELETE", "/v1/images/{}"),
}


#: ``ScaleGroup`` of a deployment: that it is one, its parameters say.
_OF_DEPLOYMENT = Route("deployments:scale", "PUT", "/v1/containers/deployments/{}/scale", DeploymentScale)


class Call(NamedTuple):
    method: str
    path: str
    body: dict[str, Any] | None


async def checked(caller: Caller, target: Target) -> dict[str, Any]:
    """The target as its row says it, where the caller may say so. Raises Forbidden, ValidationFailed."""
    if target.http is not None:
        return {"http": await _http(caller, target.http)}
    if target.exec is not None:
        caller.require("instances:exec")
        if target.exec.instance_id is not None:
            await _check_there(caller, Instance, target.exec.instance_id, "target.exec.instance_id")
        return {"exec": target.exec.model_dump(mode="json", exclude_none=True)}
    if target.workflow is None:
        raise RuntimeError("a target is one of three")
    await _check_workflow(caller, target.workflow)
    return {"workflow": target.workflow.model_dump(mode="json", exclude_none=True)}


def shown(target: dict[str, Any]) -> dict[str, Any]:
    """A row's target as it was given."""
    if "http" not in target:
        return target
    http = dict(target["http"])
    http["headers"] = {name: _named(value) for name, value in http["headers"].items()}
    http["secret"] = _named(http["secret"])
    return {"http": http}


def naming(resource_id: UUID) -> list[dict[str, Any]]:
    """Parts of the targets, as rows say them, that name this resource by its id."""
    return [{"workflow": {"resource_id": str(resource_id)}}, {"exec": {"instance_id": str(resource_id)}}]


def call_of(target: dict[str, Any], run: CronRun) -> Call:
    """The request that a run of this workflow target is. What it makes is called as the job says, and its time."""
    parameters = dict(target.get("parameters") or {})
    route = _route(target["kind"], parameters)
    if "resource_id" not in target and "name" in parameters:
        time = run.scheduled_at.astimezone(dt.UTC).strftime("%Y%m%d%H%M%S")
        parameters["name"] = f"{parameters['name'][:_NAMED]}-{time}"
    return Call(route.method, route.path.format(target.get("resource_id")), parameters if route.body else None)


async def _http(caller: Caller, http: HttpTarget) -> dict[str, Any]:
    row = http.model_dump(mode="json", exclude={"secret", "headers"})
    row["headers"] = {
        name: await _use(caller, f"target.http.headers.{name}", value) if isinstance(value, NamedSecret) else value
        for name, value in http.headers.items()
    }
    named = isinstance(http.secret, NamedSecret)
    row["secret"] = await _use(caller, "target.http.secret", http.secret) if named else None
    return row


async def _use(caller: Caller, field: str, named: Any) -> dict[str, Any]:
    caller.require("secrets:use")
    return (await secrets.use(caller, field, SecretRef(secret=named.secret))).model_dump(mode="json")


def _named(value: Any) -> Any:
    return {"secret": value["secret"]} if isinstance(value, dict) else value


async def _check_workflow(caller: Caller, target: WorkflowTarget) -> None:
    route = _route(target.kind, target.parameters)
    caller.require(route.permission)
    field = "target.workflow.parameters"
    if route.body is None:
        if target.parameters:
            raise _refused(field, f"{target.kind} takes none")
    else:
        try:
            body = route.body.model_validate(target.parameters)
        except ValidationError as error:
            first = error.errors()[0]
            raise _refused(".".join([field, *map(str, first["loc"])]), first["msg"]) from None
        if isinstance(body, InstanceCreate) and body.secret_env():
            caller.require("secrets:use")
        if isinstance(body, ImageCreate) and isinstance(body.source, UploadSource):
            raise _refused(f"{field}.source", "an upload is no workflow")
        if isinstance(body, GroupScale | DeploymentScale):
            await _check_scaling(caller, target.resource_id, body)
            return
    if target.resource_id is not None:
        table = Image if target.kind == "DeleteImage" else Instance
        await _check_there(caller, table, target.resource_id, "target.workflow.resource_id")


def _route(kind: Kind, parameters: dict[str, Any]) -> Route:
    return _OF_DEPLOYMENT if kind == "ScaleGroup" and "replicas" in parameters else ROUTES[kind]


async def _check_scaling(caller: Caller, group_id: UUID | None, body: GroupScale | DeploymentScale) -> None:
    """As the request would be answered now; each run asks anew."""
    kind, wanted = "deployment", body.model_dump(exclude_none=True)
    if isinstance(body, GroupScale):
        kind = "group"
        if body.bounds:
            caller.require("groups:write")
    else:
        wanted = {"desired_count": body.replicas}
    live = Group.status.not_in((GroupStatus.DELETING, GroupStatus.DELETED))
    mine = (Group.project_id == caller.project_id) & (Group.id == group_id) & (Group.kind == kind) & live
    row = (await caller.execute(select(Group.__table__).where(mine))).one_or_none()
    if row is None:
        raise _refused("target.workflow.resource_id", f"there is no {kind} {group_id}")
    try:
        scaled(row, wanted)
    except ValidationFailed as error:
        raise _refused("target.workflow.parameters", error.message) from None


async def _check_there(caller: Caller, table: type[Instance] | type[Image], id: UUID, field: str) -> None:
    found = select(table.id).where(table.project_id == caller.project_id, table.id == id)
    if (await caller.execute(found)).one_or_none() is None:
        raise _refused(field, f"there is no {table.__name__.lower()} {id}")


def _refused(field: str, said: str) -> ValidationFailed:
    return ValidationFailed(f"{field}: {said}", fields=[{"field": field, "message": said}])
