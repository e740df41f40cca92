"""how long fences wait, parts of workflows; retries, instance types that operators change, what a purge looks for"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

MINE = "project_id = nullif((SELECT current_setting('cairn.project', true)), '')::uuid"
ACCESS = [
    "GRANT INSERT, UPDATE ON instance_types TO cairn_api",
    "GRANT DELETE ON instances, workflows, events TO cairn_worker",
    "GRANT SELECT ON event_horizons TO cairn_api",
    "GRANT SELECT, INSERT, UPDATE ON event_horizons TO cairn_worker",
    "ALTER TABLE event_horizons ENABLE ROW LEVEL SECURITY",
    f"CREATE POLICY api ON event_horizons TO cairn_api USING ({MINE}) WITH CHECK ({MINE})",
    f"CREATE POLICY worker ON event_horizons TO cairn_worker USING ({MINE}) WITH CHECK ({MINE})",
]


def upgrade() -> None:
    op.add_column("hosts", sa.Column("fence_after", sa.Double(), nullable=True))
    op.execute("GRANT INSERT (fence_after), UPDATE (fence_after) ON hosts TO cairn_api")
    op.create_index(
        "ix_workflows_parent", "workflows", ["parent_id", "id"], postgresql_where=sa.text("parent_id IS NOT NULL")
    )
    # Which of a host's instances changed lately, every few seconds.
    op.drop_index("ix_instances_host", "instances")
    op.create_index(
        "ix_instances_host", "instances", ["host_id", "updated_at"], postgresql_where=sa.text("host_id IS NOT NULL")
    )
    # A run is tried again once. (Nothing has written the column so far.)
    op.create_index(
        "uq_workflows_retry_of",
        "workflows",
        ["retry_of"],
        unique=True,
        postgresql_where=sa.text("retry_of IS NOT NULL"),
    )
    op.add_column("instance_types", sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(
        "CREATE FUNCTION instance_type_in_use(wanted text) RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER "
        "SET search_path = pg_catalog, public AS "
        "'SELECT EXISTS (SELECT FROM public.instances WHERE instance_type = wanted AND status <> ''deleted'')'"
    )
    op.create_table(
        "event_horizons",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("xid", sa.BigInteger(), nullable=False),
        sa.Column("event_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_event_horizons_project_id_projects")),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_event_horizons")),
    )
    # A workflow that goes is looked for among the instances.
    op.create_index("ix_instances_workflow", "instances", ["project_id", "workflow_id"])
    op.create_index("ix_instances_deleted", "instances", ["deleted_at"], postgresql_where=sa.text("status = 'deleted'"))
    for statement in ACCESS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
