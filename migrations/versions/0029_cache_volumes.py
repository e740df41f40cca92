"""cache volumes"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None

MINE = "project_id = nullif((SELECT current_setting('cairn.project', true)), '')::uuid"


def _time(name: str, *, now: bool = True) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=not now)


def _id(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.Uuid(), nullable=nullable)


def _word(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.String(), nullable=False)


def upgrade() -> None:
    empty = sa.text("'[]'::jsonb")
    op.add_column("instances", sa.Column("caches", JSONB(), server_default=empty, nullable=False))
    _volumes()
    _places()
    for statement in access():
        op.execute(statement)
    _end_with_a_project()


def _volumes() -> None:
    op.create_table(
        "cache_volumes",
        _word("path"),
        _time("cleared_at", now=False),
        _id("workflow_id", nullable=True),
        _id("id"),
        _id("project_id"),
        _word("name"),
        _word("status"),
        sa.Column("error", JSONB(), nullable=True),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        _time("created_at"),
        _time("updated_at"),
        _time("deleted_at", now=False),
        sa.CheckConstraint(
            "status IN ('ready', 'clearing', 'error', 'deleting', 'deleted')", name=op.f("ck_cache_volumes_status")
        ),
        sa.CheckConstraint("path ~ '^/.'", name=op.f("ck_cache_volumes_path")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_cache_volumes_project_id_projects")),
        sa.ForeignKeyConstraint(
            ["project_id", "workflow_id"],
            ["workflows.project_id", "workflows.id"],
            name=op.f("fk_cache_volumes_project_id_workflow_id_workflows"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cache_volumes")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_cache_volumes_project_id_id")),
    )
    live, deleted = sa.text("status <> 'deleted'"), sa.text("status = 'deleted'")
    op.create_index(
        "uq_cache_volumes_live_name", "cache_volumes", ["project_id", "name"], unique=True, postgresql_where=live
    )
    op.create_index("ix_cache_volumes_list", "cache_volumes", ["project_id", "id"], postgresql_where=live)
    op.create_index("ix_cache_volumes_workflow", "cache_volumes", ["project_id", "workflow_id"])
    op.create_index("ix_cache_volumes_deleted", "cache_volumes", ["deleted_at"], postgresql_where=deleted)


def _places() -> None:
    op.create_table(
        "cache_volume_hosts",
        _id("volume_id"),
        _id("host_id"),
        _id("project_id"),
        _time("since"),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.id"], name=op.f("fk_cache_volume_hosts_host_id_hosts"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "volume_id"],
            ["cache_volumes.project_id", "cache_volumes.id"],
            name=op.f("fk_cache_volume_hosts_project_id_volume_id_cache_volumes"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("volume_id", "host_id", name=op.f("pk_cache_volume_hosts")),
    )
    op.create_index("ix_cache_volume_hosts_host", "cache_volume_hosts", ["host_id"])
    op.create_table(
        "session_cache_volumes",
        _id("session_id"),
        _id("volume_id"),
        _id("project_id"),
        sa.ForeignKeyConstraint(
            ["project_id", "session_id"],
            ["work_sessions.project_id", "work_sessions.id"],
            name=op.f("fk_session_cache_volumes_project_id_session_id_work_sessions"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "volume_id"],
            ["cache_volumes.project_id", "cache_volumes.id"],
            name=op.f("fk_session_cache_volumes_project_id_volume_id_cache_volumes"),
        ),
        sa.PrimaryKeyConstraint("session_id", "volume_id", name=op.f("pk_session_cache_volumes")),
    )
    op.create_index("ix_session_cache_volumes_volume", "session_cache_volumes", ["volume_id"])


def access() -> list[str]:
    statements = [
        "GRANT SELECT, INSERT, UPDATE ON cache_volumes TO cairn_api",
        "GRANT SELECT, UPDATE, DELETE ON cache_volumes TO cairn_worker",
        "GRANT SELECT, INSERT ON cache_volume_hosts TO cairn_api",
        "GRANT SELECT, DELETE ON cache_volume_hosts TO cairn_worker",
        # These go with their sessions.
        "GRANT SELECT, INSERT ON session_cache_volumes TO cairn_api",
        "GRANT SELECT ON session_cache_volumes TO cairn_worker",
    ]
    for table in ("cache_volumes", "cache_volume_hosts", "session_cache_volumes"):
        statements.append(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        statements.append(f"CREATE POLICY api ON {table} TO cairn_api USING ({MINE}) WITH CHECK ({MINE})")
        # The purge looks at those of all projects.
        seen = MINE if table == "cache_volume_hosts" else "true"
        statements.append(f"CREATE POLICY worker ON {table} TO cairn_worker USING ({seen}) WITH CHECK ({seen})")
    # A project that is going away takes no more of them.
    takes = "FOR EACH ROW EXECUTE FUNCTION project_takes()"
    return [*statements, f"CREATE TRIGGER project_takes BEFORE INSERT ON cache_volumes {takes}"]


def _end_with_a_project() -> None:
    """A project with cache volumes is not at its end."""
    shown = sa.text("SELECT pg_get_functiondef('forget_project(uuid)'::regprocedure)")
    before: str = op.get_bind().execute(shown).scalar_one()
    images = "OR EXISTS (SELECT FROM images WHERE project_id = gone AND status <> 'deleted')"
    after = before.replace(images, f"{images}\n        {images.replace('images', 'cache_volumes')}", 1)
    if before == after:
        raise RuntimeError("forget_project is another")
    op.execute(after.replace(":", r"\:"))


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
