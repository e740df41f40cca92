"""load balancers, their targets, what they do"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def _time(name: str, *, now: bool = False) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=not now)


def _number(name: str, default: str | None = None, kind: type[sa.Integer] = sa.Integer) -> sa.Column[object]:
    return sa.Column(name, kind(), server_default=None if default is None else sa.text(default), nullable=False)


def upgrade() -> None:
    op.add_column("instances", sa.Column("balancer_id", sa.Uuid(), nullable=True))
    op.add_column("quotas", sa.Column("load_balancers_limit", sa.Integer(), nullable=True))
    _balancers()
    _targets()
    _samples()
    for statement in access():
        op.execute(statement)


def _balancers() -> None:
    op.create_table(
        "load_balancers",
        sa.Column("mode", sa.String(), nullable=False),
        _number("port"),
        sa.Column("settings", JSONB(), nullable=False),
        sa.Column("settings_by", sa.Uuid(), nullable=True),
        sa.Column("instance_id", sa.Uuid(), nullable=False),
        _number("revision", "0"),
        sa.Column("applied_settings", JSONB(), nullable=True),
        _number("applied_revision", "0"),
        sa.Column("applied_digest", sa.String(), nullable=True),
        sa.Column("applied_engine_id", sa.String(), nullable=True),
        _time("looked_at"),
        _number("failures", "0"),
        _time("retry_at"),
        sa.Column("workflow_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("error", JSONB(), nullable=True),
        _number("version", "1"),
        _time("created_at", now=True),
        _time("updated_at", now=True),
        _time("deleted_at"),
        sa.CheckConstraint(
            "status IN ('creating', 'active', 'updating', 'error', 'deleting', 'deleted')",
            name=op.f("ck_load_balancers_status"),
        ),
        sa.CheckConstraint("mode IN ('http', 'tcp')", name=op.f("ck_load_balancers_mode")),
        sa.CheckConstraint("port BETWEEN 1 AND 65535", name=op.f("ck_load_balancers_port")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_load_balancers_project_id_projects")),
        sa.ForeignKeyConstraint(
            ["project_id", "instance_id"],
            ["instances.project_id", "instances.id"],
            name=op.f("fk_load_balancers_project_id_instance_id_instances"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "workflow_id"],
            ["workflows.project_id", "workflows.id"],
            name=op.f("fk_load_balancers_project_id_workflow_id_workflows"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_load_balancers")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_load_balancers_project_id_id")),
    )
    live = sa.text("status <> 'deleted'")
    op.create_index(
        "uq_load_balancers_live_name", "load_balancers", ["project_id", "name"], unique=True, postgresql_where=live
    )
    op.create_index("ix_load_balancers_list", "load_balancers", ["project_id", "id"], postgresql_where=live)
    op.create_index("ix_load_balancers_instance", "load_balancers", ["instance_id"])
    op.create_index("ix_load_balancers_workflow", "load_balancers", ["project_id", "workflow_id"])
    op.create_index(
        "ix_load_balancers_deleted", "load_balancers", ["deleted_at"], postgresql_where=sa.text("status = 'deleted'")
    )
    op.create_index("ix_load_balancers_active", "load_balancers", ["id"], postgresql_where=sa.text("status = 'active'"))


def _targets() -> None:
    op.create_table(
        "lb_targets",
        sa.Column("balancer_id", sa.Uuid(), nullable=False),
        sa.Column("instance_id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        _number("port"),
        _number("weight", "100"),
        sa.Column("prior_weight", sa.Integer(), nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("workflow_id", sa.Uuid(), nullable=True),
        sa.Column("health", sa.String(), nullable=True),
        _time("health_at"),
        sa.Column("check", sa.String(), nullable=True),
        _time("created_at", now=True),
        _time("updated_at", now=True),
        sa.CheckConstraint("port BETWEEN 1 AND 65535", name=op.f("ck_lb_targets_port")),
        sa.CheckConstraint("weight BETWEEN 0 AND 256", name=op.f("ck_lb_targets_weight")),
        sa.CheckConstraint("state IN ('adding', 'in', 'draining', 'drained')", name=op.f("ck_lb_targets_state")),
        sa.CheckConstraint("health IN ('up', 'down', 'draining', 'maint')", name=op.f("ck_lb_targets_health")),
        sa.ForeignKeyConstraint(
            ["project_id", "balancer_id"],
            ["load_balancers.project_id", "load_balancers.id"],
            name=op.f("fk_lb_targets_project_id_balancer_id_load_balancers"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "instance_id"],
            ["instances.project_id", "instances.id"],
            name=op.f("fk_lb_targets_project_id_instance_id_instances"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("balancer_id", "instance_id", name=op.f("pk_lb_targets")),
    )
    op.create_index("ix_lb_targets_instance", "lb_targets", ["instance_id"])


def _samples() -> None:
    op.create_table(
        "lb_samples",
        sa.Column("balancer_id", sa.Uuid(), nullable=False),
        _time("at"),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        _number("sessions"),
        _number("requests", kind=sa.BigInteger),
        _number("bytes_in", kind=sa.BigInteger),
        _number("bytes_out", kind=sa.BigInteger),
        _number("errors", kind=sa.BigInteger),
        sa.Column("targets", JSONB(), server_default=sa.text("'[]'::jsonb"), nullable=False),
        sa.PrimaryKeyConstraint("balancer_id", "at", name=op.f("pk_lb_samples")),
    )
    op.create_index("ix_lb_samples_age", "lb_samples", ["at"])


GRANTS = [
    "GRANT SELECT, INSERT, UPDATE ON load_balancers TO cairn_api",
    "GRANT SELECT, UPDATE, DELETE ON load_balancers TO cairn_worker",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON lb_targets TO cairn_api, cairn_worker",
    # Each that is told takes the place of one that is too old.
    "GRANT SELECT, INSERT, DELETE ON lb_samples TO cairn_api",
    "GRANT SELECT, DELETE ON lb_samples TO cairn_worker",
]
MINE = "project_id = nullif((SELECT current_setting('cairn.project', true)), '')::uuid"


def access() -> list[str]:
    statements = [*GRANTS]
    for table in ("load_balancers", "lb_targets", "lb_samples"):
        statements.append(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        statements.append(f"CREATE POLICY api ON {table} TO cairn_api USING ({MINE}) WITH CHECK ({MINE})")
        # The tick looks at those of all projects.
        statements.append(f"CREATE POLICY worker ON {table} TO cairn_worker USING (true) WITH CHECK (true)")
    takes = "BEFORE INSERT ON load_balancers FOR EACH ROW EXECUTE FUNCTION project_takes()"
    return [*statements, f"CREATE TRIGGER project_takes {takes}"]


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
