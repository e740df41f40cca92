"""What the routes of accounts share: addresses, names, how a user is made, and how one is shown."""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any
from uuid import UUID

from fastapi import Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from api.caller import ENTER
from api.hashing import Hashing
from api.instance_schemas import Text
from model.base import new_id
from model.errors import NameTaken, ValidationFailed
from model.passwords import MOST
from model.projects import Project, ProjectQuota, limits_of
from model.settings import Settings
from model.users import Binding, User

MOST_EMAIL = 254
#: A local part without quotes and comments (RFC 5321's dot-string), at a host name of any domain, ``.local`` too.
_ATOM, _LABEL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+", r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_EMAIL = rf"^{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*$"
_MOST_LOCAL = 64
#: Of a personal project's name: what is left of the 32 characters that it may have goes to the suffix.
_MOST_BASE, _SUFFIX_BYTES = 25, 3


def _email(value: str) -> str:
    if len(value.partition("@")[0]) > _MOST_LOCAL:
        raise ValueError(f"at most {_MOST_LOCAL} characters before the @")
    return value.lower()


Email = Annotated[str, Field(max_length=MOST_EMAIL, pattern=_EMAIL), AfterValidator(_email)]
Password = Annotated[Text, Field(max_length=MOST)]
PersonName = Annotated[Text, Field(min_length=1, max_length=100)]
Token = Annotated[Text, Field(min_length=1, max_length=200)]


class Registration(BaseModel):
    """``POST /v1/auth/register``, ``POST /v1/users``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"email": "jo@example.org", "password": "correct horse battery staple", "name": "Jo"}]
        },
    )

    email: Email
    password: Password
    name: PersonName


class UserView(BaseModel):
    id: str
    email: str
    name: str
    default_project_id: str | None


def view(row: Any) -> dict[str, Any]:
    """A user, as in the answers of register, login and refresh."""
    return {name: getattr(row, name) for name in UserView.model_fields}


async def check_password(hashing: Hashing, address: str, password: str, *known: str) -> None:
    """Raises ValidationFailed where nobody of this e-mail address and name should have it. ``address``: who asks."""
    if problem := await hashing.problem_of(password, *known, address=address):
        raise ValidationFailed(f"password: {problem}", fields=[{"field": "password", "message": problem}])


async def make_user(
    request: Request,
    connection: AsyncConnection,
    email: str,
    name: str,
    kept: str,
    *,
    user_id: UUID | None = None,
    verified: bool = False,
) -> dict[str, Any]:
    """A user with a project of their own, in this transaction, which enters that project. Raises NameTaken.

    ``verified``: somebody vouches for the address.
    """
    settings: Settings = request.app.state.settings
    user_id, project_id = user_id or new_id(), new_id()
    made = await connection.execute(
        upsert(User)
        # In development nobody could prove anything.
        .values(
            id=user_id,
            email=email,
            name=name,
            password_hash=kept,
            verified_at=func.now() if verified or settings.mails_are_logged else None,
        )
        .on_conflict_do_nothing(index_elements=["email"])
        .returning(User.id)
    )
    if made.one_or_none() is None:
        todo = "" if verified else ": log in, or reset the password"
        raise NameTaken(f"there is a user with the address {email} already{todo}", email=email)
    await connection.execute(ENTER, {"project": str(project_id)})
    await _make_project(connection, project_id, email, name, user_id)
    await connection.execute(insert(ProjectQuota).values(project_id=project_id, **limits_of(settings)))
    binding = {"id": new_id(), "project_id": project_id, "user_id": user_id, "role_name": "owner"}
    await connection.execute(insert(Binding).values(**binding))
    await connection.execute(update(User).where(User.id == user_id).values(default_project_id=project_id))
    found = await connection.execute(select(User.__table__).where(User.id == user_id))
    return view(found.one())


async def _make_project(connection: AsyncConnection, project_id: UUID, email: str, name: str, user_id: UUID) -> None:
    base = _unix_name(email)
    values = {"id": project_id, "name": name, "personal_of": user_id, "description": "personal project"}
    for unix_name in (base, f"{base}-{secrets.token_hex(_SUFFIX_BYTES)}", f"p-{project_id.hex[:24]}"):
        made = await connection.execute(
            # Without an arbiter: the index is a partial one.
            upsert(Project).values(**values, unix_name=unix_name).on_conflict_do_nothing().returning(Project.id)
        )
        if made.one_or_none() is not None:
            return
    raise RuntimeError("a UUID's name is taken")


def _unix_name(email: str) -> str:
    """Of the address's local part, as the rule of such names has it."""
    words = re.sub(r"[^a-z0-9]+", "-", email.partition("@")[0]).strip("-")
    found = words if words[:1].isalpha() else f"p-{words}"
    found = found[:_MOST_BASE].strip("-")
    return found if re.fullmatch(r"[a-z][a-z0-9-]{1,30}[a-z0-9]", found) else f"{found}-user"
