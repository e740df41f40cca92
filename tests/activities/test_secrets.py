"""Secrets on their way to hosts, and under another master key while all of it is used."""

from __future__ import annotations

import threading
import traceback
from contextlib import suppress
from typing import Any
from uuid import UUID

import orjson
import pytest
import structlog.testing
from sqlalchemy import Engine, func, select
from temporalio.testing import ActivityEnvironment

from activities import secrets
from activities.database import transaction
from activities.reencryption import BATCH, Reencrypted, SecretRecords, is_due, newest_key
from activities.secrets import Opened, SecretUnusable
from model.base import new_id
from model.envelope import EnvelopeBroken, encrypt, of_secret
from model.errors import Unavailable
from model.hosts import Host
from model.instances import Instance
from model.keyring import Keyring, KeyUnknown, new_master_key
from model.sealing import SealBroken, new_private_key, of_secrets, public_key, unseal
from model.vault import REGISTRY, DataKey, InstanceSecrets, SealedValue, Secret, SecretUse, SecretVersion
from tests.activities.conftest import Platform
from tests.activities.test_groups import Groups
from tests.services import Database
from tests.vault import sealed_value

OLD, NEW = new_master_key("old"), new_master_key("new")
BEFORE, BOTH, AFTER = Keyring(OLD), Keyring(f"{NEW} {OLD}"), Keyring(NEW)
VALUE = "planted-7fK2qP9sV4xT"


def keep(engine: Engine, project: UUID, keyring: Keyring, name: str, *values: str) -> UUID:
    """A secret with these values as its versions, as the API would write it."""
    secret_id = new_id()
    with transaction(engine, project) as session:
        key_id = newest_key(session, keyring, project)
        key = Opened(session, keyring, project).key(key_id)
        made = [
            (number, encrypt(key, v.encode(), of_secret(project, name, number))) for number, v in enumerate(values, 1)
        ]
    as_owner(engine, project, secret_id, name, key_id, made)
    return secret_id


def as_owner(engine: Engine, project: UUID, secret_id: UUID, name: str, key_id: UUID, made: Any) -> None:
    """Workers write no secrets: it is done as who may."""
    database = OWNERS[engine]
    with database.connect() as connection:
        row = (secret_id, project, name, len(made))
        connection.execute("INSERT INTO secrets (id, project_id, name, current_version) VALUES (%s, %s, %s, %s)", row)
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO secret_versions (id, project_id, secret_id, version, data_key_id, nonce, ciphertext)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s)",
                [(new_id(), project, secret_id, number, key_id, *one) for number, one in made],
            )


OWNERS: dict[Engine, Database] = {}


@pytest.fixture
def engine(database: Database, worker_engine: Engine) -> Engine:
    OWNERS[worker_engine] = database
    return worker_engine


def reencrypt(engine: Engine, keyring: Keyring | None) -> Reencrypted:
    done: Reencrypted = ActivityEnvironment().run(SecretRecords(engine, keyring).reencrypt)
    return done


def values(engine: Engine, project: UUID, keyring: Keyring) -> dict[tuple[str, int], str]:
    with transaction(engine, project) as session:
        opened = Opened(session, keyring, project)
        joined = select(Secret.name, SecretVersion).join(Secret, Secret.id == SecretVersion.secret_id)
        rows = session.execute(joined.where(SecretVersion.destroyed_at.is_(None))).all()
        return {(name, row.version): opened.of(name, row).decode() for name, row in rows}


def instance(database: Database, **uses: SecretUse) -> Instance:
    row = Instance(id=new_id(), project_id=database.project_id, name="web")
    row.secrets = {name: use.model_dump(mode="json") for name, use in uses.items()}
    return row


def given(engine: Engine, row: Instance, keyring: Keyring | None, host: Host) -> None:
    with transaction(engine, row.project_id) as session:
        secrets.give(session, keyring, row, host, 1)


# To hosts


