"""scaling groups and deployments, their configurations, what was done to them; instances that are members"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

STATES = "'pending', 'active', 'scaling', 'updating', 'error', 'deleting', 'deleted'"


def _time(name: str, *, now: bool = True) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=not now)


def _whole(name: str, default: str | None = None) -> sa.Column[object]:
    return sa.Column(name, sa.Integer(), server_default=None if default is None else sa.text(default), nullable=False)


def _id(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.Uuid(), nullable=nullable)


def _json(name: str, default: str | None = None, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, JSONB(), server_default=None if default is None else sa.text(default), nullable=nullable)


def _word(name: str, default: str | None = None) -> sa.Column[object]:
    return sa.Column(name, sa.String(), server_default=None if default is None else sa.text(default), nullable=False)


def _flag(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.Boolean(), server_default=sa.text("false"), nullable=False)


def _of_group(table: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_project_id_group_id_scaling_groups")
    target = ["scaling_groups.project_id", "scaling_groups.id"]
    return sa.ForeignKeyConstraint(["project_id", "group_id"], target, name=name, ondelete="CASCADE")


def upgrade() -> None:
    _groups()
    _parts()
    _members()
    _scripts()
    for statement in access():
        op.execute(statement)


def _groups() -> None:
    op.create_table(
        "scaling_groups",
        _id("id"),
        _id("project_id"),
        _word("name"),
        _word("status"),
        _json("error", nullable=True),
        _whole("version", "1"),
        _time("created_at"),
        _time("updated_at"),
        _time("deleted_at", now=False),
        _word("kind"),
        _whole("min_instances"),
        _whole("max_instances"),
        _whole("desired_count"),
        _whole("revision", "1"),
        _flag("paused"),
        _json("max_surge", "'1'::jsonb"),
        _json("max_unavailable", "'0'::jsonb"),
        _whole("min_ready_seconds", "0"),
        _whole("failures", "0"),
        _time("backoff_until", now=False),
        _id("load_balancer_id", nullable=True),
        _id("workflow_id"),
        sa.CheckConstraint(f"status IN ({STATES})", name=op.f("ck_scaling_groups_status")),
        sa.CheckConstraint("kind IN ('group', 'deployment')", name=op.f("ck_scaling_groups_kind")),
        sa.CheckConstraint(
            "0 <= min_instances AND min_instances <= max_instances", name=op.f("ck_scaling_groups_bounds")
        ),
        sa.CheckConstraint(
            "desired_count BETWEEN min_instances AND max_instances", name=op.f("ck_scaling_groups_desired")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_scaling_groups_project_id_projects")),
        sa.ForeignKeyConstraint(
            ["project_id", "workflow_id"],
            ["workflows.project_id", "workflows.id"],
            name=op.f("fk_scaling_groups_project_id_workflow_id_workflows"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "load_balancer_id"],
            ["load_balancers.project_id", "load_balancers.id"],
            name=op.f("fk_scaling_groups_project_id_load_balancer_id_load_balancers"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scaling_groups")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_scaling_groups_project_id_id")),
    )
    live = sa.text("status <> 'deleted'")
    op.create_index(
        "uq_scaling_groups_live_name", "scaling_groups", ["project_id", "name"], unique=True, postgresql_where=live
    )
    op.create_index("ix_scaling_groups_list", "scaling_groups", ["project_id", "id"], postgresql_where=live)
    op.create_index("ix_scaling_groups_workflow", "scaling_groups", ["project_id", "workflow_id"])
    gone = sa.text("status = 'deleted'")
    named = sa.text("load_balancer_id IS NOT NULL")
    op.create_index("ix_scaling_groups_balancer", "scaling_groups", ["load_balancer_id"], postgresql_where=named)
    op.create_index("ix_scaling_groups_deleted", "scaling_groups", ["deleted_at"], postgresql_where=gone)


def _parts() -> None:
    op.create_table(
        "group_configurations",
        _id("group_id"),
        _whole("revision"),
        _id("project_id"),
        _json("asked"),
        _json("template"),
        _time("created_at"),
        _time("rolled_out_at", now=False),
        _of_group("group_configurations"),
        sa.PrimaryKeyConstraint("group_id", "revision", name=op.f("pk_group_configurations")),
    )
    op.create_table(
        "group_activities",
        _id("id"),
        _id("project_id"),
        _id("group_id"),
        _id("workflow_id"),
        _word("action"),
        _word("cause"),
        _json("metric", nullable=True),
        _whole("desired_before"),
        _whole("desired_after"),
        _whole("revision_before"),
        _whole("revision_after"),
        _whole("launched", "0"),
        _whole("removed", "0"),
        _whole("failures", "0"),
        _word("state", "'running'"),
        _json("error", nullable=True),
        _flag("rolled_back"),
        _time("created_at"),
        _time("finished_at", now=False),
        sa.CheckConstraint(
            "state IN ('running', 'completed', 'failed', 'cancelled')", name=op.f("ck_group_activities_state")
        ),
        _of_group("group_activities"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_group_activities")),
        sa.UniqueConstraint("project_id", "workflow_id", name=op.f("uq_group_activities_project_id_workflow_id")),
    )
    op.create_index("ix_group_activities_group", "group_activities", ["group_id", "id"])
    op.create_index("ix_group_activities_created_at", "group_activities", ["created_at"])
    op.create_table(
        "group_policies",
        _id("id"),
        _id("project_id"),
        _id("group_id"),
        _word("name"),
        _word("metric_type"),
        sa.Column("target_value", sa.Float(), nullable=False),
        sa.Column("scale_out_step", sa.Integer(), nullable=True),
        sa.Column("scale_in_step", sa.Integer(), nullable=True),
        _whole("cooldown_sec", "60"),
        sa.Column("pushed_value", sa.Float(), nullable=True),
        _time("pushed_at", now=False),
        _time("low_since", now=False),
        _time("acted_at", now=False),
        _time("created_at"),
        sa.CheckConstraint("metric_type ~ '^[a-z][a-z0-9_]{0,62}$'", name=op.f("ck_group_policies_metric_type")),
        sa.CheckConstraint("target_value >= 1e-6 AND cooldown_sec >= 0", name=op.f("ck_group_policies_target")),
        sa.CheckConstraint("scale_out_step > 0 AND scale_in_step > 0", name=op.f("ck_group_policies_steps")),
        sa.CheckConstraint(
            "num_nonnulls(scale_out_step, scale_in_step) IN (0, 2)", name=op.f("ck_group_policies_both_steps")
        ),
        _of_group("group_policies"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_group_policies")),
        sa.UniqueConstraint("group_id", "name", name=op.f("uq_group_policies_group_id_name")),
    )
    op.create_index("ix_group_policies_group", "group_policies", ["group_id", "id"])


def _members() -> None:
    op.add_column("instances", _id("group_id", nullable=True))
    op.add_column("instances", sa.Column("group_revision", sa.Integer(), nullable=True))
    op.add_column("instances", _time("health_at", now=False))
    # Of rows that have none of these all of it is true: nothing has to be read for that while others wait.
    op.execute(
        "ALTER TABLE instances ADD CONSTRAINT ck_instances_member CHECK ((group_id IS NULL) = (group_revision IS NULL))"
    )
    op.create_foreign_key(
        op.f("fk_instances_project_id_group_id_scaling_groups"),
        "instances",
        "scaling_groups",
        ["project_id", "group_id"],
        ["project_id", "id"],
    )
    op.create_index(
        "ix_instances_group",
        "instances",
        ["group_id", "status"],
        postgresql_where=sa.text("group_id IS NOT NULL"),
    )


def _scripts() -> None:
    """Of members: sealed once for all that have a configuration."""
    op.add_column("sealed_values", _id("group_id", nullable=True))
    op.drop_constraint(op.f("ck_sealed_values_owner"), "sealed_values")
    op.create_check_constraint(
        op.f("ck_sealed_values_owner"),
        "sealed_values",
        "num_nonnulls(webhook_id, instance_id, cron_job_id, group_id) = 1",
    )
    op.create_foreign_key(
        op.f("fk_sealed_values_project_id_group_id_scaling_groups"),
        "sealed_values",
        "scaling_groups",
        ["project_id", "group_id"],
        ["project_id", "id"],
        ondelete="CASCADE",
    )
    named = sa.text("group_id IS NOT NULL")
    op.create_index("ix_sealed_values_group", "sealed_values", ["group_id"], postgresql_where=named)


MINE = "project_id = nullif((SELECT current_setting('cairn.project', true)), '')::uuid"


def access() -> list[str]:
    statements = [
        "GRANT SELECT, INSERT, UPDATE ON scaling_groups, group_configurations, group_activities TO cairn_api",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON group_policies TO cairn_api",
        "GRANT SELECT, UPDATE ON group_policies TO cairn_worker",
        "GRANT SELECT, UPDATE, DELETE ON scaling_groups TO cairn_worker",
        "GRANT SELECT, UPDATE, DELETE ON group_configurations TO cairn_worker",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON group_activities TO cairn_worker",
        "GRANT SELECT (group_id) ON sealed_values TO cairn_api",
        # A project that is going away takes no more of them.
        "CREATE TRIGGER project_takes BEFORE INSERT ON scaling_groups FOR EACH ROW EXECUTE FUNCTION project_takes()",
    ]
    for table in ("scaling_groups", "group_configurations", "group_activities", "group_policies"):
        statements.append(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        statements.append(f"CREATE POLICY api ON {table} TO cairn_api USING ({MINE}) WITH CHECK ({MINE})")
        # The tick looks at the groups of all projects, and the purge removes what is old; configurations, which may
        # hold what their owners keep to themselves, are read one project at a time.
        seen = MINE if table == "group_configurations" else "true"
        statements.append(f"CREATE POLICY worker ON {table} TO cairn_worker USING ({seen}) WITH CHECK ({seen})")
    return statements


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
