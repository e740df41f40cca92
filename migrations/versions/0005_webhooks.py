"""events of one resource; webhooks"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def _time(name: str, *, now: bool = True) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=not now)


def upgrade() -> None:
    op.create_index("ix_events_resource", "events", ["project_id", "resource_id", "epoch", "xid", "id"])
    op.create_index(
        "ix_workflows_failed", "workflows", ["project_id", "finished_at"], postgresql_where=sa.text("state = 'failed'")
    )
    op.create_index(
        "ix_instances_counted", "instances", ["project_id", "status"], postgresql_where=sa.text("status <> 'deleted'")
    )
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("events", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("secret", sa.String(), nullable=False),
        sa.Column("active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("disabled_reason", sa.String(), nullable=True),
        sa.Column("dead_in_a_row", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("xid", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        _time("created_at"),
        _time("updated_at"),
        sa.CheckConstraint("disabled_reason IS NULL OR NOT active", name=op.f("ck_webhooks_disabled")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_webhooks_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_webhooks_project_id_id")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_webhooks_project_id_name")),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("webhook_id", sa.Uuid(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("xid", sa.BigInteger(), nullable=False),
        sa.Column("event_id", sa.BigInteger(), nullable=False),
        sa.Column("event_type", sa.String(), nullable=False),
        sa.Column("state", sa.String(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        _time("next_attempt_at"),
        _time("last_attempt_at", now=False),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        _time("created_at"),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'dead')", name=op.f("ck_webhook_deliveries_state")),
        sa.ForeignKeyConstraint(
            ["project_id", "webhook_id"],
            ["webhooks.project_id", "webhooks.id"],
            name=op.f("fk_webhook_deliveries_project_id_webhook_id_webhooks"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
        sa.UniqueConstraint("webhook_id", "event_id", name=op.f("uq_webhook_deliveries_webhook_id_event_id")),
    )
    op.create_index("ix_webhook_deliveries_list", "webhook_deliveries", ["project_id", "webhook_id", "id"])
    op.create_index(
        "ix_webhook_deliveries_pending",
        "webhook_deliveries",
        ["webhook_id", "epoch", "xid", "event_id"],
        postgresql_where=sa.text("state = 'pending'"),
    )
    for statement in access():
        op.execute(statement)


# The API writes secrets, and cannot read them again. The tick looks for events of all projects.
WRITTEN = "name, url, events, secret, active, disabled_reason, dead_in_a_row, epoch, xid, number, version, updated_at"
GRANTS = [
    f"GRANT INSERT ({WRITTEN}, id, project_id), UPDATE ({WRITTEN}), DELETE ON webhooks TO cairn_api",
    f"GRANT SELECT ({WRITTEN.replace(' secret,', '')}, id, project_id, created_at) ON webhooks TO cairn_api",
    "GRANT SELECT, UPDATE ON webhook_deliveries TO cairn_api",
    "GRANT SELECT, UPDATE ON webhooks TO cairn_worker",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON webhook_deliveries TO cairn_worker",
]
MINE = "project_id = nullif((SELECT current_setting('cairn.project', true)), '')::uuid"


def access() -> list[str]:
    statements = [*GRANTS, "ALTER POLICY worker ON events USING (true)"]
    for table in ("webhooks", "webhook_deliveries"):
        statements.append(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        statements.append(f"CREATE POLICY api ON {table} TO cairn_api USING ({MINE}) WITH CHECK ({MINE})")
        statements.append(f"CREATE POLICY worker ON {table} TO cairn_worker USING (true) WITH CHECK (true)")
    return statements


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