def test_only_the_host_opens_what_a_placement_is_given(database: Database, engine: Engine) -> None:
    private = new_private_key()
    host = Host(public_key=public_key(private))
    id = keep(engine, database.project_id, BEFORE, "db", "first", VALUE)
    named = {"K": SecretUse(secret="db", secret_id=id), "OLD": SecretUse(secret="db", secret_id=id, version=1)}
    row = instance(database, **named)
    launched(database, row)
    for _ in range(2):
        given(engine, row, BEFORE, host)
    with transaction(engine, row.project_id) as session:
        (sealed,) = session.scalars(select(InstanceSecrets.sealed)).all()
    plain = unseal(sealed, purpose=of_secrets(row.id, 1), private_key=private)
    assert orjson.loads(plain) == {"K": VALUE, "OLD": "first"}
    for purpose, key in ((of_secrets(row.id, 2), private), (of_secrets(row.id, 1), new_private_key())):
        with pytest.raises(SealBroken):
            unseal(sealed, purpose=purpose, private_key=key)
    with transaction(engine, row.project_id) as session:
        secrets.keep(session, row, [2])
        assert session.scalar(select(func.count()).select_from(InstanceSecrets)) == 0


def launched(database: Database, row: Instance) -> None:
    """What the foreign keys ask for."""
    workflow = new_id()
    with database.connect() as connection, connection.transaction():
        connection.execute(
            'INSERT INTO workflows (id, project_id, kind, resource_type, resource_id, actor, "order")'
            " VALUES (%s, %s, 'ProvisionInstance', 'instance', %s, 'me', '{}')",
            (workflow, row.project_id, row.id),
        )
        connection.execute(
            "INSERT INTO instances (id, project_id, name, status, image, instance_type, vcpus, memory_mb, backend,"
            " workflow_id) VALUES (%s, %s, 'web', 'pending', 'a', 'basic-1', 1, 1, 'docker', %s)",
            (row.id, row.project_id, workflow),
        )


def test_what_cannot_be_given_is_said_without_its_value(database: Database, engine: Engine) -> None:
    host = Host(public_key=public_key(new_private_key()))
    id = keep(engine, database.project_id, BEFORE, "db", VALUE, "second")
    use = SecretUse(secret="db", secret_id=id)
    database.rows(
        "UPDATE secret_versions SET data_key_id = NULL, nonce = NULL, ciphertext = NULL, destroyed_at = now()"
        " WHERE version = 1"
    )
    destroyed = instance(database, K=use.model_copy(update={"version": 1}))
    gone = instance(database, K=use.model_copy(update={"secret_id": new_id()}))
    well = instance(database, K=use)
    for row, keyring, to, error in (
        (destroyed, BEFORE, host, SecretUnusable),
        (gone, BEFORE, host, SecretUnusable),
        (well, None, host, KeyUnknown),
        (well, AFTER, host, KeyUnknown),
        (well, Keyring(OLD.replace("old:", "x:") + " " + new_master_key("old")), host, EnvelopeBroken),
        (well, BEFORE, Host(public_key=None), SealBroken),
    ):
        with pytest.raises(error) as failed:
            given(engine, row, keyring, to)
        assert VALUE not in str(failed.value)
    given(engine, instance(database), None, host)


def test_ciphertext_that_was_put_elsewhere_does_not_open(database: Database, engine: Engine) -> None:
    keep(engine, database.project_id, BEFORE, "a", "of a", "second of a")
    keep(engine, database.project_id, BEFORE, "b", "of b")
    swap = (
        "UPDATE secret_versions v SET nonce = o.nonce, ciphertext = o.ciphertext FROM secret_versions o"
        " JOIN secrets s ON s.id = o.secret_id WHERE s.name = %s AND o.version = %s"
        " AND v.secret_id = (SELECT id FROM secrets WHERE name = 'b')"
    )
    for name, number in (("a", 1), ("a", 2)):
        database.rows(swap, name, number)
        with pytest.raises(EnvelopeBroken):
            values(engine, database.project_id, BEFORE)


LOGINS: dict[str, tuple[str, str] | None] = {
    "me:p:assword": ("me", "p:assword"),
    ' {"username": "me", "password": "p"}': ("me", "p"),
    **dict.fromkeys(
        (
            *("planted", "planted:", ":planted", "{planted", "[]"),
            *(
                '{"username": "planted"}',
                '{"username": "planted", "password": 7}',
                '{"username": "", "password": "planted"}',
            ),
        )
    ),
}


