"""Going through a chain of the audit log, in batches: whether it is whole, and all that it holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Row, func, select, text

from api.caller import Caller
from model.audit import (
    COLUMNS,
    AuditEntry,
    AuditHead,
    AuditLink,
    Head,
    beginning,
    canonical,
    head_of,
    is_genuine,
    linked,
    shown,
)
from model.keyring import Keyring

#: Rows of one transaction. Between them other requests have their turn.
BATCH, LOOKED_OVER = 500, 10_000
#: changed: the row is not what was linked. missing: a row, or a link, is gone. swapped: it stands where another
#: stood. unsealed_order: a row was put among those that are linked, and has no link. head: where the chain ends is not
#: what the platform signed, or not what the caller remembers. key: the master key that the head was signed with is
#: gone, so nobody can tell, and nothing is linked any more before it is back.
What = Literal["changed", "missing", "swapped", "unsealed_order", "head", "key"]

_link = (AuditLink.position, AuditLink.audit_id, AuditLink.hash)
_LINKS = (
    select(*_link, *(c.label(f"row_{c.name}") for c in COLUMNS))
    .outerjoin(
        AuditEntry,
        (AuditEntry.project_id == AuditLink.project_id) & (AuditEntry.id == AuditLink.audit_id),
    )
    .order_by(AuditLink.position)
)
# Those that have no link although others that were committed after them have: the first, of some rows.
_PUT_IN = text(
    """
    SELECT count(*) AS seen, (array_agg(a.id ORDER BY a.id DESC))[1] AS last,
        (array_agg(a.id ORDER BY a.id) FILTER (
            WHERE l.audit_id IS NULL AND (a.epoch, a.xid, a.id) <= (:epoch, :xid, :head_id)
        ))[1] AS put_in
    FROM (
        SELECT project_id, id, epoch, xid FROM audit WHERE project_id = :project AND id > :after ORDER BY id LIMIT :most
    ) a LEFT JOIN audit_links l ON l.project_id = a.project_id AND l.audit_id = a.id
    """
)


class Remembered(BaseModel):
    """Where the chain ended at some time, as somebody wrote it down then."""

    position: int
    hash: str


class Broken(BaseModel):
    """The first place where a chain is not what it was. ``position``: of the link, where it has one."""

    position: int | None
    audit_id: str | None
    what: What


class _Found(Exception):
    def __init__(self, what: What, position: int | None, audit_id: UUID | None) -> None:
        super().__init__(what)
        self.broken = Broken(position=position, audit_id=str(audit_id) if audit_id else None, what=what)


class Verdict(BaseModel):
    verified: bool
    #: Rows that there are, and those of them that are linked.
    entries: int
    sealed: int
    head: Remembered | None
    broken: Broken | None


async def verify(caller: Caller, chain: UUID, keyring: Keyring, remembered: Remembered | None) -> Verdict:
    """Go through all of a chain. ``caller`` has ended its transaction."""
    head, entries = None, 0
    async with caller.again() as connection:
        row, last = await _ends(connection, chain)
        counting = select(func.count()).select_from(AuditEntry).where(AuditEntry.project_id == chain)
        entries = (await connection.execute(counting)).scalar_one()
    broken = None
    try:
        if row is not None:
            head = head_of(row)
        if last > (head.position if head else 0):
            raise _Found("head", (head.position if head else 0) + 1, None)
        if row is not None and row.key_id not in keyring:
            raise _Found("key", row.position, row.audit_id)
        if row is not None and not is_genuine(keyring, row):
            raise _Found("head", row.position, row.audit_id)
        await _follow(caller, chain, head, remembered)
        if head is not None:
            await _look_between(caller, chain, head)
    except _Found as found:
        broken = found.broken
    said = Remembered(position=head.position, hash=head.hash.hex()) if head else None
    sealed = head.position if head else 0
    return Verdict(verified=broken is None, entries=entries, sealed=sealed, head=said, broken=broken)


async def _ends(connection: Any, chain: UUID) -> tuple[Row[Any] | None, int]:
    """The head, and the last link that there is, at one moment."""
    last = select(func.coalesce(func.max(AuditLink.position), 0)).where(AuditLink.project_id == chain)
    found = await connection.execute(
        select(AuditHead.__table__, last.scalar_subquery().label("last")).where(AuditHead.project_id == chain)
    )
    row = found.one_or_none()
    if row is not None:
        return row, row.last
    return None, (await connection.execute(last)).scalar_one()


async def _follow(caller: Caller, chain: UUID, head: Head | None, remembered: Remembered | None) -> None:
    """Link after link, up to the head. Raises _Found."""
    digest, position = beginning(chain), 0
    waiting: Row[Any] | None = None  # whose row did not fit: the one behind it tells why
    before: tuple[Any, ...] = ()
    async for link in links(caller, chain, head.position if head else 0):
        if waiting is not None:
            raise _Found("swapped" if _order(link) <= _order(waiting) else "changed", position, waiting.audit_id)
        position += 1
        if link.position != position:
            raise _Found("missing", position, None)
        if link.row_id is None:
            raise _Found("missing", position, link.audit_id)
        if _order(link) <= before:
            raise _Found("swapped", position, link.audit_id)
        before = _order(link)
        digest = linked(digest, _text(link))
        if digest != bytes(link.hash):
            waiting = link
        elif remembered is not None and remembered.position == position and remembered.hash != digest.hex():
            raise _Found("head", position, link.audit_id)
    if waiting is not None:
        raise _Found("changed", position, waiting.audit_id)
    if head is not None and position < head.position:
        raise _Found("missing", position + 1, None)
    if head is not None and digest != head.hash:
        raise _Found("head", position, head.audit_id)
    if remembered is not None and remembered.position > position:
        raise _Found("missing", position + 1, None)


def _text(link: Row[Any]) -> str:
    return canonical(shown(link[len(_link) :]))


def _order(link: Row[Any]) -> tuple[Any, ...]:
    return (link.row_epoch, link.row_xid, link.row_id) if link.row_id is not None else ()


async def _look_between(caller: Caller, chain: UUID, head: Head) -> None:
    """Raises _Found for a row that somebody put among those that are linked."""
    asked = {"project": chain, "epoch": head.epoch, "xid": head.xid, "head_id": head.audit_id, "most": LOOKED_OVER}
    after: UUID = UUID(int=0)
    while True:
        async with caller.again() as connection:
            found = (await connection.execute(_PUT_IN, asked | {"after": after})).one()
        if found.put_in is not None:
            raise _Found("unsealed_order", None, found.put_in)
        if found.seen < LOOKED_OVER:
            return
        after = found.last


async def links(caller: Caller, chain: UUID, until: int) -> AsyncIterator[Row[Any]]:
    """Links with their rows (``row_…``; all null: it is gone), each batch in a transaction of its own."""
    position = 0
    while position < until:
        some = _LINKS.where(AuditLink.project_id == chain, AuditLink.position > position, AuditLink.position <= until)
        async with caller.again() as connection:
            rows = (await connection.execute(some.limit(BATCH))).all()
        for row in rows:
            yield row
        if len(rows) < BATCH:
            return
        position = rows[-1].position
        await asyncio.sleep(0)


async def export(caller: Caller, chain: UUID) -> AsyncIterator[bytes]:
    """All of it as lines of JSON: what is linked, in order; what is not yet; and last where the chain ends."""
    async with caller.again() as connection:
        row, _ = await _ends(connection, chain)
    until = row.position if row is not None else 0
    count = 0
    waiting: list[str] = []
    async for link in links(caller, chain, until):
        entry = _text(link) if link.row_id is not None else "null"
        waiting.append(_line(entry, str(link.position), f'"{bytes(link.hash).hex()}"'))
        count += 1
        if len(waiting) >= BATCH:
            yield "".join(waiting).encode()
            waiting = []
    yield "".join(waiting).encode()
    async for rows in _not_linked(caller, chain, row):
        yield "".join(_line(canonical(shown(one)), "null", "null") for one in rows).encode()
        count += len(rows)
    end: dict[str, Any] = {"entries": count, "head": None}
    if row is not None:
        end["head"] = {"position": row.position, "hash": row.hash.hex(), "key_id": row.key_id, "mac": row.mac.hex()}
    yield f'{{"end":{canonical(end)}}}\n'.encode()


def _line(entry: str, position: str, digest: str) -> str:
    return f'{{"entry":{entry},"hash":{digest},"position":{position}}}\n'


async def _not_linked(caller: Caller, chain: UUID, head: Row[Any] | None) -> AsyncIterator[list[Any]]:
    after: tuple[Any, ...] = (head.epoch, head.xid, head.audit_id) if head is not None else (0, 0, UUID(int=0))
    order = func.row(AuditEntry.epoch, AuditEntry.xid, AuditEntry.id)
    while True:
        behind = order > func.row(*after)
        query = select(*COLUMNS).where(AuditEntry.project_id == chain, behind)
        async with caller.again() as connection:
            query = query.order_by(AuditEntry.epoch, AuditEntry.xid, AuditEntry.id).limit(BATCH)
            rows = list((await connection.execute(query)).all())
        if rows:
            yield rows
        if len(rows) < BATCH:
            return
        after = (rows[-1].epoch, rows[-1].xid, rows[-1].id)
