"""Secrets brought under the newest master key, a batch at a time, while they are used and written."""

from __future__ import annotations

import time
from uuid import UUID

import structlog
from sqlalchemy import Engine, delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from temporalio import activity

from activities.database import transaction
from activities.secrets import Opened
from model.base import Frozen, new_id
from model.envelope import EnvelopeBroken, encrypt, new_data_key, of_secret, wrap
from model.keyring import Keyring, KeyUnknown
from model.restores import restored
from model.vault import DataKey, Secret, SecretVersion

#: Versions of one transaction.
BATCH = 200
PASS_SECONDS = 60.0
log = structlog.get_logger()


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
        """One pass over what lies under older master keys. Repeated, it goes on with what is left.

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
        versions = done = left = 0
        for key in keys:
            if activity.is_cancelled() or time.monotonic() >= until:
                return Reencrypted(versions=versions, keys=done, left=left, more=True)
            moved, stuck = self._move(self._keyring, key)
            versions, left = versions + moved, left + stuck
            done += self._remove(key)
        return Reencrypted(versions=versions, keys=done, left=left)

    def _move(self, keyring: Keyring, old: DataKey) -> tuple[int, int]:
        """Everything under one data key: how many versions were moved, and how many could not be."""
        moved = stuck = 0
        after = UUID(int=0)
        while not activity.is_cancelled():
            with transaction(self._engine, old.project_id) as session:
                rows = session.execute(
                    select(Secret.name, SecretVersion)
                    .join(Secret, Secret.id == SecretVersion.secret_id)
                    .where(SecretVersion.project_id == old.project_id, SecretVersion.data_key_id == old.id)
                    .where(SecretVersion.id > after)
                    .order_by(SecretVersion.id)
                    .limit(BATCH)
                    # What is being written or destroyed is found by the next pass.
                    .with_for_update(of=SecretVersion, skip_locked=True)
                ).all()
                if not rows:
                    break
                opened = Opened(session, keyring, old.project_id)
                new = newest_key(session, keyring, old.project_id)
                for name, row in rows:
                    try:
                        value = opened.of(name, row)
                    except (KeyUnknown, EnvelopeBroken) as error:
                        log.error("secret.not_reencrypted", version_id=str(row.id), error=error.message)
                        stuck += 1
                        continue
                    what = of_secret(old.project_id, name, row.version)
                    row.nonce, row.ciphertext = encrypt(opened.key(new), value, what)
                    row.data_key_id = new
                    moved += 1
                after = rows[-1][1].id
        return moved, stuck

    def _remove(self, old: DataKey) -> int:
        """The key itself, once nothing lies under it."""
        under = select(SecretVersion.id).where(
            SecretVersion.project_id == old.project_id, SecretVersion.data_key_id == old.id
        )
        try:
            with transaction(self._engine, old.project_id) as session:
                gone = delete(DataKey).where(DataKey.id == old.id, ~under.exists()).returning(DataKey.id)
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


def is_due(session: Session, newest: str) -> bool:
    """Whether anything lies under an older master key."""
    return session.execute(select(DataKey.id).where(DataKey.master_key_id != newest).limit(1)).first() is not None
