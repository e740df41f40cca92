"""the audit log, and the chain that seals it"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

PROJECT = "nullif((SELECT current_setting('cairn.project', true)), '')::uuid"
# What belongs to no project is of the nil one.
NOWHERE = "'00000000-0000-0000-0000-000000000000'"
PLATFORM = "(SELECT current_setting('cairn.platform', true)) = 'on'"
SEEN = f"(project_id = {PROJECT} AND project_id <> {NOWHERE}) OR (project_id = {NOWHERE} AND {PLATFORM})"


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("epoch", sa.Integer(), server_default=sa.text("current_epoch()"), nullable=False),
        sa.Column("xid", sa.BigInteger(), server_default=sa.text("pg_current_xact_id()::text::bigint"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("service_account_id", sa.Uuid(), nullable=True),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("operation", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("code", sa.String(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("resource_type", sa.String(), nullable=True),
        sa.Column("resource_id", sa.String(), nullable=True),
        sa.Column("before", JSONB(none_as_null=True), nullable=True),
        sa.Column("after", JSONB(none_as_null=True), nullable=True),
        sa.Column("address", sa.String(), nullable=True),
        sa.Column("agent", sa.String(), nullable=True),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("workflow_id", sa.Uuid(), nullable=True),
        sa.CheckConstraint("outcome IN ('allowed', 'denied')", name=op.f("ck_audit_outcome")),
        sa.PrimaryKeyConstraint("project_id", "id", name=op.f("pk_audit")),
    )
    op.create_index("ix_audit_order", "audit", ["epoch", "xid", "id"])
    op.create_index("ix_audit_resource", "audit", ["project_id", "resource_id", "id"])
    op.create_table(
        "audit_links",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("audit_id", sa.Uuid(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "position", name=op.f("pk_audit_links")),
        sa.UniqueConstraint("project_id", "audit_id", name=op.f("uq_audit_links_project_id_audit_id")),
    )
    op.create_table(
        "audit_heads",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("xid", sa.BigInteger(), nullable=False),
        sa.Column("audit_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_audit_heads")),
    )
    op.create_index("ix_audit_heads_order", "audit_heads", ["epoch", "xid", "audit_id"])
    for statement in access():
        op.execute(statement)


def access() -> list[str]:
    """Written, and read: nobody has a right to change or to remove what was written."""
    return [
        "GRANT SELECT, INSERT ON audit TO cairn_api",
        "GRANT SELECT ON audit_links, audit_heads TO cairn_api",
        "GRANT SELECT ON audit TO cairn_worker",
        "GRANT SELECT, INSERT ON audit_links TO cairn_worker",
        "GRANT SELECT, INSERT, UPDATE ON audit_heads TO cairn_worker",
        *(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY" for table in ("audit", "audit_links", "audit_heads")),
        *(
            f"CREATE POLICY api ON {table} FOR SELECT TO cairn_api USING ({SEEN})"
            for table in ("audit", "audit_links", "audit_heads")
        ),
        # Under which master keys heads are signed, for who runs the platform.
        f"CREATE POLICY platform ON audit_heads FOR SELECT TO cairn_api USING ({PLATFORM})",
        # Everybody's requests may concern the platform, and only its administrators read that.
        "CREATE POLICY writing ON audit FOR INSERT TO cairn_api"
        f" WITH CHECK (project_id = {PROJECT} OR project_id = {NOWHERE})",
        "CREATE POLICY worker ON audit FOR SELECT TO cairn_worker USING (true)",
        "CREATE POLICY worker ON audit_links TO cairn_worker USING (true) WITH CHECK (true)",
        "CREATE POLICY worker ON audit_heads TO cairn_worker USING (true) WITH CHECK (true)",
    ]


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
