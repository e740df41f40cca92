"""Connections to PostgreSQL, and what makes a fresh database Cairn's: roles, schema, first rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import psycopg
from psycopg import sql
from sqlalchemy import Connection, Engine, create_engine, func, make_url, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

import migrations
from model.base import Frozen, new_id
from model.hosts import SEEDED_TYPES, Backend, Host, InstanceType
from model.passwords import hashed
from model.projects import ApiKey, Installation, Project, ProjectQuota, limits_of
from model.secrets import digest
from model.settings import Settings
from model.users import Binding, User
from worker.data_folder import StackError

#: A step's transaction takes milliseconds. One whose process stands still is ended by the server after this,
#: so that it cannot keep what others need; the step is tried again.
STUCK_SECONDS = 3
#: The same for requests, whose process also waits for many others.
IDLE_SECONDS = 5
#: How long a request waits for what a step holds: longer than any step can.
LOCK_SECONDS = 8
ROLES = ("cairn_owner", "cairn_api", "cairn_worker")


class HostSeed(Frozen):
    """A host that the stack registers by itself."""

    id: UUID
    name: str
    backend: Backend
    cpus: float
    memory_mb: int
    credential: bytes
    public_key: bytes
    fingerprint: bytes


def driver_url(url: str) -> str:
    """A libpq URL, as SQLAlchemy wants it: with psycopg named."""
    return make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def connect(url: str, threads: int) -> Engine:
    """For activities: one connection per thread. One that was lost costs its step an attempt, no more."""
    return create_engine(
        driver_url(url),
        pool_size=threads,
        max_overflow=0,
        json_serializer=_dumps,
        hide_parameters=True,  # they are what users wrote, secrets included: not for logs
        connect_args={"options": f"-c idle_in_transaction_session_timeout={STUCK_SECONDS}s"},
    )


def connect_async(url: str, connections: int) -> AsyncEngine:
    """For the API: waits up to 10 s for a connection, or 8 s for a row, then the request is answered 503."""
    return create_async_engine(
        driver_url(url),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=10,
        json_serializer=_dumps,
        hide_parameters=True,
        connect_args={
            "connect_timeout": 5,
            "options": (
                f"-c lock_timeout={LOCK_SECONDS}s -c idle_in_transaction_session_timeout={IDLE_SECONDS}s"
                # Row-level security that the release before this one does not know yet.
                " -c cairn.isolation=on"
            ),
        },
    )


def _dumps(value: object) -> str:
    return orjson.dumps(value).decode()


def bootstrap(admin_url: str, passwords: Mapping[str, str] | None = None) -> None:
    """Create the roles and the database, where they are missing, and give the roles these passwords.

    Needs a superuser, or a role that may create roles and databases (CREATEROLE CREATEDB).
    """
    with psycopg.connect(admin_url, autocommit=True) as connection:
        roles = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles")}
        for role in ROLES:
            if role not in roles:
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
            if password := (passwords or {}).get(role):
                _set_password(connection, role, password)
        if not has_database(connection):
            # A superuser needs no membership to make a database that is another's.
            if connection.info.parameter_status("is_superuser") != "on":
                connection.execute("GRANT cairn_owner TO CURRENT_USER")
            connection.execute("CREATE DATABASE cairn OWNER cairn_owner")


def _set_password(connection: psycopg.Connection[Any], role: str, password: str) -> None:
    """As a verifier: the server, and its log of statements, do not see the password itself."""
    verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier)))


def has_database(connection: psycopg.Connection[Any]) -> bool:
    return connection.execute("SELECT 1 FROM pg_database WHERE datname = 'cairn'").fetchone() is not None


def migrate(owner_url: str) -> None:
    """Bring the schema to the newest version."""
    # Imported here: the API and the workers connect with this module, and never migrate.
    import alembic.command
    import alembic.config

    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["url"] = driver_url(owner_url)
    alembic.command.upgrade(config, "head")


def revision(connection: Connection) -> str | None:
    """The revision of the schema; None where there is none, or none that this role can see."""
    try:
        found = connection.execute(text(migrations.REVISION)).scalar()
    except ProgrammingError:
        connection.rollback()
        return None
    return None if found is None else str(found)


def seed(owner_url: str, *, installation: UUID, api_key: str | None, hosts: list[HostSeed], settings: Settings) -> None:
    """Write the first rows, or bring them up to date with the settings. Safe to repeat. Raises StackError."""
    engine = create_engine(driver_url(owner_url), poolclass=NullPool)
    with Session(engine) as session, session.begin():
        session.execute(insert(Installation).values(id=installation).on_conflict_do_nothing())
        project = _first_project(session)
        # What an administrator has changed since stays, except where a setting says otherwise.
        quota = insert(ProjectQuota).values(project_id=project, **limits_of(settings))
        given = limits_of(settings, given=True)
        session.execute(
            quota.on_conflict_do_update(index_elements=["project_id"], set_=given)
            if given
            else quota.on_conflict_do_nothing()
        )
        if api_key is not None:
            session.execute(
                insert(ApiKey)
                .values(id=new_id(), project_id=project, name="admin", digest=digest(api_key))
                .on_conflict_do_nothing(index_elements=["digest"])
            )
        _first_admin(session, project, settings)
        for name, (vcpus, memory_mb, disk_gb) in SEEDED_TYPES.items():
            session.execute(
                insert(InstanceType)
                .values(name=name, vcpus=vcpus, memory_mb=memory_mb, disk_gb=disk_gb)
                .on_conflict_do_nothing()
            )
        for host in hosts:
            row = host.model_dump()
            try:
                session.execute(insert(Host).values(**row).on_conflict_do_update(index_elements=["id"], set_=row))
            except IntegrityError as error:
                raise StackError(_clash(host)) from error
        # A simulated host that the settings no longer ask for has no agent: its lease lapses.


def _first_project(session: Session) -> UUID:
    oldest = select(Project.id).order_by(Project.created_at, Project.id).limit(1)
    found = session.execute(oldest).scalar_one_or_none()
    if found is None:
        found = new_id()
        session.execute(insert(Project).values(id=found, name="default", unix_name="default"))
    return found


def _first_admin(session: Session, project: UUID, settings: Settings) -> None:
    """Where there is no administrator: one, who owns the first project, and all keys that are nobody's."""
    admin = session.execute(select(User).where(User.is_admin).order_by(User.created_at).limit(1)).scalar_one_or_none()
    if admin is None:
        admin = User(
            id=new_id(), email=settings.admin_email.lower(), name="Administrator", is_admin=True, verified_at=func.now()
        )
        admin.default_project_id = project
        session.add(admin)
        session.flush()
        session.add(Binding(id=new_id(), project_id=project, user_id=admin.id, role_name="owner"))
    if admin.password_hash is None and settings.admin_password is not None:
        admin.password_hash = hashed(settings.admin_password.get_secret_value())
    nobodys = ApiKey.user_id.is_(None) & ApiKey.service_account_id.is_(None)
    session.execute(update(ApiKey).where(nobodys).values(user_id=admin.id))


def _clash(host: HostSeed) -> str:
    way = (
        f"start without simulated hosts (CAIRN_SIMULATED_HOSTS=0) and remove it: cairn host rm {host.name}"
        if host.backend == "simulated"
        else "start this platform's own host under another name: CAIRN_HOST_NAME=…"
    )
    return f"another host of this platform is named '{host.name}' already: {way}"
