"""Secrets brought under the newest master key, a batch at a time, while they are used and written; and what a release
before left in clear, sealed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar
from uuid import UUID

import structlog
from sqlalchemy import ColumnElement, Engine, Select, delete, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Session, undefer
from temporalio import activity

from activities.chores import Chore
from activities.database import transaction
from activities.secrets import Opened, give_script
from model.base import Frozen, new_id
from model.envelope import Encrypted, EnvelopeBroken, decrypt, encrypt, new_data_key, of_secret, wrap
from model.hosts import Host
from model.instances import STABLE, Instance
from model.keyring import Keyring, KeyUnknown
from model.restores import restored
from model.sealing import SealBroken
from model.vault import DataKey, SealedValue, Secret, SecretVersion
from model.webhooks import Webhook

#: Versions of one transaction; what is in clear, of one pass.
BATCH, MOST = 200, 1000
PASS_SECONDS = 60.0
log = structlog.get_logger()
R = TypeVar("R", Webhook, Instance)
#: What is in clear. A script is left so while a run may be about to ask an API of the release before for it.
_SECRET = Webhook.secret.is_not(None)
_SCRIPT = Instance.user_data.is_not(None) & Instance.status.in_(STABLE)
Values = Select[Any] | Select[Any, Any]


class Reencrypted(Frozen):
    """What one pass did. ``left``: versions that do not open, or lie under a key that this worker does not have."""

    versions: int = 0
    keys: int = 0
    left: int = 0
    #: It was not through.
    more: bool = False


class SecretRecords:
    """Runs on the control queue. Each batch is a transaction: what is under the new key stays there."""

    def __init__(self, engine: Engine, keyring: Keyring | None) -> None:
        self._engine = engine
        self._keyring = keyring

    @activity.defn(name="secrets.reencrypt", no_thread_cancel_exception=True)
    def reencrypt(self) -> Reencrypted:
        """One pass over what is in clear, and what lies under older master keys. Repeated, it goes on with the rest.

        Values get a new data key, not only their data key another wrapping: who has an old master key and an old copy
        of the database reads nothing that was written since.
        """
        if self._keyring is None:
            return Reencrypted()
        until = time.monotonic() + PASS_SECONDS
        with transaction(self._engine) as session:
            if restored(session):
                return Reencrypted()
            older = select(DataKey).where(DataKey.master_key_id != self._keyring.newest).order_by(DataKey.id)
            keys = list(session.scalars(older))
        versions = self._seal(self._keyring, Webhook, Webhook.secret, _SECRET, until)
        versions += self._seal(self._keyring, Instance, Instance.user_data, _SCRIPT, until)
        done = left = 0
        for key in keys:
            if activity.is_cancelled() or time.monotonic() >= until:
                return Reencrypted(versions=versions, keys=done, left=left, more=True)
            for values in (self._versions, self._sealed):
                moved, stuck = self._move(self._keyring, key, values)
                versions, left = versions + moved, left + stuck
            done += self._remove(key)
        return Reencrypted(versions=versions, keys=done, left=left)

    def _seal(
        self,
        keyring: Keyring,
        table: type[R],
        clear: InstrumentedAttribute[str | None],
        due: ColumnElement[bool],
        until: float,
    ) -> int:
        """What is in clear, each in a transaction of its own; how many. What is locked is found by the next pass."""
        with transaction(self._engine) as session:
            found = session.execute(select(table.project_id, table.id).where(due).limit(MOST)).all()
        done = 0
        for project_id, id in found:
            if activity.is_cancelled() or time.monotonic() >= until:
                break
            with transaction(self._engine, project_id) as session:
                this = select(table).where(table.id == id, due).options(undefer(clear))
                row = session.scalars(this.with_for_update(skip_locked=True)).one_or_none()
                if row is not None:
                    self._seal_one(session, keyring, row)
                    done += 1
        return done

    def _seal_one(self, session: Session, keyring: Keyring, row: Webhook | Instance) -> None:
        if isinstance(row, Webhook):
            value, row.secret = row.secret, None
            owner = {"webhook_id": row.id}
        else:
            # What was placed with it in clear may be about to be made, or be made anew: its host finds it sealed.
            placed = (row.host_id, row.generation), (row.next_host_id, row.next_generation)
            for host_id, generation in placed:
                host = session.get(Host, host_id) if host_id is not None else None
                if host is not None and generation is not None:
                    with suppress(SealBroken):  # without a key of its own it could not read it before either
                        give_script(session, keyring, row, host, generation)
            value, row.user_data = row.user_data, None
            owner = {"instance_id": row.id}
        key_id = newest_key(session, keyring, row.project_id)
        made = SealedValue(id=new_id(), project_id=row.project_id, **owner)
        key = Opened(session, keyring, row.project_id).key(key_id)
        encrypted = {"data_key_id": key_id, **encrypt(key, (value or "").encode(), made.what)._asdict()}
        session.execute(
            insert(SealedValue)
            .values(id=made.id, project_id=made.project_id, **owner, **encrypted)
            .on_conflict_do_update(index_elements=list(owner), set_=encrypted)
        )

    def _versions(self, old: DataKey, after: UUID) -> Values:
        mine = (SecretVersion.project_id == old.project_id) & (SecretVersion.data_key_id == old.id)
        query = select(SecretVersion, Secret.name).join(Secret, Secret.id == SecretVersion.secret_id)
        return (
            query.where(mine, SecretVersion.id > after)
            .order_by(SecretVersion.id)
            .with_for_update(of=SecretVersion, skip_locked=True)
        )

    def _sealed(self, old: DataKey, after: UUID) -> Values:
        mine = (SealedValue.project_id == old.project_id) & (SealedValue.data_key_id == old.id)
        query = select(SealedValue).where(mine, SealedValue.id > after).order_by(SealedValue.id)
        return query.with_for_update(skip_locked=True)

    def _move(self, keyring: Keyring, old: DataKey, values: Callable[[DataKey, UUID], Values]) -> tuple[int, int]:
        """Everything of one kind under one data key: how many were moved, and how many could not be."""
        moved = stuck = 0
        after = UUID(int=0)
        while not activity.is_cancelled():
            with transaction(self._engine, old.project_id) as session:
                # What is being written or destroyed is found by the next pass.
                rows = session.execute(values(old, after).limit(BATCH)).all()
                if not rows:
                    break
                opened = Opened(session, keyring, old.project_id)
                new = newest_key(session, keyring, old.project_id)
                failures: dict[str, str] = {}
                for row, *name in rows:
                    what = of_secret(old.project_id, name[0], row.version) if name else row.what
                    try:
                        value = decrypt(opened.key(row.data_key_id), Encrypted(row.nonce, row.ciphertext), what)
                    except (KeyUnknown, EnvelopeBroken) as error:
                        failures[str(row.id)] = error.message
                        continue
                    row.nonce, row.ciphertext = encrypt(opened.key(new), value, what)
                    row.data_key_id = new
                if failures:
                    first, said = next(iter(failures.items()))
                    many = len(failures)
                    log.error("secret.not_reencrypted", data_key_id=str(old.id), many=many, first=first, error=said)
                moved, stuck = moved + len(rows) - len(failures), stuck + len(failures)
                after = rows[-1][0].id
        return moved, stuck

    def _remove(self, old: DataKey) -> int:
        """The key itself, once nothing lies under it."""
        under = [
            select(table.id).where(table.project_id == old.project_id, table.data_key_id == old.id).exists()
            for table in (SecretVersion, SealedValue)
        ]
        try:
            with transaction(self._engine, old.project_id) as session:
                gone = delete(DataKey).where(DataKey.id == old.id, ~or_(*under)).returning(DataKey.id)
                return len(session.execute(gone).all())
        except IntegrityError:  # an API that does not have the newer key yet wrote under it just now
            return 0


def newest_key(session: Session, keyring: Keyring, project_id: UUID) -> UUID:
    """The project's data key under the newest master key, made where there is none."""
    mine = select(DataKey.id).where(DataKey.project_id == project_id, DataKey.master_key_id == keyring.newest)
    found = session.scalar(mine)
    if found is None:
        id = new_id()
        wrapped = wrap(keyring, keyring.newest, new_data_key(), project_id=project_id, key_id=id)
        made = {"id": id, "project_id": project_id, "master_key_id": keyring.newest, "wrapped": wrapped}
        session.execute(insert(DataKey).values(**made).on_conflict_do_nothing())
        found = session.scalar(mine)
    if found is None:
        raise RuntimeError(f"project {project_id} has no data key")
    return found


def due(session: Session, newest: str | None) -> list[Chore]:
    """A pass, where anything lies under an older master key than ``newest``."""
    if newest is None or not is_due(session, newest):
        return []
    return [Chore("ReencryptSecrets", "reencrypt", "Bring secrets under the newest master key")]


def is_due(session: Session, newest: str) -> bool:
    """Whether anything lies under an older master key, or in clear."""
    due = (
        select(DataKey.id).where(DataKey.master_key_id != newest),
        select(Webhook.id).where(_SECRET),
        select(Instance.id).where(_SCRIPT),
    )
    return any(session.execute(query.limit(1)).first() is not None for query in due)
