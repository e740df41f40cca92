"""Alembic's environment: the schema of ``model.schema``, as the role that owns it."""

from __future__ import annotations

from alembic import context
from sqlalchemy import NullPool, create_engine, text

from model.schema import Base

LOCK = 0x6361_6972_6E  # "cairn": two migrations at once wait for each other.


def include(_object: object, name: str | None, kind: str, _reflected: bool, _compare_to: object) -> bool:
    """Indexes on expressions cannot be compared with what the database reflects."""
    return not (kind == "index" and name in ("uq_installation_one", "uq_bindings_subject"))


def run() -> None:
    # What is said of the session, and its lock, end with it: nothing else may use it afterwards.
    engine = create_engine(context.config.attributes["url"], poolclass=NullPool)
    with engine.connect() as connection:
        # No migration may queue behind a long transaction and block everything behind itself.
        connection.execute(text("SET lock_timeout = '10s'"))
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            compare_server_default=False,
            include_object=include,
            # What one has locked others use again during the next: each fits what runs, as the newest does. One that
            # fails leaves those before it, and the next run goes on from there.
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()
        # Every process looks whether the schema is new enough for it, before it does anything.
        connection.execute(text("GRANT SELECT ON alembic_version TO cairn_api, cairn_worker"))
        connection.commit()


run()
