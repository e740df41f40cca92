"""``/v1/secrets``: values that instances are given, kept encrypted. The API writes them and cannot read them again."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Row, delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from api import vault
from api.accept import Acceptance, check_if_match, etag
from api.authentication import may
from api.caller import Caller
from api.envelope import Envelope, answer
from api.errors import RESPONSES
from api.instance_schemas import InstanceCreate, Name, SecretRef, Text
from api.paging import OfName, Paging, page_of
from api.resources import named, unique_name
from model.base import new_id
from model.envelope import encrypt, of_secret
from model.errors import InUse, NotFound, ValidationFailed
from model.groups import REACHABLE
from model.keyring import Keyring
from model.vault import LONGEST, RegistryLogin, Secret, SecretUse, SecretVersion

router = APIRouter(prefix="/v1/secrets", tags=["secrets"], responses=RESPONSES)

#: All but what is encrypted, which the API may not even select.
_shown = [SecretVersion.__table__.c[name] for name in ("id", "version", "created_at", "destroyed_at")]
#: What may use a secret, and how many users are named where it is in use.
KINDS = ("instances", "images", "groups", "deployments", "load_balancers", "cron_jobs")
NAMED = 20
_USING = text(
    f"""
    WITH named AS (
        SELECT 'instances' AS kind, i.name, i.secrets, i.registry_secret FROM instances i
        WHERE i.project_id = :project AND i.status <> 'deleted'
        AND (i.secrets <> '{{}}'::jsonb OR i.registry_secret IS NOT NULL)
        UNION ALL SELECT g.kind || 's', g.name, c.template -> 'secrets', c.template -> 'registry_secret'
        FROM scaling_groups g JOIN group_configurations c ON c.group_id = g.id AND {REACHABLE}
        WHERE g.project_id = :project AND g.status <> 'deleted'
        UNION ALL SELECT 'load_balancers', b.name, jsonb_build_object('tls', b.settings -> 'tls'), NULL
        FROM load_balancers b WHERE b.project_id = :project AND b.status <> 'deleted'
        UNION ALL SELECT 'images', i.name, '{{}}'::jsonb, i.registry_secret FROM images i
        WHERE i.project_id = :project AND i.status <> 'deleted' AND i.registry_secret IS NOT NULL
    )
    SELECT kind, name FROM named, jsonb_each(secrets) AS given(variable, use)
    WHERE use ->> 'secret_id' = :secret AND (cast(:version AS text) IS NULL OR use ->> 'version' = :version)
    UNION SELECT kind, name FROM named
    WHERE registry_secret ->> 'secret_id' = :secret AND cast(:version AS text) IS NULL
    UNION SELECT 'cron_jobs', j.name FROM cron_jobs j
    WHERE j.project_id = :project AND j.deleted_at IS NULL AND cast(:version AS text) IS NULL
    AND jsonb_path_exists(j.target, '$.http.**.secret_id ? (@ == $id)', jsonb_build_object('id', cast(:secret AS text)))
    ORDER BY 1 DESC, 2 LIMIT :most
    """  # noqa: S608 - nothing but text of this program
)


def _value(value: str) -> str:
    size = len(value.encode())
    if size > LONGEST:
        raise ValueError(f"it has {size} bytes, and may have {LONGEST}")
    return value


Value = Annotated[Text, Field(min_length=1, json_schema_extra={"maxLength": LONGEST}), AfterValidator(_value)]
Description = Annotated[Text, Field(max_length=1024)]
#: The name of a secret, or its id.
Named = Annotated[str, Path(max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]


class SecretCreate(BaseModel):
    """``POST /v1/secrets``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "db-password", "value": "correct horse battery staple"}]},
    )

    name: Name
    #: Up to 64 KiB. It is in no answer.
    value: Value
    description: Description = ""


class SecretPatch(BaseModel):
    """``PATCH /v1/secrets/{id}``. The name stays; another value is another version."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"description": "of the shop"}]})

    description: Description


class NewValue(BaseModel):
    """``POST /v1/secrets/{id}/versions``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"value": "another battery staple"}]})

    value: Value