@pytest.mark.parametrize("value", LOGINS)
def test_login_of_a_registry_goes_with_what_may_make_the_machine(
    database: Database, engine: Engine, value: str
) -> None:
    private = new_private_key()
    host = Host(public_key=public_key(private))
    row = instance(database)
    row.registry_secret = {
        "secret": "registry",
        "secret_id": str(keep(engine, row.project_id, BEFORE, "registry", value)),
    }
    launched(database, row)
    if (login := LOGINS[value]) is None:
        with pytest.raises(SecretUnusable, match="registry") as failed:
            given(engine, row, BEFORE, host)
        assert "planted" not in "".join(traceback.format_exception(failed.value))
        return
    given(engine, row, BEFORE, host)
    (sealed,) = (one["sealed"] for one in database.rows("SELECT sealed FROM instance_secrets"))
    plain = orjson.loads(unseal(sealed, purpose=of_secrets(row.id, 1), private_key=private))
    assert orjson.loads(plain[REGISTRY]) == dict(zip(("username", "password"), login, strict=True))
    with transaction(engine, row.project_id) as session:
        secrets.give(session, None, row, host, 2, makes=False)
        secrets.keep(session, row, [])
    assert database.rows("SELECT * FROM instance_secrets") == []


# What a release before left in clear


def test_script_in_clear_is_sealed_and_given_to_where_it_is_placed(platform: Platform, engine: Engine) -> None:
    private = new_private_key()
    platform.db.rows("UPDATE hosts SET public_key = %s", public_key(private))
    order = platform.running()
    clear = "UPDATE instances SET user_data = %s, user_data_sha256 = 'ab' WHERE id = %s"
    platform.db.rows(clear, VALUE, order.resource_id)
    with transaction(engine) as session:
        assert is_due(session, "old")
    assert reencrypt(engine, BEFORE) == Reencrypted(versions=1)
    with transaction(engine) as session:
        assert not is_due(session, "old")
    row = platform.instance(order)
    assert (row["user_data"], sealed_value(platform.db, BEFORE, order.resource_id)) == (None, VALUE)
    given = platform.db.one("SELECT * FROM instance_secrets")
    assert given["generation"] == row["generation"]
    script = unseal(given["user_data"], purpose=f"user_data:{order.resource_id}", private_key=private)
    assert script.decode() == VALUE
    # And what lies sealed comes under another master key as secrets do, and is given from there.
    assert reencrypt(engine, BOTH) == Reencrypted(versions=1, keys=1)
    assert sealed_value(platform.db, AFTER, order.resource_id) == VALUE
    with transaction(engine, order.project_id) as session:
        found = session.get_one(Instance, order.resource_id)
        secrets.give(session, AFTER, found, Host(public_key=public_key(private)), 7)
    given = platform.db.one("SELECT * FROM instance_secrets WHERE generation = 7")
    assert unseal(given["user_data"], purpose=f"user_data:{order.resource_id}", private_key=private) == script
    platform.db.rows("DELETE FROM sealed_values")
    with transaction(engine, order.project_id) as session, pytest.raises(SecretUnusable):
        secrets.script_of(session, AFTER, session.get_one(Instance, order.resource_id))


def test_members_get_the_script_of_their_configuration_from_their_group(platform: Platform, engine: Engine) -> None:
    groups, private, script_id = Groups(platform, engine), new_private_key(), new_id()
    order = groups.create(1)
    sealed = SealedValue(id=script_id, project_id=order.project_id, group_id=order.resource_id)
    with transaction(engine, order.project_id) as session:
        sealed.data_key_id = newest_key(session, BEFORE, order.project_id)
        key = Opened(session, BEFORE, order.project_id).key(sealed.data_key_id)
        sealed.nonce, sealed.ciphertext = encrypt(key, VALUE.encode(), sealed.what)
        session.add(sealed)
    groups.configure(order, 2, user_data_id=str(script_id), user_data_sha256="ab")
    groups.db.rows("UPDATE scaling_groups SET revision = 2")
    (launch,) = groups.next(order).launches
    assert reencrypt(engine, BOTH) == Reencrypted(versions=1, keys=1)
    assert sealed_value(platform.db, AFTER, order.resource_id) == VALUE
    with transaction(engine, order.project_id) as session:
        member = session.get_one(Instance, launch.resource_id)
        secrets.give(session, AFTER, member, Host(public_key=public_key(private)), 1)
    given = platform.db.one("SELECT * FROM instance_secrets")
    assert unseal(given["user_data"], purpose=f"user_data:{member.id}", private_key=private).decode() == VALUE
    groups.settle(order, "completed")
    wish = groups.wish(order, "delete", "DeprovisionGroup")
    groups.db.rows("UPDATE instances SET status = 'deleted', deleted_at = now() WHERE group_id IS NOT NULL")
    assert not groups.next(wish).waits
    groups.settle(wish, "completed")
    assert platform.db.rows("SELECT id FROM sealed_values") == [], "with its group"


