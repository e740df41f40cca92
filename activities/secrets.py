"""Secrets, opened for the host that is about to start an instance with them, and sealed for it alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from model.envelope import Encrypted, decrypt, of_secret, unwrap
from model.errors import CairnError, Unavailable
from model.groups import Configuration
from model.hosts import Host
from model.images import Image
from model.instances import Instance
from model.keyring import Keyring, KeyUnknown
from model.sealing import of_git_login, of_login, of_secrets, of_user_data, seal
from model.vault import (
    MOST_OF_INSTANCE,
    REGISTRY,
    DataKey,
    ImageLogin,
    InstanceSecrets,
    RegistryLogin,
    SealedValue,
    Secret,
    SecretUse,
    SecretVersion,
    uses_of,
)
from model.workspaces import Credential, GitLogin, Workspace, WorkspaceLogin


class SecretUnusable(CairnError):
    """A secret that an instance names cannot be given to it: it is gone, or that version was destroyed."""

    code, status = "secret_unusable", 409


def give(
    session: Session,
    keyring: Keyring | None,
    instance: Instance,
    host: Host,
    generation: int,
    *,
    makes: bool = True,
) -> None:
    """Seal the values that the instance names for this host's key, as what this placement is given.

    Each is the version that is named, else the current one now; repeated, it is the newer. ``makes``: with its script
    and the login of its registry, as its machine may be made. Nothing happens where there is nothing to give.
    Raises SecretUnusable, KeyUnknown, EnvelopeBroken, SealBroken.
    """
    what = {}
    if makes and instance.user_data_sha256 is not None:
        script = script_of(session, keyring, instance)
        what["user_data"] = seal(script, purpose=of_user_data(instance.id), key=_key_of(host))
    login = instance.registry_secret if makes else None
    if not (instance.secrets or login or what):
        return
    values = _values(session, keyring, instance, login)
    what["sealed"] = seal(orjson.dumps(values), purpose=of_secrets(instance.id, generation), key=_key_of(host))
    row = {"instance_id": instance.id, "generation": generation, "project_id": instance.project_id}
    session.execute(
        insert(InstanceSecrets)
        .values(**row, **what)
        .on_conflict_do_update(index_elements=["instance_id", "generation"], set_=what)
    )


def give_script(session: Session, keyring: Keyring | None, instance: Instance, host: Host, generation: int) -> None:
    """The script alone, beside what this placement was given. Raises as ``give``."""
    key = _key_of(host)
    script = seal(script_of(session, keyring, instance), purpose=of_user_data(instance.id), key=key)
    nothing = seal(b"{}", purpose=of_secrets(instance.id, generation), key=key)
    row = {"instance_id": instance.id, "generation": generation, "project_id": instance.project_id}
    session.execute(
        insert(InstanceSecrets)
        .values(**row, sealed=nothing, user_data=script)
        .on_conflict_do_update(index_elements=["instance_id", "generation"], set_={"user_data": script})
    )


def _values(
    session: Session, keyring: Keyring | None, instance: Instance, login: dict[str, Any] | None
) -> dict[str, str]:
    """By variable; and the login."""
    if not instance.secrets and login is None:
        return {}
    opened = Opened(session, keyring, instance.project_id)
    values = {name: opened.value(use) for name, use in uses_of(instance.secrets).items()}
    size = sum(map(len, values.values()))
    if size > MOST_OF_INSTANCE:
        raise SecretUnusable(f"its secrets have {size} bytes together, of at most {MOST_OF_INSTANCE}")
    told = {name: value.decode() for name, value in values.items()}
    return told | ({} if login is None else {REGISTRY: opened.login(RegistryLogin.model_validate(login))})


def give_login(session: Session, keyring: Keyring | None, image: Image, host: Host) -> None:
    """The same for a host that is about to pull an image that is being imported, where that needs a login."""
    if image.registry_secret is None:
        return
    opened = Opened(session, keyring, image.project_id)
    login = opened.login(RegistryLogin.model_validate(image.registry_secret))
    what = {"host_id": host.id, "sealed": seal(login.encode(), purpose=of_login(image.id), key=_key_of(host))}
    session.execute(
        insert(ImageLogin)
        .values(image_id=image.id, project_id=image.project_id, **what)
        .on_conflict_do_update(index_elements=["image_id"], set_=what)
    )


def give_git_login(session: Session, keyring: Keyring | None, workspace: Workspace, host: Host) -> None:
    """The credential of a workspace for the host that is about to fetch it, as it is now. Raises SecretUnusable."""
    found = session.execute(
        select(Credential, SealedValue)
        .join(SealedValue, SealedValue.credential_id == Credential.id)
        .where(Credential.project_id == workspace.project_id, Credential.id == workspace.credential_id)
    ).one_or_none()
    if found is None:
        raise SecretUnusable(f"the credential of workspace {workspace.name} is not there any more")
    credential, sealed = found
    login = GitLogin(
        type=credential.type,
        host=credential.host,
        username=credential.username,
        secret=Opened(session, keyring, workspace.project_id).sealed(sealed).decode(),
        known_hosts=credential.known_hosts,
    )
    value = seal(login.model_dump_json().encode(), purpose=of_git_login(workspace.id), key=_key_of(host))
    what = {"host_id": host.id, "sealed": value}
    session.execute(
        insert(WorkspaceLogin)
        .values(workspace_id=workspace.id, project_id=workspace.project_id, **what)
        .on_conflict_do_update(index_elements=["workspace_id"], set_=what)
    )


def script_of(session: Session, keyring: Keyring | None, instance: Instance) -> bytes:
    """What its ``user_data_sha256`` stands for; of a member of a group, its configuration has it.

    In clear it is what a release before this wrote, and not sealed yet.
    """
    if instance.user_data is not None:
        return instance.user_data.encode()
    mine = SealedValue.instance_id == instance.id
    if instance.group_id is not None:
        this = (Configuration.group_id == instance.group_id) & (Configuration.revision == instance.group_revision)
        named = session.scalar(select(Configuration.template["user_data_id"].astext).where(this))
        mine = SealedValue.id == (UUID(named) if named else None)
    row = session.scalars(select(SealedValue).where(mine)).one_or_none()
    if row is None:
        raise SecretUnusable(f"the user_data of instance {instance.name} is not there any more: launch it anew")
    return Opened(session, keyring, instance.project_id).sealed(row)


def keep(session: Session, instance: Instance, generations: Iterable[int | None]) -> None:
    """Forget what other placements of it than these were given."""
    if instance.secrets or instance.registry_secret is not None or instance.user_data_sha256 is not None:
        kept = [generation for generation in generations if generation is not None]
        mine = InstanceSecrets.instance_id == instance.id
        session.execute(delete(InstanceSecrets).where(mine, InstanceSecrets.generation.not_in(kept)))


def forget(session: Session, instance: Instance) -> None:
    """Its script, which may hold secrets."""
    if instance.user_data_sha256 is not None:
        instance.user_data = None
        session.execute(delete(SealedValue).where(SealedValue.instance_id == instance.id))


def _key_of(host: Host) -> bytes:
    return bytes(host.public_key or b"")


class Opened:
    """Values of one project, with the keys that were unwrapped for them."""

    def __init__(self, session: Session, keyring: Keyring | None, project_id: UUID) -> None:
        """Raises KeyUnknown."""
        if keyring is None:
            raise KeyUnknown("this worker has no CAIRN_MASTER_KEYS: it cannot open secrets")
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

    def sealed(self, row: SealedValue) -> bytes:
        """What is no secret, and lies as they do. Raises KeyUnknown, EnvelopeBroken."""
        return decrypt(self.key(row.data_key_id), Encrypted(row.nonce, row.ciphertext), row.what)

    def login(self, use: RegistryLogin) -> str:
        """The login that the secret is, as JSON for an engine. Raises SecretUnusable, also where it is none."""
        value = self.value(SecretUse(secret=use.secret, secret_id=use.secret_id)).decode()
        username, colon, password = value.partition(":")
        if value.lstrip().startswith("{"):
            try:
                told = orjson.loads(value)
                username, password = told["username"], told["password"]
            except (ValueError, LookupError, TypeError):  # whose text repeats what it read
                username = password = ""
            colon = ":" if isinstance(username, str) and isinstance(password, str) else ""
        if not (colon and username and password):
            raise SecretUnusable(
                f"secret '{use.secret}' is no login of a registry: expected username:password, or JSON with username "
                "and password",
                secret=use.secret,
            )
        return orjson.dumps({"username": username, "password": password}).decode()

    def key(self, key_id: UUID) -> bytes:
        """A data key. Raises Unavailable where what lay under it has just been moved, and it is gone."""
        if key_id not in self._keys:
            row = self._session.get(DataKey, key_id)
            if row is None:
                raise Unavailable("the key that secrets lie under was replaced just now")
            self._keys[key_id] = unwrap(
                self._keyring, row.master_key_id, row.wrapped, project_id=row.project_id, key_id=row.id
            )
        return self._keys[key_id]
