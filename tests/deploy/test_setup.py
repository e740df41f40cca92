"""``cairn-setup`` on a PostgreSQL over TCP and a Temporal that know nothing of Cairn."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import migrations
from tests.deploy.servers import ExternalPostgres, ExternalTemporal, free_port

PASSWORDS = {"cairn_owner": "o'w\\ner", "cairn_api": "a p%i", "cairn_worker": "w@rker:/"}


class Setup:
    """The program, as a role that may make others, and no more."""

    def __init__(self, postgres: ExternalPostgres, temporal: ExternalTemporal, folder: Path) -> None:
        self.postgres, self.folder = postgres, folder
        self.namespace = f"of-{postgres.port}"
        postgres.admin("CREATE ROLE maker LOGIN CREATEROLE CREATEDB PASSWORD 'm@ker'")
        url = postgres.url("maker", "x").replace(":x@", "@")
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")} | {
            "CAIRN_DATABASE_URL": url,
            "CAIRN_DATABASE_PASSWORD": "m@ker",
            "CAIRN_TEMPORAL_ADDRESS": temporal.address,
            "CAIRN_TEMPORAL_NAMESPACE": self.namespace,
            "CAIRN_SETUP_PATIENCE": "30",
            "CAIRN_API_KEY_FILE": str(folder / "api-key"),
            "CAIRN_TICKET_KEY_FILE": str(folder / "ticket-key"),
            **{f"{role.upper()}_PASSWORD": password for role, password in PASSWORDS.items()},
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "worker.setup", *arguments]

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command, environ = self.command(*arguments), self.environ | more
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)

    def found(self, *arguments: str, **more: str) -> dict[str, str]:
        """Name of what it speaks of → what became of it."""
        lines = self.run(*arguments, **more).stdout.splitlines()
        pairs = [line.split(maxsplit=1) for line in lines]
        return {name.partition(":")[0]: state for state, name in pairs}

    def connect(self, role: str, password: str | None = None) -> psycopg.Connection:
        return psycopg.connect(self.postgres.url(role, password or PASSWORDS[role], "cairn"), autocommit=True)


@pytest.fixture
def setup(postgres: ExternalPostgres, temporal: ExternalTemporal, tmp_path: Path) -> Setup:
    return Setup(postgres, temporal, tmp_path)


@pytest.fixture(scope="module")
def done(installed: None, temporal: ExternalTemporal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """One that was, for tests that change things and leave them as they are to be."""
    server = ExternalPostgres("p@ss")
    try:
        made = Setup(server, temporal, tmp_path_factory.mktemp("setup"))
        assert made.run().returncode == 0
        yield made
    finally:
        server.remove()


def test_it_makes_what_is_missing_and_leaves_what_is_there(setup: Setup) -> None:
    assert set(setup.found("--check").values()) == {"missing"}
    for name in ("api-key", "ticket-key"):
        assert not (setup.folder / name).exists()
    made = setup.run()
    assert made.returncode == 0, made.stderr
    assert {line.split()[0] for line in made.stdout.splitlines()} == {"made"}
    assert (setup.folder / "api-key").stat().st_mode & 0o777 == 0o600
    assert not any(secret in made.stdout + made.stderr for secret in (*PASSWORDS.values(), "m@ker"))
    assert set(setup.found().values()) == {"there"}
    # Each role logs in with its own password, over TLS, and sees what it may.
    for role in PASSWORDS:
        with setup.connect(role) as connection:
            assert connection.execute(migrations.REVISION).fetchone() == (migrations.newest(),)
    with setup.connect("cairn_owner") as connection:
        assert connection.execute("SELECT count(*) FROM api_keys").fetchone() == (1,)
        assert connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone() == (False,)


def test_a_second_key_is_added_and_a_password_is_changed(done: Setup) -> None:
    found = done.found(CAIRN_API_KEY="another", CAIRN_API_PASSWORD="changed", CAIRN_TEMPORAL_RETENTION="3")
    assert {name for name, state in found.items() if state != "there"} == {
        "role cairn_api",
        "admin key",
        f"Temporal namespace {done.namespace}",
    }
    done.connect("cairn_api", "changed").close()
    with pytest.raises(psycopg.OperationalError):
        done.connect("cairn_api")
    assert done.found("--check")["role cairn_api"] == "missing", "the password that was"


def test_a_killed_one_is_finished_by_the_next_and_many_at_once_do_it_once(setup: Setup) -> None:
    for milliseconds in (900, 1300, 1500, 1700):
        process = subprocess.Popen(setup.command(), env=setup.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            process.communicate(timeout=milliseconds / 1000)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    many = [subprocess.Popen(setup.command(), env=setup.environ, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[0] for process in many]
    assert [process.returncode for process in many] == [0, 0, 0], said
    assert set(setup.found("--check").values()) == {"there"}
    with setup.connect("cairn_owner") as connection:
        for table in ("installation", "projects", "api_keys"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (1,), table


def test_an_older_and_a_newer_schema_are_named(done: Setup) -> None:
    newest = migrations.newest()
    with done.connect("cairn_owner") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    newer = done.run()
    assert newer.returncode == 0
    assert f"schema 9999: newer than this program's, which is {newest}" in newer.stdout
    with done.connect("cairn_owner") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    older = done.run("--check")
    assert older.returncode == 1
    assert f"missing  schema {newest}: it is 0001" in older.stdout
    with done.connect("cairn_owner") as connection:
        connection.execute("UPDATE alembic_version SET version_num = %s", [newest])


def test_it_waits_no_longer_than_it_is_told_and_says_for_what(setup: Setup) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    told = setup.run(CAIRN_SETUP_PATIENCE="1", CAIRN_TEMPORAL_ADDRESS=nowhere)
    assert (told.returncode, "Temporal: not within 1 s" in told.stderr) == (1, True), told.stderr
    assert setup.found("--check")["database cairn"] == "there", "what could be done was"
    told = setup.run(CAIRN_SETUP_PATIENCE="1", CAIRN_DATABASE_PASSWORD="wrong")
    assert (told.returncode, "PostgreSQL: not within 1 s" in told.stderr) == (1, True), told.stderr
    assert "wrong" not in told.stderr
    told = setup.run(CAIRN_DATABASE_PASSWORD="", CAIRN_DATABASE_PASSWORD_FILE="/nowhere/it")
    assert told.returncode == 1


def test_check_without_servers_answers_soon_and_says_what_it_waits_for(installed: None, setup: Setup) -> None:
    absent = ("CAIRN_SETUP_PATIENCE", "CAIRN_API_KEY_FILE", "CAIRN_TICKET_KEY_FILE")
    environ = {name: value for name, value in setup.environ.items() if name not in absent}
    environ["CAIRN_DATABASE_URL"] = f"postgresql://maker@127.0.0.1:{free_port()}/postgres"
    done = subprocess.run(
        setup.command("--check"), env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "each for at most 5 s" in done.stderr and "PostgreSQL: not within 5 s" in done.stderr
    assert "postgres.waiting" not in done.stderr and "cairn up" not in done.stderr
    environ = {name: value for name, value in environ.items() if not name.startswith("CAIRN_DATABASE_")}
    done = subprocess.run(
        setup.command("--check"),
        env=environ | {"PGHOST": "/nowhere", "CAIRN_SETUP_PATIENCE": "0.1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and "CAIRN_DATABASE_URL is not set" in done.stderr