class SecretView(BaseModel):
    id: str
    project_id: str
    name: str
    description: str
    #: Which instances get that name no other.
    current_version: int
    version: int
    created_at: dt.datetime
    updated_at: dt.datetime


class SecretVersionView(BaseModel):
    id: str
    version: int
    created_at: dt.datetime
    #: Since then nobody can read it any more.
    destroyed_at: dt.datetime | None


@router.post("", status_code=201, response_model=Envelope[SecretView])
async def create(request: Request, body: SecretCreate, caller: Annotated[Caller, may("secrets:write")]) -> Response:
    """Keep a value under a name. No answer shows it again."""
    keyring = vault.keyring(request)
    secret_id = new_id()
    asked = vault.fingerprinted(keyring, caller, body.model_dump(), "value")
    if answered := await Acceptance(request, caller).answered_before(secret_id, *asked):
        return _answer(request, await _find(caller, str(answered.resource_id)), 201)
    values = {"id": secret_id, "project_id": caller.project_id, "name": body.name, "description": body.description}
    with unique_name("a secret", body.name):
        row = (await caller.execute(insert(Secret).values(**values).returning(*Secret.__table__.c))).one()
    await _keep(caller, keyring, row, 1, body.value)
    caller.changed("secret", secret_id, after={"name": row.name, "current_version": 1})
    return _answer(request, row, 201)


@router.get("", response_model=Envelope[list[SecretView]])
async def index(
    request: Request, caller: Annotated[Caller, may("secrets:read")], page: Paging, name: OfName = None
) -> Response:
    """The project's secrets, newest first; never their values."""
    query = select(Secret.__table__).where(*named(Secret, caller, name))
    return await page_of(request, caller, query, Secret.__table__.c.id, page, _view)


@router.get("/{secret}", response_model=Envelope[SecretView])
async def show(request: Request, secret: Named, caller: Annotated[Caller, may("secrets:read")]) -> Response:
    """One secret, by name or id; never its value."""
    return _answer(request, await _find(caller, secret))


@router.put("/{secret}", response_model=Envelope[SecretView], summary="Change a secret's description")
async def put(
    request: Request, secret: Named, body: SecretPatch, caller: Annotated[Caller, may("secrets:write")]
) -> Response:
    """The same as PATCH."""
    return await patch(request, secret, body, caller)


@router.patch("/{secret}", response_model=Envelope[SecretView], summary="Describe a secret")
async def patch(
    request: Request, secret: Named, body: SecretPatch, caller: Annotated[Caller, may("secrets:write")]
) -> Response:
    """Change its description."""
    row = await _find(caller, secret, lock=True)
    check_if_match(request, row.version)
    caller.changed("secret", row.id, {"description": row.description}, {"description": body.description})
    return _answer(request, await _change(caller, row, description=body.description))


@router.delete("/{secret}", status_code=204)
async def remove(request: Request, secret: Named, caller: Annotated[Caller, may("secrets:write")]) -> Response:
    """Forget a secret with all its versions. 409 `in_use` while something names it: `instances`, `images`, `groups`,
    `deployments`, `load_balancers` and `cron_jobs` say which."""
    row = await _find(caller, secret, lock=True)
    check_if_match(request, row.version)
    await _check_unused(caller, row)
    caller.changed("secret", row.id, before={"name": row.name, "current_version": row.current_version})
    await caller.execute(delete(Secret).where(Secret.id == row.id))
    return Response(status_code=204)


@router.get("/{secret}/versions", response_model=Envelope[list[SecretVersionView]])
async def versions(
    request: Request, secret: Named, caller: Annotated[Caller, may("secrets:read")], page: Paging
) -> Response:
    """Its versions, newest first; never their values."""
    row = await _find(caller, secret)
    mine = (SecretVersion.project_id == caller.project_id) & (SecretVersion.secret_id == row.id)
    query = select(*_shown).where(mine)
    return await page_of(request, caller, query, SecretVersion.__table__.c.id, page, _version_view)


