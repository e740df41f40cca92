"""Secrets: in clear only where they are used; and under another master key without a moment's rest."""

from __future__ import annotations

import base64
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import docker
import httpx
import pytest
from sqlalchemy import create_engine, select

from activities.database import transaction
from activities.secrets import Opened
from model.keyring import Keyring, new_master_key
from model.vault import Secret, SecretVersion
from tests import invariants
from tests.folders import contents
from tests.receiver import Receiver
from tests.registry import Registry, registry_for
from tests.stack import Json, Stack, wait_for
from worker import postgres
from worker.database import driver_url

pytestmark = pytest.mark.engine
#: Before the master key is replaced; more than one batch.
OLD_SECRETS = 210
#: Of its load, between two rounds of each thread.
PAUSE = 0.0 if os.environ.get("CAIRN_CHAOS") == "all" else 0.2


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
    return ((path, content) for path, content in contents(stack.folder) if path.name != "master-keys")


def test_planted_secrets_are_in_clear_nowhere_but_where_they_are_used(
    own: Stack, docker_engine: docker.DockerClient
) -> None:
    first, second, variable, missing, plain, login, hook, script, timed = (planted() for _ in range(9))
    put(own, "first", first)
    put(own, "variable", variable)
    env = {"K": {"secret": "first"}, "E": {"secret": "variable", "as": "env"}, "PLAIN": plain}
    own.accept("POST", "/webhooks", {"name": "hook", "url": (receiver := Receiver()).url, "secret": hook})
    instance = own.running(backend="docker", env=env, cmd=["sh", "-c", "cat $K_FILE; echo; sleep 1000"])
    simulated = own.running(env=env, user_data=f"#!/bin/sh\n: {script}\n")
    (container,) = own.containers(instance["id"])
    assert wait_for("its program read the file", lambda: container.logs().decode().strip()) == first
    own.accept("POST", "/secrets/first/rotate", {"value": second})
    for one in (instance, simulated):
        own.completed(own.act("restart", one))
    assert container.exec_run(["cat", "/run/secrets/K"]).output.decode() == second, "the value of that start"
    assert container.exec_run(["sh", "-c", "echo $E"]).output.decode() == f"{variable}\n"
    with receiver:
        assert wait_for("it is delivered", lambda: receiver.received)[0].is_signed_with(hook)
    call_on_time(own, timed)
    scripted = own.running(backend="docker", user_data=f"#!/bin/sh\necho {script} > /seen\n")
    (container,) = own.containers(scripted["id"])
    assert container.exec_run(["cat", "/seen"]).output.decode() == f"{script}\n"
    with registry_for(docker_engine) as registry:
        pull_with_login(own, registry, login)
    # What fails, and what is refused, says nothing of it either.
    put(own, "destroyed", missing)
    # Without a check it may be seen to run before it ends.
    check = {"type": "exec", "command": ["true"], "interval_seconds": 1}
    failing = {"env": {"K": {"secret": "destroyed"}}, "cmd": ["sh", "-c", "exit 3"], "health_check": check}
    launch = own.launch(backend="docker", **failing)
    assert own.ended(launch)["state"] == "failed"
    own.completed(own.act("delete", launch))
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
    for value in (first, second, variable, missing, login, hook, script, timed):
        for shape in shapes(value):
            found = [name for name, content in texts.items() if shape in content]
            assert not found, found
    assert not own.secrets_dir.exists() or not any(own.secrets_dir.rglob("*.*")), "nothing is left in memory"


def call_on_time(stack: Stack, secret: str) -> None:
    """A cron job's calls are signed with it."""
    with Receiver() as receiver:
        body = {"name": "timed", "schedule": "@yearly", "target": {"http": {"url": receiver.url, "secret": secret}}}
        job = stack.accept("POST", "/cron/jobs", body)["data"]
        stack.accept("POST", f"/cron/jobs/{job['id']}/trigger")
        assert wait_for("it is called", lambda: receiver.received)[0].is_signed_with(secret)
    assert secret not in str(stack.list("/cron/jobs"))


def pull_with_login(stack: Stack, registry: Registry, password: str) -> None:
    """An import, and launches of it and of another image there; and what is had with no login, or another."""
    registry.login = f"me:{password}"
    busybox = Path("/bin/busybox").read_bytes()
    for name in ("imported", "launched", "refused"):
        files = {"bin/busybox": busybox, "only": name.encode()}
        registry.push(name, files, "1", cmd=["/bin/busybox", "sleep", "1000"])
    put(stack, "registry", f'{{"username": "me", "password": "{password}"}}')
    put(stack, "wrong", f"me:not{password}")
    put(stack, "none", password)
    source = {"type": "registry", "reference": f"{registry.host}/imported:1", "registry_secret": "registry"}
    imported = stack.accept("POST", "/images", {"name": "imported", "source": source})
    stack.completed(imported)
    for more in (
        {"image": "imported"},
        {"image": f"{registry.host}/launched:1", "registry_secret": "registry"},
    ):
        stack.running(backend="docker", **more)
    for secret, code in ((None, "image_not_found"), ("wrong", "image_not_found"), ("none", "secret_unusable")):
        more = {"image": f"{registry.host}/refused:1"} | ({"registry_secret": secret} if secret else {})
        assert stack.ended(stack.launch(backend="docker", **more))["error"]["code"] == code
        source = {"type": "registry", "reference": more["image"]} | ({"registry_secret": secret} if secret else {})
        refused = stack.accept("POST", "/images", {"name": "refused", "source": source})
        assert stack.ended(refused)["error"]["code"] == code
        stack.completed(stack.accept("DELETE", f"/images/{refused['data']['id']}"))
    assert stack.sql("SELECT * FROM image_logins") == []
    stack.delete_all()
    stack.completed(stack.accept("DELETE", f"/images/{imported['data']['id']}"))


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
            while not stop.wait(PAUSE):
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
