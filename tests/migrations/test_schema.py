"""The schema as migrations make it: complete, equal to the models, with exactly the rights that each role needs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import alembic.command
import alembic.config
import psycopg
import pytest
from sqlalchemy.exc import ProgrammingError

import migrations
from model.base import new_id
from model.hosts import Backend
from model.schema import Base
from model.settings import Settings
from tests.services import Database, until
from worker.data_folder import StackError
from worker.database import HostSeed, driver_url, migrate, seed

READ = "installation projects hosts host_ports host_tokens instance_types instances workflows events idempotency_keys"
READ_BY_ALL = (
    f"{READ} alembic_version restores restore_differences restore_trees quotas pulses samples"
    " event_horizons images image_caches webhook_deliveries audit audit_links audit_heads cron_runs"
    " scaling_groups group_configurations group_activities group_policies credentials workspaces work_sessions"
    " messages message_chunks cache_volumes cache_volume_hosts session_cache_volumes"
)
GROUPS = "scaling_groups group_configurations group_activities group_policies"
PEOPLE = "users service_accounts roles bindings invitations login_addresses"
#: Of secrets: no ciphertext.
SEEN_BY_API = "data_keys secrets instance_secrets image_logins workspace_logins"
OF_SECRETS = f"{SEEN_BY_API} secret_versions sealed_values"
BALANCERS = "load_balancers lb_targets lb_samples"
#: Rights on whole tables; those on single columns are tried below.
RIGHTS = {
    (
        "cairn_api",
        "SELECT",
    ): f"{READ_BY_ALL} api_keys ssh_keys {PEOPLE} sessions refresh_tokens password_resets mails"
    f" rate_limits {SEEN_BY_API} {BALANCERS} agents preferences",
    ("cairn_api", "INSERT"): (
        f"{GROUPS} data_keys secrets secret_versions sealed_values credentials workspaces work_sessions {BALANCERS} "
        "agents messages message_chunks preferences cache_volumes cache_volume_hosts session_cache_volumes "
        "host_tokens instance_types instances workflows events idempotency_keys pulses samples images ssh_keys"
        f" projects quotas api_keys {PEOPLE} sessions refresh_tokens password_resets mails rate_limits cron_runs"
        " restore_trees"
    ),
    ("cairn_api", "UPDATE"): (
        f"{GROUPS} secrets load_balancers lb_targets credentials workspaces work_sessions agents messages preferences "
        "cache_volumes "
        "images host_tokens instance_types instances workflows idempotency_keys quotas pulses webhook_deliveries"
        f" projects api_keys {PEOPLE} sessions refresh_tokens mails rate_limits cron_runs restore_trees"
    ),
    ("cairn_api", "DELETE"): f"hosts host_tokens webhooks ssh_keys {PEOPLE} password_resets api_keys mails rate_limits"
    " group_policies secrets instance_secrets image_logins sealed_values lb_targets lb_samples"
    " credentials workspace_logins agents preferences",
    ("cairn_worker", "SELECT"): f"{READ_BY_ALL} webhooks restore_hosts cron_jobs {OF_SECRETS} {BALANCERS}",
    ("cairn_worker", "INSERT"): (
        "group_activities data_keys instance_secrets image_logins workspace_logins sealed_values lb_targets "
        "image_caches host_ports workflows events pulses samples event_horizons webhook_deliveries instances"
        " restore_hosts restore_differences audit_links audit_heads cron_runs message_chunks"
    ),
    ("cairn_worker", "UPDATE"): (
        f"{GROUPS} secret_versions sealed_values instance_secrets image_logins audit_heads restores restore_hosts"
        " restore_differences images image_caches hosts instances workflows quotas pulses event_horizons webhooks"
        " webhook_deliveries cron_jobs cron_runs load_balancers lb_targets workspaces work_sessions workspace_logins"
        " messages cache_volumes"
    ),
    ("cairn_worker", "DELETE"): (
        "cache_volumes cache_volume_hosts "
        "scaling_groups group_configurations group_activities data_keys instance_secrets image_logins sealed_values"
        f" restore_hosts restore_differences restore_trees workspaces work_sessions workspace_logins {BALANCERS}"
        " image_caches host_ports host_tokens idempotency_keys samples instances workflows events webhook_deliveries "
        "images sessions password_resets login_addresses api_keys cron_jobs cron_runs"
    ),
}
PER_PROJECT = {
    "instances",
    "workflows",
    "events",
    "idempotency_keys",
    "quotas",
    "samples",
    "event_horizons",
    "images",
    "image_caches",
    "webhooks",
    "webhook_deliveries",
    "cron_jobs",
    "cron_runs",
    "ssh_keys",
    "api_keys",
    "service_accounts",
    "roles",
    "bindings",
    "invitations",
    "audit",
    "audit_links",
    "audit_heads",
    "credentials",
    "agents",
    "messages",
    "message_chunks",
    "work_sessions",
    "workspaces",
    "cache_volumes",
    "cache_volume_hosts",
    "session_cache_volumes",
    *OF_SECRETS.split(),
    *GROUPS.split(),
    *BALANCERS.split(),
}
#: Of which workers see nothing; and of API keys those that are void, to clear them away.
OF_PEOPLE = {"service_accounts", "roles", "bindings", "invitations"}


def config(database: Database) -> alembic.config.Config:
    found = alembic.config.Config()
    found.set_main_option("script_location", str(Path(migrations.__file__).parent))
    found.attributes["url"] = driver_url(database.url("cairn_owner"))
    return found


def test_migrations_make_what_the_models_say(database: Database) -> None:
    alembic.command.check(config(database))


def test_upgrade_is_repeatable(database: Database) -> None:
    migrate(database.url("cairn_owner"))
    alembic.command.check(config(database))


@pytest.fixture
def before_last_release(database: Database) -> Iterator[Database]:
    """One whose schema is older."""
    name = f"{database.name}_old"
    database.server.admin(f"CREATE DATABASE {name} OWNER cairn_owner")
    made = object.__new__(Database)  # there is nothing in it that it could look for
    made.server, made.name = database.server, name
    alembic.command.upgrade(config(made), "0004")
    yield made
    database.server.admin(f"DROP DATABASE {name} WITH (FORCE)")


def test_upgrade_that_fails_midway_is_gone_on_with(before_last_release: Database) -> None:
    database = before_last_release
    with database.connect() as connection:
        connection.execute("CREATE TABLE users (in_the_way int)")
    with pytest.raises(ProgrammingError, match="users"):
        migrate(database.url("cairn_owner"))
    assert database.one("SELECT version_num FROM alembic_version")["version_num"] == "0010"
    database.rows("DROP TABLE users")
    migrate(database.url("cairn_owner"))
    alembic.command.check(config(database))
    left = (
        "SELECT 1 FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
        " WHERE l.locktype = 'advisory' AND d.datname = current_database()"
    )
    assert until(lambda: not database.rows(left)), "the next one would wait for it"


def test_upgrade_locks_what_is_written_to_for_no_longer_than_it_changes_it(before_last_release: Database) -> None:
    """What runs goes on running meanwhile, and records events."""
    database = before_last_release
    with ThreadPoolExecutor(1) as threads:
        with database.connect() as reading, database.connect() as writing:
            reading.execute("BEGIN")
            reading.execute("LOCK TABLE projects IN ACCESS SHARE MODE")
            upgrading = threads.submit(migrate, database.url("cairn_owner"))
            waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'projects'::regclass"
            assert until(lambda: database.rows(waiting) or upgrading.done(), 8) and not upgrading.done()
            assert database.one("SELECT version_num FROM alembic_version")["version_num"] == "0010"
            with writing.transaction():
                writing.execute("LOCK TABLE events, instances IN ROW EXCLUSIVE MODE NOWAIT")
            reading.execute("COMMIT")
        upgrading.result(60)
    alembic.command.check(config(database))


def test_every_table_of_the_models_is_there(database: Database) -> None:
    tables = {row["tablename"] for row in database.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    assert tables == set(Base.metadata.tables) | {"alembic_version"}


@pytest.mark.parametrize(("role", "right"), RIGHTS)
def test_role_has_exactly_its_rights(database: Database, role: str, right: str) -> None:
    assert may(database, role, right) == set(RIGHTS[role, right].split())


def may(database: Database, role: str, right: str) -> set[str]:
    """On which tables the role has the right."""
    found = database.rows(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'm', 'p')"
        " AND has_table_privilege(%s, oid, %s)",
        *(role, right),
    )
    return {row["relname"] for row in found}


@pytest.mark.parametrize("role", ["cairn_api", "cairn_worker"])
def test_role_is_no_more_than_a_role(database: Database, role: str) -> None:
    row = database.one(
        "SELECT rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication FROM pg_roles WHERE rolname = %s",
        role,
    )
    assert not any(row.values())
    for right in ("TRUNCATE", "REFERENCES", "TRIGGER"):
        assert may(database, role, right) == set()
    with database.connect(role) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("CREATE TABLE mine (id int)")


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("cairn_api", "UPDATE hosts SET allocated_vcpus = 0"),
        ("cairn_api", "DELETE FROM instances"),
        ("cairn_api", "DELETE FROM events"),
        ("cairn_api", "DELETE FROM projects"),
        ("cairn_worker", "SELECT * FROM users"),
        ("cairn_worker", "SELECT identify(NULL, NULL, NULL)"),
        ("cairn_api", "SELECT secret FROM webhooks"),
        ("cairn_api", "SELECT ciphertext FROM secret_versions"),
        ("cairn_api", "SELECT ciphertext FROM sealed_values"),
        ("cairn_worker", "UPDATE secrets SET name = 'x'"),
        ("cairn_api", "UPDATE ssh_keys SET public_key = 'x'"),
        ("cairn_worker", "SELECT * FROM api_keys"),
        ("cairn_worker", "UPDATE installation SET epoch = 0"),
        ("cairn_api", "UPDATE audit SET actor = 'x'"),
        ("cairn_api", "DELETE FROM audit"),
        ("cairn_api", "INSERT INTO audit (at) VALUES (now())"),
        ("cairn_api", "INSERT INTO audit (xid) VALUES (1)"),
        ("cairn_api", "INSERT INTO audit_links SELECT"),
        ("cairn_worker", "INSERT INTO audit SELECT"),
        ("cairn_worker", "UPDATE audit SET actor = 'x'"),
        ("cairn_worker", "DELETE FROM audit"),
        ("cairn_worker", "UPDATE audit_links SET hash = ''"),
        ("cairn_worker", "DELETE FROM audit_links"),
        ("cairn_worker", "DELETE FROM audit_heads"),
    ],
)
def test_role_may_not(database: Database, role: str, statement: str) -> None:
    with database.connect(role) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement)


def test_workers_see_the_quotas_of_all_projects_and_change_one_at_a_time(database: Database) -> None:
    database.project("other")
    with database.connect("cairn_worker") as connection:
        assert len(connection.execute("SELECT * FROM quotas").fetchall()) == 2
        assert connection.execute("UPDATE quotas SET instances_used = 7").rowcount == 0
        connection.execute("SELECT set_config('cairn.project', %s, false)", [str(database.project_id)])
        assert connection.execute("UPDATE quotas SET instances_used = 7").rowcount == 1


def test_tables_of_projects_are_guarded_row_by_row(database: Database) -> None:
    guarded = database.rows(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relrowsecurity"
    )
    assert {row["relname"] for row in guarded} == PER_PROJECT | {"projects"}
    policies = database.rows("SELECT tablename, cmd, roles::text[], qual, with_check FROM pg_policies")
    assert {(row["tablename"], *row["roles"]) for row in policies} == {
        *((table, role) for table in PER_PROJECT | {"projects"} for role in ("cairn_api", "cairn_worker")),
    } - {(table, "cairn_worker") for table in OF_PEOPLE}
    spanned = {row["tablename"] for row in policies if row["qual"] == "true"}
    assert spanned == {
        "quotas",  # for reading alone
        "projects",  # likewise
        "instances",
        "workflows",
        "samples",
        "images",
        "image_caches",
        "webhooks",
        "webhook_deliveries",
        "cron_jobs",
        "cron_runs",
        "events",
        "audit",  # for reading alone
        "audit_links",
        "audit_heads",
        "data_keys",
        "scaling_groups",
        "group_activities",
        "group_policies",
        "load_balancers",
        "lb_targets",
        "lb_samples",
        "workspaces",
        "work_sessions",
        "cache_volumes",
        "session_cache_volumes",
    }
    # Workers read the events of all projects, and write them in one.
    assert all(
        row["with_check"] == row["qual"] for row in policies if row["tablename"] != "events" and row["cmd"] == "ALL"
    )
    assert all("cairn.project" in row["with_check"] for row in policies if row["tablename"] == "events")


def test_every_table_with_a_project_is_guarded_or_known_not_to_be(database: Database) -> None:
    found = database.rows(
        "SELECT table_name FROM information_schema.columns WHERE table_schema = 'public' AND column_name = 'project_id'"
    )
    # A host's ports are the host's; files that no row knows are nobody's.
    assert {row["table_name"] for row in found} - PER_PROJECT == {"host_ports", "restore_trees"}


@pytest.mark.parametrize("table", sorted(PER_PROJECT))
def test_forgotten_filter_shows_nothing_of_another_project(database: Database, table: str) -> None:
    """As the API connects: before it knows who asks, and in another project."""
    database.project("stranger")
    nowhere = database.rows("SELECT id FROM projects WHERE name = 'stranger'")[0]["id"]
    with database.connect("cairn_api") as connection:
        connection.execute("SELECT set_config('cairn.isolation', 'on', false)")
        columns = (
            "*" if table not in ("webhooks", "secret_versions", "sealed_values", "cron_jobs") else "id, project_id"
        )
        assert connection.execute(f"SELECT {columns} FROM {table}").fetchall() == []
        connection.execute("SELECT set_config('cairn.project', %s, false)", [str(nowhere)])
        seen = connection.execute(f"SELECT {columns} FROM {table}").fetchall()
        assert {row["project_id"] for row in seen} <= {nowhere}


def test_what_runs_as_the_owner_reads_no_tables_of_its_callers(database: Database) -> None:
    """``pg_temp`` is searched first, where nobody says that it comes last."""
    paths = database.rows(
        "SELECT proname, array_to_string(proconfig, ' ') AS config FROM pg_proc"
        " WHERE prosecdef AND pronamespace = 'public'::regnamespace"
    )
    assert len(paths) >= 6
    assert {row["proname"] for row in paths if not str(row["config"]).endswith(", pg_temp")} == set()
    with database.connect("cairn_api") as connection:
        connection.execute("CREATE TEMPORARY TABLE sessions (LIKE public.sessions)")
        admin = database.one("SELECT id FROM users WHERE is_admin")["id"]
        forged = "INSERT INTO pg_temp.sessions VALUES (%s, %s, now(), now(), now() + interval '1 day')"
        connection.execute(forged, [admin, admin])
        assert connection.execute("SELECT * FROM identify(NULL, %s, NULL)", [admin]).fetchall() == []


def test_the_release_before_finds_no_key_that_may_less_than_it_would_let_it(database: Database) -> None:
    """It asks neither for scopes nor for roles, and knows no key that ends."""
    keys = {
        "viewer": database.key(database.project_id, "viewer", "viewer"),
        **{name: database.key(database.project_id, name, "owner") for name in ("scoped", "ending", "boss", "left")},
    }
    database.rows("UPDATE users SET is_admin = true WHERE name <> 'viewer'")
    database.rows("UPDATE users SET deactivated_at = now() WHERE name = 'left'")
    database.rows("UPDATE api_keys SET scopes = '{instances:read}' WHERE name = 'scoped'")
    database.rows("UPDATE api_keys SET expires_at = now() + interval '1 hour' WHERE name = 'ending'")
    with database.connect("cairn_api") as connection:
        seen = connection.execute("SELECT name FROM api_keys WHERE revoked_at IS NULL").fetchall()
    assert {row["name"] for row in seen} & keys.keys() == {"boss"}


def test_projects_of_others_are_not_seen(database: Database) -> None:
    database.project("stranger")
    own = database.one("SELECT user_id FROM bindings WHERE project_id = %s", database.project_id)["user_id"]
    with database.connect("cairn_api") as connection:
        connection.execute("SELECT set_config('cairn.isolation', 'on', false)")
        assert connection.execute("SELECT * FROM projects").fetchall() == []
        connection.execute("SELECT set_config('cairn.user', %s, false)", [str(own)])
        assert [row["name"] for row in connection.execute("SELECT * FROM projects").fetchall()] == ["default"]
        connection.execute("SELECT set_config('cairn.platform', 'on', false)")
        assert len(connection.execute("SELECT * FROM projects").fetchall()) == 2


def test_first_schema_is_not_downgraded(database: Database) -> None:
    with pytest.raises(NotImplementedError):
        alembic.command.downgrade(config(database), "base")
    alembic.command.check(config(database))


def test_database_refuses_what_must_not_be(database: Database) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        database.rows("UPDATE hosts SET allocated_vcpus = -1")
    with pytest.raises(psycopg.errors.CheckViolation):
        database.rows("UPDATE hosts SET state = 'sleepy'")
    with pytest.raises(psycopg.errors.CheckViolation):
        database.rows("UPDATE quotas SET instances_reserved = -1")


def test_a_name_that_a_machine_has_stops_the_seed_and_says_what_to_do(database: Database) -> None:
    def seeded(name: str, backend: Backend) -> None:
        host = HostSeed(
            id=new_id(),
            name=name,
            backend=backend,
            cpus=1,
            memory_mb=1,
            credential=bytes(32),
            public_key=bytes(32),
            fingerprint=bytes(32),
        )
        url = database.url("cairn_owner")
        seed(url, installation=new_id(), api_key="another", hosts=[host], settings=Settings(quota_instances=1))

    with pytest.raises(StackError, match=r"'one'.*CAIRN_HOST_NAME"):
        seeded("one", "docker")
    database.rows("UPDATE hosts SET name = 'sim-1' WHERE name = 'one'")
    with pytest.raises(StackError, match="cairn host rm sim-1"):
        seeded("sim-1", "simulated")
    assert database.one("SELECT instances_limit FROM quotas")["instances_limit"] is None, "all of it or nothing"
    seeded("three", "docker")
