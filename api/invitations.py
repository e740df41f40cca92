"""``/v1/projects/{id}/invitations``: who may become a member, and ``/v1/invitations/accept``."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints
from sqlalchemy import Row, delete, func, insert, select, update

from api import limits
from api.accept import Acceptance
from api.accounts import Email
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.letters import INVITATION
from api.paging import Paging, page_of
from api.resources import one
from api.rights import RoleName, bind, check_gives, check_is_member, hold, may_still_give
from model.audit import NOWHERE
from model.base import new_id
from model.errors import NotFound
from model.permissions import ROLES
from model.projects import Project
from model.secrets import digest, new_invitation, project_of_invitation
from model.settings import Settings
from model.users import Invitation, Mail, Role, User

router = APIRouter(prefix="/v1", tags=["members"], responses=RESPONSES)
VALID = dt.timedelta(days=7)
log = structlog.get_logger()


class InvitationView(BaseModel):
    id: str
    email: str
    role_name: str
    #: Who invites.
    invited_by: str
    created_at: dt.datetime
    expires_at: dt.datetime
    #: Null: not yet.
    accepted_at: dt.datetime | None


class NewInvitationView(InvitationView):
    #: Shown here, once, for who hands it over. Null where it goes out by mail.
    token: str | None


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


class InvitationCreate(BaseModel):
    """``POST /v1/projects/{id}/invitations``."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"email": "jo@example.org", "role_name": "developer"}]}
    )

    #: One that somebody can have an account under: a comma in it would be two recipients of the mail.
    email: Annotated[Email, BeforeValidator(_stripped)]
    role_name: RoleName


