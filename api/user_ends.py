"""The end of a user: at once where nothing is left behind, else by a workflow that deletes it first."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import Request, Response
from sqlalchemy import Row, delete, func, select, text, update

from api import sessions
from api.accept import Acceptance, Answered, Show
from api.caller import ENTER, Caller
from api.project_ends import DELETE_SECONDS, FORGET, counted
from model.cache_volumes import CacheVolume
from model.errors import InUse
from model.images import Image
from model.instances import Instance
from model.projects import FIRST_UNIX_NAME, Project
from model.resources import Resource
from model.users import Session, User
from model.workflows import TERMINAL, Order, Workflow
from model.workspaces import Workspace

_OWNED = text("SELECT * FROM owned_by(:user)")


async def lock_owned(caller: Caller, user_id: UUID) -> None:
    """Lock what the user owns: who joins or leaves it, or makes something in it, waits. Before any user is locked."""
    owned = (await caller.execute(_OWNED, {"user": user_id})).scalars().all()
    await caller.execute(select(Project.id).where(Project.id.in_(owned)).order_by(Project.id).with_for_update())


async def forget(caller: Caller, user: Row[Any]) -> None:
    """Delete a user, whose row the caller has locked, with the personal project. Raises InUse where something would be
    left behind."""
    owned = (await caller.execute(_OWNED, {"user": user.id})).all()
    for project in owned:
        if not project.personal and not project.active:
            raise InUse(
                f"project '{project.unix_name}' has no other owner: an owner of it makes somebody else one, or deletes "
                "it; what nobody else owns is deleted with the user with ?cascade=true",
                project_id=str(project.id),
            )
    try:
        for project in owned:
            if project.personal:
                await caller.execute(ENTER, {"project": str(project.id)})
                await _forget_personal(caller, project)
    finally:
        await caller.execute(ENTER, {"project": str(caller.project_id)})
    await caller.execute(delete(User).where(User.id == user.id))


async def _forget_personal(caller: Caller, project: Row[Any]) -> None:
    """With its secrets, keys and all else that is left in it. Raises InUse."""
    inside = {}
    # Sessions are of workspaces.
    kinds: dict[str, type[Resource]] = {"instances": Instance, "images": Image, "workspaces": Workspace}
    for noun, kind in (kinds | {"cache_volumes": CacheVolume}).items():
        living = select(func.count()).select_from(kind).where(kind.project_id == project.id, kind.status != "deleted")
        inside[noun] = (await caller.execute(living)).scalar_one()
    if any(inside.values()):
        said = " and ".join(counted(inside))
        raise InUse(
            f"the personal project holds {said}: delete these first, or all with ?cascade=true",
            project_id=str(project.id),
            **inside,
        )
    if not (await caller.execute(FORGET, {"project": project.id})).scalar_one():
        raise RuntimeError(f"project {project.id} is empty, and is not")


async def begin(request: Request, caller: Caller, user: Row[Any], show: Show) -> Response:
    """Accept the deletion of a user, whose row the caller has locked, with the projects that nobody else owns: 202.

    The user is deactivated at once, and stays so where it fails. The run belongs to the caller's project: who asked
    for it can follow it. Raises InUse for a project that would have no owner, and is not to be deleted.
    """
    for project in (await caller.execute(_OWNED, {"user": user.id})).all():
        if project.unix_name == FIRST_UNIX_NAME and not project.active:
            raise InUse(
                "the platform's first project has no other owner: an owner of it makes somebody else one",
                project_id=str(project.id),
            )
        if not project.personal and project.others and not project.active:
            raise InUse(
                f"the other owners of project '{project.unix_name}' are deactivated: activate one",
                project_id=str(project.id),
            )
    acceptance = Acceptance(request, caller)
    under_way = select(Workflow.id).where(
        Workflow.project_id == caller.project_id,
        Workflow.resource_id == user.id,
        Workflow.kind == "DeprovisionUser",
        Workflow.state.not_in(TERMINAL),
    )
    if (workflow_id := (await caller.execute(under_way)).scalars().first()) is not None:
        return await acceptance.answer(show, Answered(user.id, workflow_id))
    deactivated = {"deactivated_at": func.coalesce(User.deactivated_at, func.now()), "updated_at": func.now()}
    await caller.execute(update(User).where(User.id == user.id).values(**deactivated, version=User.version + 1))
    await sessions.end(caller.connection, Session.user_id == user.id)
    order = Order(
        workflow_id=acceptance.workflow_id,
        project_id=caller.project_id,
        kind="DeprovisionUser",
        resource_type="user",
        resource_id=user.id,
        # Everybody in the caller's project sees it: no address.
        name=str(user.id),
        request_id=request.state.request_id,
        deadline_seconds=DELETE_SECONDS,
    )
    await acceptance.write(order, "user.deleting", {"name": order.name})
    return await acceptance.answer(show)
