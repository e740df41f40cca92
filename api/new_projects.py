"""Making a project: its row, its quotas, and who owns it."""

from __future__ import annotations

import re
import secrets
from uuid import UUID

from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from api.caller import Caller
from api.resources import violated
from model.base import new_id
from model.errors import NameTaken
from model.projects import Project, ProjectQuota, limits_of
from model.settings import Settings
from model.users import Binding

#: Of a derived unix name: what is kept of the project's name, and random characters behind it.
_KEPT, _SUFFIX = 20, 8
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


def derived_unix_name(name: str) -> str:
    """From the project's name, with a suffix that nobody else has: 40 random bits."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_KEPT].strip("-")
    if not re.match(r"[a-z]", words):
        words = f"p-{words}".strip("-")
    return f"{words}-{''.join(secrets.choice(_ALPHABET) for _ in range(_SUFFIX))}"


async def make(
    caller: Caller,
    settings: Settings,
    owner: UUID,
    project_id: UUID,
    *,
    name: str,
    unix_name: str | None = None,
    description: str = "",
    personal: bool = False,
) -> Caller:
    """Write the project of this (new) id, with the quotas of the settings and this user as its owner; the caller in
    it, where the transaction is from then on. Raises NameTaken.
    """
    within = await caller.within(project_id)
    row = {"id": project_id, "name": name, "description": description, "personal_of": owner if personal else None}
    try:
        await within.execute(insert(Project).values(**row, unix_name=unix_name or derived_unix_name(name)))
    except IntegrityError as error:
        if unix_name is not None and violated(error) == "uq_projects_live_unix_name":
            raise NameTaken(f"the unix name '{unix_name}' is taken: they are one name space", name=unix_name) from error
        raise
    await within.execute(
        insert(ProjectQuota).values(
            project_id=project_id,
            **limits_of(settings),
        )
    )
    await within.execute(insert(Binding).values(id=new_id(), project_id=project_id, user_id=owner, role_name="owner"))
    return within