class Accept(BaseModel):
    """``POST /v1/invitations/accept``."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"token": f"cairn_invite_{'0' * 32}_{'A' * 43}"}]}
    )

    token: Annotated[str, StringConstraints(pattern=r"^[!-~]{1,200}$")]


class AcceptedView(BaseModel):
    project_id: str
    project_name: str


@router.post("/projects/{project_id}/invitations", status_code=201, response_model=Envelope[NewInvitationView])
async def create(
    request: Request,
    project_id: UUID,
    body: InvitationCreate,
    caller: Annotated[Caller, may("members:write")],
) -> Response:
    """Invite somebody by e-mail to a role, which may do no more than who invites: 403.

    The answer is the same whether or not somebody has an account under this address. The token is valid for 7 days,
    once, and for who has an account under just this address, as long as who invites may invite to that role. It goes
    out by mail; where the platform has no server for mails it is in `data.token`, for who invites to hand over. The
    same request again, with its `Idempotency-Key`, is answered without it.
    """
    invitation_id = new_id()
    if answered := await Acceptance(request, caller).answered_before(invitation_id, body.model_dump(mode="json")):
        return answer(request, _view(await _find(caller, answered.resource_id)) | {"token": None}, 201)
    await check_gives(caller, body.role_name)
    settings: Settings = request.app.state.settings
    by_mail = settings.smtp_url is not None
    if by_mail:
        # A project has as many service accounts as it likes: all of them together have one limit.
        await limits.count_mail(request, caller.who.user_id or caller.project_id)
    # That of the mail is made up as it is sent, and this one is nobody's.
    token = new_invitation(project_id)
    made = insert(Invitation).values(
        id=invitation_id,
        project_id=caller.project_id,
        email=body.email,
        role_name=body.role_name,
        digest=digest(token),
        invited_by=caller.actor,
        inviter_user_id=caller.who.user_id,
        inviter_account_id=caller.who.service_account_id,
        expires_at=func.now() + VALID,
    )
    row = (await caller.execute(made.returning(*Invitation.__table__.c))).one()
    caller.changed("invitation", invitation_id, after={"email": body.email, "role_name": body.role_name})
    log.info("invitation.made", invitation=str(invitation_id), by_mail=by_mail)
    if not by_mail:
        return answer(request, _view(row) | {"token": token}, 201)
    about = {"project_id": str(caller.project_id), "invitation_id": str(invitation_id)}
    await caller.execute(insert(Mail).values(id=new_id(), kind=INVITATION, recipient=body.email, about=about))
    await caller.commit()
    request.app.state.mails.ring()
    return answer(request, _view(row) | {"token": None}, 201)


@router.get("/projects/{project_id}/invitations", response_model=Envelope[list[InvitationView]])
async def index(
    request: Request, project_id: UUID, caller: Annotated[Caller, may("members:read")], page: Paging
) -> Response:
    """Invitations, newest first; those that were accepted or have expired too."""
    query = select(Invitation.__table__).where(Invitation.project_id == caller.project_id)
    return await page_of(request, caller, query, Invitation.__table__.c.id, page, _view)


@router.delete("/projects/{project_id}/invitations/{invitation_id}", status_code=204)
async def remove(project_id: UUID, invitation_id: UUID, caller: Annotated[Caller, may("members:write")]) -> Response:
    """Take an invitation back: its token is void. Who has accepted it stays a member."""
    row = await _find(caller, invitation_id)
    caller.changed("invitation", invitation_id, before={"email": row.email, "role_name": row.role_name})
    mine = (Invitation.project_id == caller.project_id) & (Invitation.id == invitation_id)
    await caller.execute(delete(Invitation).where(mine))
    return Response(status_code=204)


@router.post("/invitations/accept", operation_id="accept_invitation", response_model=Envelope[AcceptedView])
async def accept(request: Request, body: Accept, caller: Annotated[Caller, may("account:write")]) -> Response:
    """Become a member of the project that the token is for. 404, without a reason, where it is void: it was used, has
    expired, was taken back, is for another address, or who invited may not (any more). A token that came by mail proves
    the address."""
    project_id = project_of_invitation(body.token) or NOWHERE
    if caller.project_id != NOWHERE:
        asked = {"digest": digest(body.token).hex()}
        if await Acceptance(request, caller).answered_before(project_id, asked):
            await check_is_member(caller, project_id)
            return await _accepted(request, await caller.within(project_id))
    within = await caller.within(project_id)
    await hold(within)
    used = (
        update(Invitation)
        .where(
            Invitation.project_id == project_id,
            Invitation.digest == digest(body.token),
            Invitation.accepted_at.is_(None),
            Invitation.expires_at > func.now(),
            Invitation.email == select(User.email).where(User.id == caller.who.user_id).scalar_subquery(),
        )
        .values(accepted_at=func.now())
    )
    row = (await within.execute(used.returning(*Invitation.__table__.c))).one_or_none()
    if row is None or not await _has_role(within, row.role_name) or not await may_still_give(within, row):
        raise NotFound("the invitation is void: it was used, has expired, or is for another address")
    within.changed("member", caller.who.user_id, after={"role_name": row.role_name})
    await bind(within, row.role_name, user_id=caller.who.user_id)
    if row.mailed_at is not None:
        unproved = (User.id == caller.who.user_id) & User.verified_at.is_(None)
        await within.execute(update(User).where(unproved).values(verified_at=func.now()))
    return await _accepted(request, within)


async def _accepted(request: Request, caller: Caller) -> Response:
    query = select(Project.name).where(Project.id == caller.project_id, Project.deleted_at.is_(None))
    name = (await one(caller, query, "project", caller.project_id)).name
    return answer(request, {"project_id": caller.project_id, "project_name": name})


async def _has_role(caller: Caller, role_name: str) -> bool:
    if role_name in ROLES:
        return True
    query = select(Role.id).where(Role.project_id == caller.project_id, Role.name == role_name)
    return (await caller.execute(query.with_for_update(read=True))).one_or_none() is not None


async def _find(caller: Caller, invitation_id: UUID) -> Row[Any]:
    mine = (Invitation.project_id == caller.project_id) & (Invitation.id == invitation_id)
    return await one(caller, select(Invitation.__table__).where(mine), "invitation", invitation_id)


def _view(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in InvitationView.model_fields}
