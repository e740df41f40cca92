"""Secrets, opened for the host that is about to start an instance with them, and sealed for it alone."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

import orjson
from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from model.envelope import Encrypted, decrypt, of_secret, unwrap
from model.errors import CairnError
from model.hosts import Host
from model.instances import Instance
from model.keyring import Keyring, KeyUnknown
from model.sealing import of_secrets, seal
from model.vault import MOST_OF_INSTANCE, DataKey, InstanceSecrets, Secret, SecretUse, SecretVersion, uses_of


class SecretUnusable(CairnError):
    """A secret that an instance names cannot be given to it: it is gone, or that version was destroyed."""

    code, status = "secret_unusable", 409


def give(session: Session, keyring: Keyring | None, instance: Instance, host: Host, generation: int) -> None:
    """Seal the values that the instance names for this host's key, as what this placement is given.

    Each is the version that is named, else the current one now; repeated, it is the newer. Nothing happens where it
    names none. Raises SecretUnusable, KeyUnknown, EnvelopeBroken, SealBroken.
    """
    if not instance.secrets:
        return
    if keyring is None:
        raise KeyUnknown("this worker has no CAIRN_MASTER_KEYS: it cannot open secrets")
    opened = Opened(session, keyring, instance.project_id)
    values = {name: opened.value(use) for name, use in uses_of(instance.secrets).items()}
    size = sum(map(len, values.values()))
    if size > MOST_OF_INSTANCE:
        raise SecretUnusable(f"its secrets have {size} bytes together, of at most {MOST_OF_INSTANCE}")
    plain = orjson.dumps({name: value.decode() for name, value in values.items()})
    sealed = seal(plain, purpose=of_secrets(instance.id, generation), key=bytes(host.public_key or b""))
    row = {"instance_id": instance.id, "generation": generation, "project_id": instance.project_id}
    session.execute(
        insert(InstanceSecrets)
        .values(**row, sealed=sealed)
        .on_conflict_do_update(index_elements=["instance_id", "generation"], set_={"sealed": sealed})
    )


def keep(session: Session, instance: Instance, generations: Iterable[int | None]) -> None:
    """Forget what other placements of it than these were given."""
    if instance.secrets:
        kept = [generation for generation in generations if generation is not None]
        mine = InstanceSecrets.instance_id == instance.id
        session.execute(delete(InstanceSecrets).where(mine, InstanceSecrets.generation.not_in(kept)))


class Opened:
    """Values of one project, with the keys that were unwrapped for them."""

    def __init__(self, session: Session, keyring: Keyring, project_id: UUID) -> None:
        self._session = session
        self._keyring = keyring
        self._project_id = project_id
        self._keys: dict[UUID, bytes] = {}

    def value(self, use: SecretUse) -> bytes:
        """Raises SecretUnusable, KeyUnknown, EnvelopeBroken."""
        wanted = SecretVersion.version == (Secret.current_version if use.version is None else use.version)
        row = self._session.execute(
            select(Secret.name, SecretVersion)
            .join(SecretVersion, (SecretVersion.secret_id == Secret.id) & wanted)
            .where(Secret.project_id == self._project_id, Secret.id == use.secret_id)
        ).one_or_none()
        if row is None:
            raise SecretUnusable(f"there is no such version of secret '{use.secret}' any more", secret=use.secret)
        return self.of(row[0], row[1])

    def of(self, name: str, row: SecretVersion) -> bytes:
        """The value of a version of the secret of this name."""
        if row.data_key_id is None or row.nonce is None or row.ciphertext is None:
            raise SecretUnusable(f"version {row.version} of secret '{name}' was destroyed", secret=name)
        what = of_secret(self._project_id, name, row.version)
        return decrypt(self.key(row.data_key_id), Encrypted(row.nonce, row.ciphertext), what)

    def key(self, key_id: UUID) -> bytes:
        """A data key."""
        if key_id not in self._keys:
            row = self._session.get_one(DataKey, key_id)
            self._keys[key_id] = unwrap(
                self._keyring, row.master_key_id, row.wrapped, project_id=row.project_id, key_id=row.id
            )
        return self._keys[key_id]