@router.post("/{secret}/versions", status_code=201, response_model=Envelope[SecretVersionView])
async def add_version(
    request: Request, secret: Named, body: NewValue, caller: Annotated[Caller, may("secrets:write")]
) -> Response:
    """Give a secret another value. Instances that name no version get it at their next start."""
    _, version = await _renew(request, secret, body, caller)
    return answer(request, _version_view(version), 201)


@router.post("/{secret}/rotate", response_model=Envelope[SecretView])
async def rotate(
    request: Request, secret: Named, body: NewValue, caller: Annotated[Caller, may("secrets:write")]
) -> Response:
    """The same, answered with the secret."""
    row, _ = await _renew(request, secret, body, caller)
    return _answer(request, row)


@router.delete("/{secret}/versions/{number}", status_code=204)
async def destroy_version(secret: Named, number: Number, caller: Annotated[Caller, may("secrets:write")]) -> Response:
    """Destroy a version: its row stays, its value is gone. 409 `in_use` of the current one, and of one that an
    instance names."""
    row = await _find(caller, secret, lock=True)
    if number == row.current_version:
        raise InUse(f"version {number} of secret '{row.name}' is the current one: add another first", version=number)
    await _check_unused(caller, row, number)
    caller.changed("secret", row.id, before={"name": row.name, "destroyed_version": number})
    gone = {"data_key_id": None, "nonce": None, "ciphertext": None, "destroyed_at": func.now()}
    this = (SecretVersion.project_id == caller.project_id) & (SecretVersion.secret_id == row.id)
    done = await caller.execute(
        update(SecretVersion)
        .where(this, SecretVersion.version == number, SecretVersion.destroyed_at.is_(None))
        .values(**gone)
        .returning(SecretVersion.id)
    )
    if done.one_or_none() is None:
        raise NotFound(f"secret '{row.name}' has no version {number} that is not destroyed")
    return Response(status_code=204)


async def uses(caller: Caller, body: InstanceCreate) -> dict[str, Any]:
    """What of its environment stands for secrets, as its row says it; they cannot be deleted until the commit, and
    after it the instance keeps them. Raises Forbidden, ValidationFailed."""
    found: dict[str, Any] = {}
    for name, ref in body.secret_env().items():
        caller.require("secrets:use")
        found[name] = (await use(caller, f"env.{name}", ref)).model_dump(mode="json")
    return found


async def login(caller: Caller, secret: str | None, field: str = "registry_secret") -> dict[str, Any] | None:
    """A secret with which hosts pull an image, as a row says it; likewise. Raises Forbidden, ValidationFailed."""
    if secret is None:
        return None
    caller.require("secrets:use")
    row = await _named(caller, field, secret)
    return RegistryLogin(secret=row.name, secret_id=row.id).model_dump(mode="json")


async def _named(caller: Caller, field: str, secret: str) -> Row[Any]:
    try:
        return await _find(caller, secret, share=True)
    except NotFound as error:
        raise _no_such(field, f"there is no secret '{secret}': see GET /v1/secrets") from error


async def use(caller: Caller, field: str, ref: SecretRef) -> SecretUse:
    """What a field of a request names; it cannot be deleted until the commit. Raises ValidationFailed."""
    row = await _named(caller, field, ref.secret)
    if ref.version is not None:
        this = (SecretVersion.secret_id == row.id) & (SecretVersion.version == ref.version)
        there = select(SecretVersion.id).where(this, SecretVersion.destroyed_at.is_(None))
        if (await caller.execute(there)).one_or_none() is None:
            raise _no_such(field, f"secret '{row.name}' has no version {ref.version}, or it was destroyed")
    return SecretUse(secret=row.name, secret_id=row.id, version=ref.version, delivery=ref.delivery)


def _no_such(field: str, said: str) -> ValidationFailed:
    return ValidationFailed(f"{field}: {said}", fields=[{"field": field, "message": said}])


