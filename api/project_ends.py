"""The end of a project: at once where nothing is in it, else by a workflow that deletes what is."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response
from sqlalchemy import Row, func, select, text, update

from api.accept import Acceptance, Answered, Show
from api.caller import Caller
from model.errors import InUse
from model.projects import Project
from model.workflows import TERMINAL, Order, Workflow

#: It has as long as the deletions of all that is in the project take.
DELETE_SECONDS = 24 * 3600.0
#: What has to be gone before: how many there are of each. Members, roles and keys go with the project.
_INSIDE = text(
    """
    SELECT
        (SELECT count(*) FROM scaling_groups WHERE project_id = :project AND status <> 'deleted') AS groups,
        (SELECT count(*) FROM instances WHERE project_id = :project AND status <> 'deleted') AS instances,
        (SELECT count(*) FROM load_balancers WHERE project_id = :project AND status <> 'deleted') AS load_balancers,
        (SELECT count(*) FROM work_sessions WHERE project_id = :project AND status <> 'removed') AS sessions,
        (SELECT count(*) FROM workspaces WHERE project_id = :project AND status <> 'deleted') AS workspaces,
        (SELECT count(*) FROM cache_volumes WHERE project_id = :project AND status <> 'deleted') AS cache_volumes,
        (SELECT count(*) FROM images WHERE project_id = :project AND status <> 'deleted') AS images,
        (SELECT count(*) FROM webhooks WHERE project_id = :project) AS webhooks,
        (SELECT count(*) FROM cron_jobs WHERE project_id = :project AND deleted_at IS NULL) AS cron_jobs,
        (SELECT count(*) FROM ssh_keys WHERE project_id = :project) AS ssh_keys,
        (SELECT count(*) FROM secrets WHERE project_id = :project) AS secrets
    """
)
FORGET = text("SELECT forget_project(:project)")


async def forget(caller: Caller, project: Row[Any]) -> None:
    """Delete a project, whose row the caller has locked. Raises InUse where something is in it."""
    inside = (await caller.execute(_INSIDE, {"project": project.id})).one()._asdict()
    found = {what: number for what, number in inside.items() if number}
    if not found:
        if (await caller.execute(FORGET, {"project": project.id})).scalar_one():
            return
        raise RuntimeError(f"project {project.id} is empty, and is not")
    shown = ", ".join(counted(found))
    raise InUse(f"project {project.name} holds {shown}: delete these first, or all with ?cascade=true", **found)


def counted(found: dict[str, int]) -> list[str]:
    """As people say it: ``1 instance``, ``2 ssh keys``; what there is none of is left out."""
    words = {what: what.replace("_", " ") for what in found}
    return [f"{n} {words[what].removesuffix('s') if n == 1 else words[what]}" for what, n in found.items() if n]


async def begin(request: Request, caller: Caller, project: Row[Any], show: Show) -> Response:
    """Accept the deletion of a project, whose row the caller has locked, with all that is in it: 202.

    The caller is in that project. A personal project takes its user with it: who accepts the deletion of a user
    deactivates the user and begins with this. One that is under way already is answered again.
    """
    acceptance = Acceptance(request, caller)
    under_way = select(Workflow.id).where(
        Workflow.project_id == project.id,
        Workflow.resource_id == project.id,
        Workflow.kind == "DeprovisionProject",
        Workflow.state.not_in(TERMINAL),
    )
    if (workflow_id := (await caller.execute(under_way)).scalars().first()) is not None:
        return await acceptance.answer(show, Answered(project.id, workflow_id))
    await caller.execute(
        update(Project).where(Project.id == project.id).values(deleting_at=func.now(), version=Project.version + 1)
    )
    order = Order(
        workflow_id=acceptance.workflow_id,
        project_id=project.id,
        kind="DeprovisionProject",
        resource_type="project",
        resource_id=project.id,
        name=project.name[:63],
        request_id=request.state.request_id,
        deadline_seconds=DELETE_SECONDS,
    )
    await acceptance.write(order, "project.deleting", {"name": project.name, "unix_name": project.unix_name})
    return await acceptance.answer(show)
