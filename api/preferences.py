"""``/v1/preferences``: what a user wants remembered, from one program or device to the next."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Path, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert as upsert

from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES, also
from api.instance_schemas import check_json
from model.errors import Forbidden, InUse, NotFound
from model.preferences import MOST_KEYS, MOST_VALUE, Preference

router = APIRouter(prefix="/v1/preferences", tags=["auth"], responses=RESPONSES | also(409))

Key = Annotated[
    str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="Lower-case letters, digits, `.`, `_` and `-`")
]
_ALONE = text("SELECT pg_advisory_xact_lock(hashtextextended('preferences ' || :user, 0))")


def _small(value: Any) -> Any:
    if len(orjson.dumps(check_json(value))) > MOST_VALUE:
        raise ValueError(f"more than {MOST_VALUE} bytes as JSON")
    return value


class PreferenceIn(BaseModel):
    """``PUT /v1/preferences/{key}``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"value": {"theme": "dark"}}]})

    #: Any JSON, at most 8 KiB.
    value: Annotated[Any, AfterValidator(_small), Field()]


class PreferenceView(BaseModel):
    key: str
    value: Any
    updated_at: dt.datetime


@router.get("", response_model=Envelope[list[PreferenceView]])
async def index(request: Request, caller: Annotated[Caller, may("account:read")]) -> Response:
    """All of the caller's own, by key: at most 100."""
    query = select(Preference.__table__).where(Preference.user_id == _user(caller)).order_by(Preference.key)
    return answer(request, [_view(row) for row in await caller.execute(query)])


@router.get("/{key}", response_model=Envelope[PreferenceView])
async def show(request: Request, key: Key, caller: Annotated[Caller, may("account:read")]) -> Response:
    """One of the caller's own."""
    query = select(Preference.__table__).where(Preference.user_id == _user(caller), Preference.key == key)
    row = (await caller.execute(query)).one_or_none()
    if row is None:
        raise NotFound(f"there is no preference '{key}'")
    return answer(request, _view(row))


@router.put("/{key}", response_model=Envelope[PreferenceView])
async def put(
    request: Request, key: Key, body: PreferenceIn, caller: Annotated[Caller, may("account:write")]
) -> Response:
    """Keep a value under this key, in the place of the one before."""
    user = _user(caller)
    await caller.execute(_ALONE, {"user": str(user)})
    others = select(func.count()).where(Preference.user_id == user, Preference.key != key)
    if (await caller.execute(others)).scalar_one() >= MOST_KEYS:
        raise InUse(f"{MOST_KEYS} preferences are kept, as many as may be: delete one")
    kept = upsert(Preference).values(user_id=user, key=key, value=body.value, updated_at=func.now())
    kept = kept.on_conflict_do_update(
        index_elements=["user_id", "key"], set_={"value": kept.excluded.value, "updated_at": func.now()}
    )
    row = (await caller.execute(kept.returning(*Preference.__table__.c))).one()
    caller.changed("preference", user, after={"key": key})
    return answer(request, _view(row))


@router.delete("/{key}", status_code=204)
async def remove(request: Request, key: Key, caller: Annotated[Caller, may("account:write")]) -> Response:
    """Forget it; one that is not there is forgotten already."""
    user = _user(caller)
    await caller.execute(delete(Preference).where(Preference.user_id == user, Preference.key == key))
    caller.changed("preference", user, before={"key": key})
    return Response(status_code=204)


def _user(caller: Caller) -> UUID:
    if caller.who.user_id is None:
        raise Forbidden("a service account has no preferences: only users have")
    return caller.who.user_id


def _view(row: Any) -> dict[str, Any]:
    return {"key": row.key, "value": row.value, "updated_at": row.updated_at}