async def _renew(request: Request, secret: str, body: NewValue, caller: Caller) -> tuple[Row[Any], Row[Any]]:
    """The secret and its new version."""
    keyring = vault.keyring(request)
    row = await _find(caller, secret, lock=True)
    version_id = new_id()
    asked = vault.fingerprinted(keyring, caller, body.model_dump(), "value")
    if answered := await Acceptance(request, caller).answered_before(version_id, *asked):
        known = select(*_shown).where(
            SecretVersion.project_id == caller.project_id, SecretVersion.id == answered.resource_id
        )
        version = (await caller.execute(known)).one_or_none()
        if version is None:
            raise NotFound(f"the version that this Idempotency-Key stands for went with an earlier secret '{secret}'")
        return row, version
    check_if_match(request, row.version)
    number = row.current_version + 1
    told = {"name": row.name, "current_version": number}
    caller.changed("secret", row.id, {"current_version": row.current_version}, told)
    kept = await _keep(caller, keyring, row, number, body.value, version_id)
    return await _change(caller, row, current_version=number), kept


async def _keep(
    caller: Caller, keyring: Keyring, secret: Row[Any], number: int, value: str, version_id: UUID | None = None
) -> Row[Any]:
    """Write a version, encrypted under the project's data key of the newest master key."""
    key_id, key = await vault.data_key(caller, keyring)
    encrypted = encrypt(key, value.encode(), of_secret(caller.project_id, secret.name, number))
    values = {"secret_id": secret.id, "version": number, "data_key_id": key_id, **encrypted._asdict()}
    writing = insert(SecretVersion).values(id=version_id or new_id(), project_id=caller.project_id, **values)
    try:
        return (await caller.execute(writing.returning(*_shown))).one()
    except IntegrityError as error:
        raise vault.unavailable(error, "secret_versions") from error


async def _find(caller: Caller, wanted: str, *, lock: bool = False, share: bool = False) -> Row[Any]:
    """By name or id. ``share``: it cannot be deleted meanwhile. Raises NotFound."""
    which: ColumnElement[bool]
    try:
        which = (Secret.id == UUID(wanted)) | (Secret.name == wanted)
    except ValueError:
        which = Secret.name == wanted
    query = select(Secret.__table__).where(Secret.project_id == caller.project_id, which)
    if lock:
        query = query.with_for_update()
    elif share:
        query = query.with_for_update(read=True, key_share=True)
    rows = (await caller.execute(query)).all()
    if not rows:
        raise NotFound(f"there is no secret '{wanted}'")
    # What is called like another's id is the one of that id.
    return next((row for row in rows if str(row.id) == wanted.lower()), rows[0])


async def _change(caller: Caller, row: Row[Any], **values: Any) -> Row[Any]:
    before = {"name": row.name} | {name: getattr(row, name) for name in values}
    caller.changed("secret", row.id, before, {"name": row.name} | values)
    changing = update(Secret).where(Secret.id == row.id).returning(*Secret.__table__.c)
    return (await caller.execute(changing.values(**values, version=Secret.version + 1, updated_at=func.now()))).one()


async def _check_unused(caller: Caller, row: Row[Any], number: int | None = None) -> None:
    """Raises InUse."""
    asked = {"project": caller.project_id, "secret": str(row.id), "version": None if number is None else str(number)}
    users = (await caller.execute(_USING, asked | {"most": NAMED})).all()
    if users:
        what = f"secret '{row.name}'" if number is None else f"version {number} of secret '{row.name}'"
        names = {kind: [user.name for user in users if user.kind == kind] for kind in KINDS}
        said = " and ".join(f"{kind.replace('_', ' ')} {', '.join(found)}" for kind, found in names.items() if found)
        raise InUse(f"{what} is used by {said}", **{kind: found for kind, found in names.items() if found})


def _answer(request: Request, row: Row[Any], status: int = 200) -> Response:
    return answer(request, _view(row), status, headers={"ETag": etag(row.version)})


def _view(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in SecretView.model_fields}


def _version_view(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in SecretVersionView.model_fields}
