"""Who may give what to whom: nobody gives, or takes, what goes beyond their own; no project is left ownerless."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any
from uuid import UUID

from pydantic import StringConstraints
from sqlalchemy import Row, func, select
from sqlalchemy.dialects.postgresql import insert as upsert

from api.caller import Caller
from model.base import new_id
from model.errors import AddressUnproved, Forbidden, LastOwner, NotFound, ValidationFailed
from model.permissions import ROLES, allows
from model.projects import Project
from model.users import Binding, Role, User

OWNER = "owner"
RoleName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,62}$")]


async def permissions_of(caller: Caller, role_name: str, *, hold: bool = False) -> frozenset[str]:
    """What the role of the caller's project may do. ``hold``: it is not deleted before the transaction ends.

    Raises ValidationFailed where there is none.
    """
    if role_name in ROLES:
        return ROLES[role_name]
    query = select(Role.permissions).where(Role.project_id == caller.project_id, Role.name == role_name)
    found = (await caller.execute(query.with_for_update(read=True) if hold else query)).scalar_one_or_none()
    if found is None:
        message = f"there is no role '{role_name}'"
        raise ValidationFailed(message, fields=[{"field": "role_name", "message": message}])
    return frozenset(found)


async def check_gives(caller: Caller, role_name: str) -> None:
    """Whether the caller may give or take the role. Raises Forbidden, ValidationFailed."""
    check_has(caller, await permissions_of(caller, role_name, hold=True), f"the role '{role_name}'")


def check_has(caller: Caller, permissions: Iterable[str], what: str) -> None:
    """Raises Forbidden where these are more than the caller's own, which the scopes of a key lessen too."""
    beyond = sorted(set(permissions) - caller.who.permissions)
    if beyond:
        shown = ", ".join(beyond[:5]) + (", …" if len(beyond) > 5 else "")  # noqa: PLR2004 - enough to see what it is
        raise Forbidden(f"{what} may do more than {caller.actor} here: {shown}", permissions=beyond)


async def hold(caller: Caller) -> None:
    """Lock the caller's project: of all who change who is in it, and what they may, one does at a time.

    Before anything else of the project is locked.
    """
    await caller.execute(select(Project.id).where(Project.id == caller.project_id).with_for_update(key_share=True))


async def check_is_member(caller: Caller, project_id: UUID) -> None:
    """Before a user is answered again what they did once: whether they are in that project still. Raises NotFound."""
    bound = select(Binding.id).where(Binding.project_id == project_id, Binding.user_id == caller.who.user_id)
    if (await caller.execute(bound.limit(1))).one_or_none() is None:
        raise NotFound("there is no such project")


async def check_proved(caller: Caller, user_id: UUID) -> None:
    """Before a user becomes a member, without having asked for it: whether it is known that the address is theirs.

    Else somebody registers as somebody else, and waits. Raises AddressUnproved.
    """
    member = select(Binding.id).where(Binding.project_id == caller.project_id, Binding.user_id == User.id)
    query = select(User.email).where(User.id == user_id, User.verified_at.is_(None), ~member.exists())
    email = (await caller.execute(query)).scalar_one_or_none()
    if email is not None:
        raise AddressUnproved(f"it is not known whether {email} belongs to that user: invite them", invite=email)


async def may_still_give(caller: Caller, row: Row[Any]) -> bool:
    """Whether who invited could do so now: is there, active, and may do as much as the role."""
    roles = select(Binding.role_name).where(Binding.project_id == caller.project_id)
    if row.inviter_user_id is not None:
        active = select(User.id).where(User.id == row.inviter_user_id, User.deactivated_at.is_(None))
        roles = roles.where(Binding.user_id == row.inviter_user_id, active.exists())
    else:
        roles = roles.where(Binding.service_account_id == row.inviter_account_id)
    theirs: set[str] = set()
    for role_name in (await caller.execute(roles)).scalars():
        theirs |= await permissions_of(caller, role_name)
    return "members:write" in theirs and await permissions_of(caller, row.role_name, hold=True) <= theirs


async def bind(
    caller: Caller, role_name: str, *, user_id: UUID | None = None, service_account_id: UUID | None = None
) -> None:
    """Give the role; again changes nothing. Whether the caller may is asked before."""
    row = {"id": new_id(), "project_id": caller.project_id, "role_name": role_name}
    who = {"user_id": user_id, "service_account_id": service_account_id}
    await caller.execute(upsert(Binding).values(**row, **who).on_conflict_do_nothing())


async def check_an_owner_is_left(caller: Caller, leaving: UUID) -> None:
    """Before this user stops being an owner of the caller's project: whether somebody else goes on being one. Whoever
    asks holds the project. Raises LastOwner."""
    others = (
        select(func.count())
        .select_from(Binding)
        .join(User, User.id == Binding.user_id)
        .where(
            Binding.project_id == caller.project_id,
            Binding.role_name == OWNER,
            Binding.user_id != leaving,
            User.deactivated_at.is_(None),
        )
    )
    if (await caller.execute(others)).scalar_one() == 0:
        raise LastOwner("the project would have no owner: make somebody else its owner first, or delete it")


async def of_service_account(caller: Caller, service_account_id: UUID, scopes: Sequence[str] | None) -> set[str]:
    """What a key of this service account with these scopes may do in the project."""
    roles = select(Binding.role_name).where(
        Binding.project_id == caller.project_id, Binding.service_account_id == service_account_id
    )
    found: set[str] = set()
    for role_name in (await caller.execute(roles)).scalars():
        found |= await permissions_of(caller, role_name)
    return found if scopes is None else {permission for permission in found if allows(list(scopes), permission)}
