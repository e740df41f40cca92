"""``/v1/credentials``: with what repositories are fetched, kept encrypted. The API writes them and cannot read them."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from sqlalchemy import Row, delete, func, insert, select, update

from api import vault
from api.accept import Acceptance, check_if_match, etag
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.paging import OfName, Paging, page_of
from api.resources import named, one, unique_name
from api.workspace_schemas import CredentialCreate, CredentialValue, CredentialView, check_value
from model.base import new_id
from model.errors import InUse, ValidationFailed
from model.workspaces import Credential, Workspace, WorkspaceStatus

router = APIRouter(prefix="/v1/credentials", tags=["workspaces"], responses=RESPONSES)

#: Git servers that look at the token alone take any name.
ANYBODY = "git"
#: How many users an error names.
NAMED = 20


@router.post("", status_code=201, response_model=Envelope[CredentialView])
async def create(
    request: Request, body: CredentialCreate, caller: Annotated[Caller, may("credentials:write")]
) -> Response:
    """Keep a token or a private key for one host. No answer shows it again, and no other host is sent it."""
    keyring, credential_id = vault.keyring(request), new_id()
    secret = "token" if body.type == "https" else "private_key"
    asked = vault.fingerprinted(keyring, caller, body.model_dump(), secret)
    if answered := await Acceptance(request, caller).answered_before(credential_id, *asked):
        return _answer(request, await _find(caller, answered.resource_id), 201)
    values = {
        "id": credential_id,
        "project_id": caller.project_id,
        "name": body.name,
        "type": body.type,
        "host": body.host,
        "username": body.username or ANYBODY,
        "known_hosts": body.known_hosts,
    }
    with unique_name("a credential", body.name):
        row = (await caller.execute(insert(Credential).values(**values).returning(*Credential.__table__.c))).one()
    await vault.keep(caller, keyring, _value(body), credential_id=credential_id)
    caller.changed("credential", credential_id, after=_told(row))
    return _answer(request, row, 201)


@router.get("", response_model=Envelope[list[CredentialView]])
async def index(
    request: Request, caller: Annotated[Caller, may("credentials:read")], page: Paging, name: OfName = None
) -> Response:
    """The project's credentials, newest first; never their values."""
    query = select(Credential.__table__).where(*named(Credential, caller, name))
    return await page_of(request, caller, query, Credential.__table__.c.id, page, _view)


@router.get("/{credential_id}", response_model=Envelope[CredentialView])
async def show(request: Request, credential_id: UUID, caller: Annotated[Caller, may("credentials:read")]) -> Response:
    """One credential; never its value."""
    return _answer(request, await _find(caller, credential_id))


@router.put("/{credential_id}", response_model=Envelope[CredentialView], summary="Rotate a credential")
async def rotate(
    request: Request, credential_id: UUID, body: CredentialValue, caller: Annotated[Caller, may("credentials:write")]
) -> Response:
    """Give it another value, with which workspaces are fetched from then on. Its type and host stay."""
    keyring = vault.keyring(request)
    row = await _find(caller, credential_id, lock=True)
    check_if_match(request, row.version)
    try:
        check_value(row.type, body)
    except ValueError as error:
        raise ValidationFailed(str(error), fields=[{"field": "body", "message": str(error)}]) from None
    await vault.keep(caller, keyring, _value(body), credential_id=credential_id)
    values: dict[str, Any] = {"rotated_at": func.now(), "updated_at": func.now(), "version": Credential.version + 1}
    if body.known_hosts is not None:
        values["known_hosts"] = body.known_hosts
    changing = update(Credential).where(Credential.id == row.id).values(**values).returning(*Credential.__table__.c)
    after = (await caller.execute(changing)).one()
    caller.changed("credential", row.id, _told(row), _told(after) | {"rotated": True})
    return _answer(request, after)


@router.delete("/{credential_id}", status_code=204)
async def remove(
    request: Request, credential_id: UUID, caller: Annotated[Caller, may("credentials:write")]
) -> Response:
    """Forget a credential. 409 `in_use` while a workspace names it: `workspaces` says which."""
    row = await _find(caller, credential_id, lock=True)
    check_if_match(request, row.version)
    users = select(Workspace.name).where(
        Workspace.project_id == caller.project_id,
        Workspace.credential_id == row.id,
        Workspace.status != WorkspaceStatus.DELETED,
    )
    names = list((await caller.execute(users.order_by(Workspace.name).limit(NAMED))).scalars())
    if names:
        raise InUse(f"credential '{row.name}' is used by workspaces {', '.join(names)}", workspaces=names)
    caller.changed("credential", row.id, before=_told(row))
    await caller.execute(delete(Credential).where(Credential.id == row.id))
    return Response(status_code=204)


async def usable(caller: Caller, credential_id: UUID) -> Row[Any]:
    """The credential, which cannot be deleted meanwhile. Raises NotFound."""
    mine = (Credential.project_id == caller.project_id) & (Credential.id == credential_id)
    held = select(Credential.__table__).where(mine).with_for_update(read=True, key_share=True)
    return await one(caller, held, "credential", credential_id)


async def _find(caller: Caller, credential_id: UUID, *, lock: bool = False) -> Row[Any]:
    mine = (Credential.project_id == caller.project_id) & (Credential.id == credential_id)
    query = select(Credential.__table__).where(mine)
    return await one(caller, query.with_for_update() if lock else query, "credential", credential_id)


def _value(body: CredentialValue) -> str:
    return body.token or body.private_key or ""


def _answer(request: Request, row: Row[Any], status: int = 200) -> Response:
    return answer(request, _view(row), status, headers={"ETag": etag(row.version)})


def _told(row: Row[Any]) -> dict[str, Any]:
    """What the audit log shows of it."""
    return {"name": row.name, "type": row.type, "host": row.host, "username": row.username}


def _view(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in CredentialView.model_fields}
