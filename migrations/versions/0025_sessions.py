"""work sessions"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

MINE = "project_id = nullif((SELECT current_setting('cairn.project', true)), '')::uuid"
STATES = (
    *("initializing", "cloning", "pulling_image", "creating_sandbox", "ready", "running", "stopped", "error"),
    *("removing", "removed"),
)


def _time(name: str, *, now: bool = True) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=not now)


def _id(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.Uuid(), nullable=False)


def _word(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.String(), nullable=False)


def upgrade() -> None:
    op.add_column("instances", sa.Column("session_id", sa.Uuid(), nullable=True))
    op.create_table(
        "work_sessions",
        _id("workspace_id"),
        _word("commit"),
        _id("instance_id"),
        _id("workflow_id"),
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
            "status IN ({})".format(", ".join(f"'{state}'" for state in STATES)), name=op.f("ck_work_sessions_status")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_work_sessions_project_id_projects")),
        sa.ForeignKeyConstraint(
            ["project_id", "workspace_id"],
            ["workspaces.project_id", "workspaces.id"],
            name=op.f("fk_work_sessions_project_id_workspace_id_workspaces"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "instance_id"],
            ["instances.project_id", "instances.id"],
            name=op.f("fk_work_sessions_project_id_instance_id_instances"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "workflow_id"],
            ["workflows.project_id", "workflows.id"],
            name=op.f("fk_work_sessions_project_id_workflow_id_workflows"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_work_sessions")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_work_sessions_project_id_id")),
    )
    live = sa.text("status <> 'removed'")
    op.create_index(
        "uq_work_sessions_live_name", "work_sessions", ["project_id", "name"], unique=True, postgresql_where=live
    )
    op.create_index("ix_work_sessions_list", "work_sessions", ["project_id", "id"], postgresql_where=live)
    op.create_index("ix_work_sessions_workspace", "work_sessions", ["workspace_id"])
    op.create_index("ix_work_sessions_instance", "work_sessions", ["instance_id"])
    op.create_index("ix_work_sessions_workflow", "work_sessions", ["project_id", "workflow_id"])
    removed = sa.text("status = 'removed'")
    op.create_index("ix_work_sessions_removed", "work_sessions", ["deleted_at"], postgresql_where=removed)
    for statement in access():
        op.execute(statement)
    _end_with_a_project()


def access() -> list[str]:
    return [
        "GRANT SELECT, INSERT, UPDATE ON work_sessions TO cairn_api",
        "GRANT SELECT, UPDATE, DELETE ON work_sessions TO cairn_worker",
        "ALTER TABLE work_sessions ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY api ON work_sessions TO cairn_api USING ({MINE}) WITH CHECK ({MINE})",
        # The tick and the purge look at those of all projects.
        "CREATE POLICY worker ON work_sessions TO cairn_worker USING (true) WITH CHECK (true)",
        "CREATE TRIGGER project_takes BEFORE INSERT ON work_sessions FOR EACH ROW EXECUTE FUNCTION project_takes()",
    ]


def _end_with_a_project() -> None:
    """A project with sessions is not at its end."""
    shown = sa.text("SELECT pg_get_functiondef('forget_project(uuid)'::regprocedure)")
    before: str = op.get_bind().execute(shown).scalar_one()
    images = "OR EXISTS (SELECT FROM images WHERE project_id = gone AND status <> 'deleted')"
    sessions = "OR EXISTS (SELECT FROM work_sessions WHERE project_id = gone AND status <> 'removed')"
    after = before.replace(images, f"{images}\n        {sessions}", 1)
    if before == after:
        raise RuntimeError("forget_project is another")
    op.execute(after.replace(":", r"\:"))


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
