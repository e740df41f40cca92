"""Rows of the audit log become links of chains: once, in commit order, whoever dies or is at it too."""

from __future__ import annotations

import threading
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine
from temporalio.testing import ActivityEnvironment

from activities import audit
from activities.audit import AuditRecords, Sealed, is_due
from activities.database import transaction
from model.base import new_id
from model.keyring import Keyring, new_master_key
from tests.services import Database, until

KEY = new_master_key("first")
RING = Keyring(KEY)
NOWHERE = UUID(int=0)
WRITE = (
    "INSERT INTO audit (project_id, id, actor, action, operation, outcome, request_id)"
    " VALUES (%s, %s, %s, %s, %s, 'allowed', 'r')"
)


def seal(engine: Engine, ring: Keyring = RING) -> Sealed:
    done: Sealed = ActivityEnvironment().run(AuditRecords(engine, ring).seal)
    return done


def due(engine: Engine, ring: Keyring = RING) -> bool:
    with transaction(engine) as session:
        return is_due(session, ring)


def write(db: Database, count: int = 1, project: UUID | None = None, *, settled: bool = True) -> list[UUID]:
    ids = [new_id() for _ in range(count)]
    with db.connect() as connection, connection.transaction():
        for id in ids:
            connection.execute(WRITE, (project or db.project_id, id, "key:test", "instances:create", "POST /"))
    if settled:
        db.settle()
    return ids


def linked(db: Database, project: UUID | None = None) -> list[dict[str, Any]]:
    return db.rows("SELECT * FROM audit_links WHERE project_id = %s ORDER BY position", project or db.project_id)


def test_every_row_is_linked_once_in_the_chain_of_its_project(
    database: Database, worker_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "BATCH", 4)
    mine, of_platform = write(database, 10), write(database, 3, NOWHERE)
    mine += write(database, 2)
    assert due(worker_engine)
    assert seal(worker_engine) == Sealed(links=15)
    assert [link["audit_id"] for link in linked(database)] == mine
    assert [link["position"] for link in linked(database)] == list(range(1, 13))
    assert [link["audit_id"] for link in linked(database, NOWHERE)] == of_platform
    assert not due(worker_engine)
    assert seal(worker_engine) == Sealed()


def test_a_pass_is_bounded(database: Database, worker_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "BATCH", 2)
    monkeypatch.setattr(audit, "BATCHES", 2)
    write(database, 5)
    assert seal(worker_engine) == Sealed(links=4, more=True)
    assert seal(worker_engine) == Sealed(links=1)


def test_who_commits_late_is_linked_behind_nobody(database: Database, worker_engine: Engine) -> None:
    late, early = new_id(), new_id()
    row = (database.project_id, late, "key:test", "instances:create", "POST /")
    with database.connect() as slow:
        with slow.transaction():
            slow.execute(WRITE, row)
            (early,) = write(database, settled=False)
            assert not due(worker_engine), "what was committed behind one that still runs waits for it"
            assert seal(worker_engine).links == 0
        database.settle()
        assert seal(worker_engine).links == 2
    assert [link["audit_id"] for link in linked(database)] == [late, early]


def test_death_between_batches_leaves_whole_ones(
    database: Database, worker_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "BATCH", 3)
    ids = write(database, 8)
    signing, batches = audit._sign, []

    def dies(*args: Any) -> None:
        batches.append(1)
        if len(batches) == 2:
            raise RuntimeError("killed with its links written, and its head not")
        signing(*args)

    monkeypatch.setattr(audit, "_sign", dies)
    with pytest.raises(RuntimeError):
        seal(worker_engine)
    assert len(linked(database)) == 3
    seal(worker_engine)
    assert [link["audit_id"] for link in linked(database)] == ids


def test_two_at_once_do_not_link_twice(
    database: Database, worker_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "BATCH", 5)
    ids = write(database, 60)
    sealers = [threading.Thread(target=seal, args=(worker_engine,)) for _ in range(4)]
    for one in sealers:
        one.start()
    for one in sealers:
        one.join()
    assert until(lambda: seal(worker_engine).links == 0, 5)
    assert [link["audit_id"] for link in linked(database)] == ids


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit_heads SET hash = 'x'",
        "UPDATE audit_heads SET xid = 9000000000000000000",
        "DELETE FROM audit_heads",
        "DELETE FROM audit_links WHERE position = 3; UPDATE audit_heads SET position = 2",
        "UPDATE audit_links SET position = 4 WHERE position = 3",
    ],
)
def test_a_chain_that_does_not_end_as_we_signed_it_is_not_continued(
    database: Database, worker_engine: Engine, change: str
) -> None:
    write(database, 3)
    seal(worker_engine)
    for statement in change.split("; "):
        database.rows(statement)
    links = linked(database)
    write(database, 2)
    of_platform = write(database, 2, NOWHERE)
    assert seal(worker_engine).links == 2, "other chains go on"
    assert [link["audit_id"] for link in linked(database, NOWHERE)] == of_platform
    assert linked(database) == links


def test_heads_of_idle_projects_are_signed_with_a_new_key(database: Database, worker_engine: Engine) -> None:
    write(database, 3)
    seal(worker_engine)
    rotated = Keyring(f"{new_master_key('second')} {KEY}")
    assert due(worker_engine, rotated)
    assert seal(worker_engine, rotated).links == 0
    assert database.one("SELECT key_id FROM audit_heads")["key_id"] == "second"
    assert not due(worker_engine, rotated)


def test_heads_of_idle_projects_are_signed_with_a_new_key_while_others_write(
    database: Database, worker_engine: Engine
) -> None:
    write(database, 3)
    seal(worker_engine)
    rotated = Keyring(f"{new_master_key('second')} {KEY}")
    write(database, 1, NOWHERE)
    assert seal(worker_engine, rotated).links == 1
    assert {row["key_id"] for row in database.rows("SELECT key_id FROM audit_heads")} == {"second"}


def test_however_many_chains_are_broken_others_go_on(
    database: Database, worker_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "BATCHES", 3)
    others = [new_id() for _ in range(6)]
    for project in others:
        write(database, 1, project)
    seal(worker_engine)
    another = Keyring(new_master_key("another"))  # the key that signed these is lost
    for project in others:
        write(database, 1, project)
    write(database, 2)
    assert seal(worker_engine, another).links == 2


def test_a_row_that_claims_to_come_after_all_others_ends_no_sealing(database: Database, worker_engine: Engine) -> None:
    first = write(database)
    (planted,) = write(database)
    database.rows("UPDATE audit SET epoch = 2147483647, xid = 1 WHERE id = %s", planted)
    seal(worker_engine)
    first += write(database, 2)
    assert seal(worker_engine).links == 2
    assert [link["audit_id"] for link in linked(database)] == first
    assert not due(worker_engine)


def test_without_master_keys_nothing_is_sealed(database: Database, worker_engine: Engine) -> None:
    write(database, 3)
    assert ActivityEnvironment().run(AuditRecords(worker_engine, None).seal) == Sealed()
    with transaction(worker_engine) as session:
        assert not is_due(session, None)
