"""Secrets: in clear only where they are used; and under another master key without a moment's rest."""

from __future__ import annotations

import base64
import contextlib
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine, select

from activities.database import transaction
from activities.secrets import Opened
from model.keyring import Keyring, new_master_key
from model.vault import Secret, SecretVersion
from tests import invariants
from tests.stack import Json, Stack, wait_for
from worker import postgres
from worker.database import driver_url

pytestmark = pytest.mark.engine
#: Before the master key is replaced; more than one batch.
OLD_SECRETS = 210


@pytest.fixture(scope="module")
def own() -> Iterator[Stack]:
    """A platform of these tests' own, whose folder holds nothing but what they did."""
    made = Stack()
    try:
        yield made.start().ready()
    finally:
        made.remove()


def planted() -> str:
    return f"planted{secrets.token_hex(16)}"


def shapes(value: str) -> list[bytes]:
    """The value as programs write it down: as it is, as bytes of PostgreSQL, in base64 wherever it begins."""
    plain = value.encode()
    encoded = [base64.b64encode(b"\0" * shift + plain + b"\0" * 3) for shift in range(3)]
    # Without the ends, which depend on what stands beside.
    return [plain, plain.hex().encode(), *(one[4:-8] for one in encoded)]


def put(stack: Stack, name: str, value: str) -> Json:
    made: Json = stack.accept("POST", "/secrets", {"name": name, "value": value})["data"]
    return made


def dump(stack: Stack) -> bytes:
    """Every row of every table, as text."""
    tables = stack.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return b"\n".join(str(row).encode() for (table,) in tables for row in stack.sql(f"SELECT t::text FROM {table} t"))


def files(stack: Stack) -> Iterator[tuple[Path, bytes]]:
    """The whole data folder: logs, Temporal's state, PostgreSQL's files with its log of changes."""
    for path in stack.folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and path.name != "master-keys":
                yield path, path.read_bytes()


def test_planted_secrets_are_in_clear_nowhere_but_where_they_are_used(own: Stack) -> None:
    first, second, variable, missing, plain = (planted() for _ in range(5))
    put(own, "first", first)
    put(own, "variable", variable)
    env = {"K": {"secret": "first"}, "E": {"secret": "variable", "as": "env"}, "PLAIN": plain}
    instance = own.running(backend="docker", env=env, cmd=["sh", "-c", "cat $K_FILE; echo; sleep 1000"])
    simulated = own.running(env=env)
    (container,) = own.containers(instance["id"])
    assert wait_for("its program read the file", lambda: container.logs().decode().strip()) == first
    own.accept("POST", "/secrets/first/rotate", {"value": second})
    for one in (instance, simulated):
        own.completed(own.act("restart", one))
    assert container.exec_run(["cat", "/run/secrets/K"]).output.decode() == second, "the value of that start"
    assert container.exec_run(["sh", "-c", "echo $E"]).output.decode() == f"{variable}\n"
    # What fails, and what is refused, says nothing of it either.
    put(own, "destroyed", missing)
    failing = own.launch(backend="docker", env={"K": {"secret": "destroyed"}}, cmd=["sh", "-c", "exit 3"])
    assert own.ended(failing)["state"] == "failed"
    assert own.request("POST", "/secrets", json={"name": "a b", "value": missing}).status_code == 422
    invariants.settle(own)
    texts = {"rows": dump(own), "instances": str(own.list("/instances")).encode()}
    own.delete_all()
    invariants.settle(own)
    own.sql("CHECKPOINT")
    texts |= {str(path): content for path, content in files(own)}
    assert {"api.log", "control_worker.log", "host_agent.log"} <= {Path(name).name for name in texts}
    # What is looked for would be found: what is plain is there in clear, in rows and in histories.
    there = [name for name, content in texts.items() if plain.encode() in content]
    assert "rows" in there
    assert any("temporal" in name for name in there), there
    for value in (first, second, variable, missing):
        for shape in shapes(value):
            found = [name for name, content in texts.items() if shape in content]
            assert not found, found
    assert not own.secrets_dir.exists() or not any(own.secrets_dir.rglob("*.*")), "nothing is left in memory"


def test_shapes_are_found_where_they_are() -> None:
    """That the test above can fail."""
    value = planted()
    for shift in range(3):
        written = base64.b64encode(b'{"value":"'[: 7 + shift] + value.encode() + b'"}')
        assert any(shape in written for shape in shapes(value))


def restart_with(stack: Stack, keys: str) -> None:
    stack.stop()
    (stack.data / "master-keys").write_text(f"{keys}\n")
    stack.start().ready()


def keys_of(stack: Stack) -> dict[str, int]:
    """Data keys by the master key that they lie under."""
    found = stack.get("/operations/keys")
    return {key["id"]: key["data_keys"] for key in found["keys"]}


def opened(stack: Stack, keyring: Keyring) -> dict[str, str]:
    """Every current value, opened with this keyring."""
    engine = create_engine(driver_url(postgres.find(stack.data).url("cairn_worker")))
    try:
        (project,) = stack.sql("SELECT id FROM projects WHERE id IN (SELECT project_id FROM secrets)")
        with transaction(engine, project[0]) as session:
            one = Opened(session, keyring, project[0])
            current = (SecretVersion.secret_id == Secret.id) & (SecretVersion.version == Secret.current_version)
            rows = session.execute(select(Secret.name, SecretVersion).join(SecretVersion, current)).all()
            return {name: one.of(name, row).decode() for name, row in rows}
    finally:
        engine.dispose()


def test_master_key_is_replaced_under_load(own: Stack) -> None:
    old = (own.data / "master-keys").read_text().strip()
    new = new_master_key("second")
    wanted = {f"s{number}": planted() for number in range(OLD_SECRETS)}
    for name, value in wanted.items():
        put(own, name, value)
    instance = own.running(env={"K": {"secret": "s0"}})
    assert keys_of(own) == {"first": 1}
    restart_with(own, f"{new} {old}")
    stop, failures = threading.Event(), list[BaseException]()

    def load(tag: str) -> None:
        number = 0
        try:
            while not stop.is_set():
                number += 1
                name, value = f"{tag}{number}", planted()
                put(own, name, value)
                renewed, again = f"s{number % OLD_SECRETS}", planted()
                own.accept("POST", f"/secrets/{renewed}/versions", {"value": again})
                wanted[name] = value
                if tag == "a":
                    own.completed(own.launch(env={"K": {"secret": name}, "L": {"secret": renewed}}))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=load, args=(tag,)) for tag in "ab"]
    for thread in threads:
        thread.start()
    try:
        wait_for("nothing lies under the old key", lambda: keys_of(own) == {"second": 1, "first": 0}, 60)
        assert own.get("/operations/keys")["left"] == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not failures
    # The old key is taken away, and everything goes on.
    restart_with(own, new)
    assert keys_of(own) == {"second": 1}
    readable = opened(own, Keyring(new))
    kept = {name: value for name, value in wanted.items() if not name.startswith("s")}
    assert kept.items() <= readable.items()
    assert wanted.keys() <= readable.keys()
    own.completed(own.act("restart", instance))
    own.running(env={f"K{number}": {"secret": f"s{number}"} for number in range(20)})
    with pytest.raises(Exception, match="not among CAIRN_MASTER_KEYS"):
        opened(own, Keyring(old))
    answer = own.request("GET", "/operations/keys", headers={"X-API-Key": "cairn_nobody"})
    assert answer.status_code == httpx.codes.UNAUTHORIZED
