"""``GET /v1/operations/keys``: how much still lies under which master key."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from sqlalchemy import text

from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from model.keyring import Keyring
from model.settings import Settings

router = APIRouter(prefix="/v1/operations", tags=["operations"], responses=RESPONSES)

_COUNT = text(
    """
    SELECT k.master_key_id, count(*) AS data_keys,
        sum((SELECT count(*) FROM secret_versions v WHERE v.project_id = k.project_id AND v.data_key_id = k.id))::int
            AS secret_versions,
        sum((SELECT count(*) FROM sealed_values v WHERE v.project_id = k.project_id AND v.data_key_id = k.id))::int
            AS sealed_values
    FROM data_keys k
    GROUP BY k.master_key_id ORDER BY k.master_key_id
    """
)
_SIGNED = text("SELECT key_id, count(*) AS heads FROM audit_heads GROUP BY key_id ORDER BY key_id")


class MasterKeyView(BaseModel):
    id: str
    #: Whether it makes what is new.
    newest: bool
    #: Whether this API has it. One that it lacks, and under which something lies, is missing.
    known: bool
    data_keys: int
    #: Values of secrets, all versions counted.
    secret_versions: int
    #: What webhooks sign with, and scripts of instances.
    sealed_values: int
    #: Chains of the audit log whose end it signed.
    audit_heads: int


class MasterKeys(BaseModel):
    #: Null: this API has none.
    newest: str | None
    keys: list[MasterKeyView]
    #: What lies under others than the newest, or is signed with them: 0 once they can be taken away.
    left: int


@router.get("/keys", summary="Get the master keys", response_model=Envelope[MasterKeys])
async def show(request: Request, caller: Annotated[Caller, may("operations:manage")]) -> Response:
    """Which master keys there are, by their ids, and how much lies under each."""
    settings: Settings = request.app.state.settings
    keyring = None if settings.master_keys is None else Keyring(settings.master_keys.get_secret_value())
    ids = [] if keyring is None else keyring.ids
    under = {row.master_key_id: row for row in (await caller.execute(_COUNT)).all()}
    signed = {row.key_id: row.heads for row in (await caller.execute(_SIGNED)).all()}
    newest = ids[0] if ids else None
    keys = [
        MasterKeyView(
            id=id,
            newest=id == newest,
            known=id in ids,
            data_keys=under[id].data_keys if id in under else 0,
            secret_versions=under[id].secret_versions if id in under else 0,
            sealed_values=under[id].sealed_values if id in under else 0,
            audit_heads=signed.get(id, 0),
        )
        for id in dict.fromkeys([*ids, *under, *signed])
    ]
    left = sum(key.data_keys + key.audit_heads for key in keys if not key.newest)
    return answer(request, MasterKeys(newest=newest, keys=keys, left=left).model_dump())
