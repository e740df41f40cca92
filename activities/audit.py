"""Sealing the audit log: its rows become links of their projects' chains, in commit order and in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import ColumnElement, Engine, Integer, Row, func, insert, literal, literal_column, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session
from temporalio import activity

from activities.chores import Chore
from activities.database import transaction
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
    signed,
)
from model.base import Frozen
from model.keyring import Keyring

#: Rows of one transaction, some hundred milliseconds; and batches of one pass.
BATCH, BATCHES = 1000, 20
log = structlog.get_logger()

_TAKE_TURN = text("SELECT pg_try_advisory_xact_lock(hashtext('cairn audit'))")
#: Chains whose links do not end where their heads say, and those that have links already of what is to be linked.
_TWISTED = text(
    """
    SELECT p.id FROM unnest(cast(:projects AS uuid[])) AS p(id) LEFT JOIN audit_heads h ON h.project_id = p.id
    WHERE EXISTS (SELECT FROM audit_links l WHERE l.project_id = p.id AND l.position > coalesce(h.position, 0))
    UNION
    SELECT l.project_id FROM audit_links l
    JOIN unnest(cast(:owners AS uuid[]), cast(:rows AS uuid[])) AS r(project_id, id)
        ON l.project_id = r.project_id AND l.audit_id = r.id
    """
)
_order = tuple_(AuditEntry.epoch, AuditEntry.xid, AuditEntry.id)
_now = func.current_epoch(type_=Integer)
#: Below the oldest transaction that still runs nothing can appear any more; an older epoch is complete. What claims to
#: be of a later one was written by somebody else: behind its link nothing would ever come.
_settled = (AuditEntry.epoch < _now) | (
    (AuditEntry.epoch == _now)
    & (AuditEntry.xid < literal_column("pg_snapshot_xmin(pg_current_snapshot())::text::bigint"))
)
_heads = AuditHead.__table__
#: Chains grow in one order, whosever rows come: what is behind the last link of all is not linked yet.
_LAST = select(_heads).order_by(_heads.c.epoch.desc(), _heads.c.xid.desc(), _heads.c.audit_id.desc())
_signing = upsert(_heads)  # type: ignore[arg-type]  # a Table, typed as FromClause
_SIGN = _signing.on_conflict_do_update(
    index_elements=["project_id"],
    set_={name: _signing.excluded[name] for name in ("position", "hash", "epoch", "xid", "audit_id", "key_id", "mac")}
    | {"sealed_at": func.now()},
)


class Sealed(Frozen):
    """What one pass did. ``more``: something is left."""

    links: int = 0
    more: bool = False


class ForeignHead(Exception):
    """Chains that do not end as the platform signed them: they are not continued, which would vouch for them."""

    def __init__(self, projects: set[UUID]) -> None:
        super().__init__("these audit chains do not end as we signed them: they are not continued")
        self.projects = projects


class AuditRecords:
    """Runs on the control queue, whenever the tick finds rows that no chain has.

    Without master keys nothing is sealed: nobody could tell who did it.
    """

    def __init__(self, engine: Engine, keyring: Keyring | None) -> None:
        self._engine = engine
        self._keyring = keyring

    @activity.defn(name="audit.seal", no_thread_cancel_exception=True)
    def seal(self) -> Sealed:
        """One pass, in transactions of ``BATCH`` rows. Repeated, or on two workers, it goes on where it was."""
        if self._keyring is None:
            return Sealed()
        links, left_out = 0, set[UUID]()
        for _ in range(BATCHES):
            if activity.is_cancelled():
                break
            try:
                count = self._seal(self._keyring, left_out)
            except ForeignHead as error:
                for project_id in error.projects:
                    log.error("audit.broken", project_id=str(project_id), error=str(error))
                left_out |= error.projects
                continue
            links += count
            if count < BATCH:
                return Sealed(links=links)
        return Sealed(links=links, more=True)

    def _seal(self, keyring: Keyring, left_out: set[UUID]) -> int:
        with transaction(self._engine) as session:
            if not session.execute(_TAKE_TURN).scalar_one():
                return 0  # another worker is at it
            rows = session.execute(_unsealed(session, keyring, left_out, BATCH)).all()
            heads = _known(session, keyring, rows)
            links = []
            for row in rows:
                project_id = row.project_id
                before = heads.get(project_id)
                position = before.position + 1 if before else 1
                digest = linked(before.hash if before else beginning(project_id), canonical(shown(row)))
                heads[project_id] = Head(position, digest, row.epoch, row.xid, row.id)
                links.append({"project_id": project_id, "position": position, "audit_id": row.id, "hash": digest})
            if links:
                session.execute(insert(AuditLink), links)
            if len(rows) < BATCH:  # those of idle projects too, however much is written in others
                heads = _with_other_keys(session, keyring) | heads
            _sign(session, keyring, heads)
            return len(rows)


def is_due(session: Session, keyring: Keyring | None) -> bool:
    """Whether a pass would do anything: two looks at the ends of indexes, and one at the heads."""
    if keyring is None:
        return False
    return session.execute(_unsealed(session, keyring, set(), 1)).first() is not None or (
        session.execute(select(_heads.c.position).where(_heads.c.key_id != keyring.newest).limit(1)).first() is not None
    )


def due(session: Session, keyring: Keyring | None) -> list[Chore]:
    """A pass, where it would do anything."""
    return (
        [Chore("SealAudit", "audit", "Link new rows of the audit log to its chains")]
        if is_due(session, keyring)
        else []
    )


def _unsealed(session: Session, keyring: Keyring, left_out: set[UUID], most: int) -> Any:
    last = session.execute(_LAST.limit(1)).one_or_none()
    if last is not None and not _ours(keyring, last):
        # One that somebody else wrote, far ahead, would end the sealing of all chains.
        last = next((row for row in session.execute(_LAST) if _ours(keyring, row)), None)
    where: list[ColumnElement[bool]] = [_settled, AuditEntry.project_id.not_in(left_out)]
    if last is not None:
        where.append(_order > tuple_(literal(last.epoch), literal(last.xid), literal(last.audit_id)))
    return select(*COLUMNS).where(*where).order_by(AuditEntry.epoch, AuditEntry.xid, AuditEntry.id).limit(most)


def _known(session: Session, keyring: Keyring, rows: Sequence[Row[Any]]) -> dict[UUID, Head]:
    """Where the chains of these rows end. Raises ForeignHead."""
    heads: dict[UUID, Head] = {}
    if not rows:
        return heads
    owners = [row.project_id for row in rows]
    projects = set(owners)
    asked = {"projects": list(projects), "owners": owners, "rows": [row.id for row in rows]}
    # All of them at once: a pass has fewer turns than there may be projects.
    foreign = set(session.execute(_TWISTED, asked).scalars())
    for row in session.execute(select(_heads).where(_heads.c.project_id.in_(projects))):
        if _ours(keyring, row):
            heads[row.project_id] = head_of(row)
        else:
            foreign.add(row.project_id)
    if foreign:
        raise ForeignHead(foreign)
    return heads


def _with_other_keys(session: Session, keyring: Keyring) -> dict[UUID, Head]:
    """Where chains end whose heads a key signed that is not the newest any more."""
    rows = session.execute(select(_heads).where(_heads.c.key_id != keyring.newest).limit(BATCH))
    return {row.project_id: head_of(row) for row in rows if _ours(keyring, row)}


def _ours(keyring: Keyring, row: Row[Any]) -> bool:
    # With a key that is gone nothing can be told, so nothing is vouched for.
    return row.key_id in keyring and is_genuine(keyring, row)


def _sign(session: Session, keyring: Keyring, heads: dict[UUID, Head]) -> None:
    key_id = keyring.newest
    rows = [
        head._asdict() | {"project_id": project_id, "key_id": key_id, "mac": signed(keyring, key_id, project_id, head)}
        for project_id, head in heads.items()
    ]
    if rows:
        session.execute(_SIGN, rows)