def test_what_does_not_open_is_told_once_for_a_batch(database: Database, engine: Engine) -> None:
    keep(engine, database.project_id, BEFORE, "many", *(str(number) for number in range(20)))
    database.rows("UPDATE secret_versions SET ciphertext = '\\x00'")
    with structlog.testing.capture_logs() as said:
        assert reencrypt(engine, BOTH) == Reencrypted(left=20)
    assert [(line["event"], line["many"]) for line in said] == [("secret.not_reencrypted", 20)]


# Another master key


def test_everything_comes_under_the_new_key_and_the_old_one_can_go(database: Database, engine: Engine) -> None:
    database.project("other")
    other = database.one("SELECT id FROM projects WHERE name = 'other'")["id"]
    for number in range(3):
        keep(engine, database.project_id, BEFORE, f"s{number}", *(f"{number}.{v}" for v in range(BATCH // 2)))
    keep(engine, other, BEFORE, "db", VALUE)
    was = values(engine, database.project_id, BEFORE)
    with transaction(engine) as session:
        assert (is_due(session, "new"), is_due(session, "old")) == (True, False)
    keys = {bytes(row["wrapped"]) for row in database.rows("SELECT wrapped FROM data_keys")}
    assert reencrypt(engine, BOTH) == Reencrypted(versions=3 * (BATCH // 2) + 1, keys=2)
    assert values(engine, database.project_id, AFTER) == was
    assert values(engine, other, AFTER) == {("db", 1): VALUE}
    with pytest.raises(KeyUnknown):
        values(engine, other, BEFORE)
    left = database.rows("SELECT * FROM data_keys")
    assert {row["master_key_id"] for row in left} == {"new"}
    assert keys.isdisjoint(bytes(row["wrapped"]) for row in left)
    assert reencrypt(engine, BOTH) == Reencrypted(), "and nothing is left to do"


def test_what_does_not_open_is_left_and_keeps_its_key(database: Database, engine: Engine) -> None:
    keep(engine, database.project_id, BEFORE, "well", "w")
    keep(engine, database.project_id, BEFORE, "broken", "b")
    database.rows(
        "UPDATE secret_versions SET ciphertext = '\\x00' FROM secrets s WHERE s.id = secret_id AND s.name = 'broken'"
    )
    assert reencrypt(engine, AFTER) == Reencrypted(left=2), "of a key that this worker does not have"
    assert reencrypt(engine, None) == Reencrypted()
    assert reencrypt(engine, BOTH) == Reencrypted(versions=1, left=1)
    assert database.one("SELECT count(*) FROM data_keys")["count"] == 2
    database.rows("DELETE FROM secrets WHERE name = 'broken'")
    assert reencrypt(engine, BOTH) == Reencrypted(keys=1)


def test_nothing_is_lost_while_secrets_are_written_under_both_keys(database: Database, engine: Engine) -> None:
    """As while processes are restarted with another keyring: some write under the old key until they are."""
    project, wanted, failures = database.project_id, dict[tuple[str, int], str](), list[BaseException]()
    stop = threading.Event()

    def write(keyring: Keyring, tag: str) -> None:
        try:
            for number in range(40):
                with suppress(Unavailable):
                    keep(engine, project, keyring, f"{tag}{number}", f"value of {tag}{number}")
                    wanted[f"{tag}{number}", 1] = f"value of {tag}{number}"
        except BaseException as error:
            failures.append(error)

    def read() -> None:
        try:
            while not stop.is_set():
                with suppress(Unavailable):
                    for (name, _), value in values(engine, project, BOTH).items():
                        assert value == f"value of {name}"
        except BaseException as error:
            failures.append(error)

    def rotate() -> None:
        try:
            while not stop.is_set():
                reencrypt(engine, BOTH)
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=case) for case in ((BEFORE, "o"), (BOTH, "n"))]
    others = [threading.Thread(target=work) for work in (read, rotate)]
    for thread in (*writers, *others):
        thread.start()
    for thread in writers:
        thread.join(60)
    stop.set()
    for thread in others:
        thread.join(60)
    # One that was about to write under a data key that went is refused by the database, and tries again.
    assert [error for error in failures if "fk_secret_versions_project_id_data_key_id" not in str(error)] == []
    reencrypt(engine, BOTH)
    found = values(engine, project, AFTER)
    assert wanted.items() <= found.items()
    with transaction(engine) as session:
        assert {key.master_key_id for key in session.scalars(select(DataKey))} == {"new"}
