"""restores of the database from a backup, and what was found to differ"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

JSONB = postgresql.JSONB(astext_type=sa.Text())


def upgrade() -> None:
    op.create_table(
        "restores",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("backup_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("restored_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("looked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("left_alone", JSONB, server_default=sa.text("'[]'::jsonb"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_restores")),
    )
    op.create_index(
        "uq_restores_open",
        "restores",
        [sa.literal_column("(true)")],
        unique=True,
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.create_table(
        "restore_hosts",
        sa.Column("host_id", sa.Uuid(), nullable=False),
        sa.Column("restore_id", sa.Uuid(), nullable=False),
        sa.Column("machines", JSONB, server_default=sa.text("'[]'::jsonb"), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("surveyed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("host_id", name=op.f("pk_restore_hosts")),
    )
    op.create_table(
        "restore_differences",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("difference", JSONB, nullable=False),
        sa.CheckConstraint("number > 0", name=op.f("ck_restore_differences_number")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_restore_differences")),
    )
    op.create_index("ix_restore_differences_resource", "restore_differences", ["resource_id"])
    for statement in access():
        op.execute(statement)


def access() -> list[str]:
    # They are nobody's project: the API shows them to operators alone. A worker makes rows of what an engine has.
    return [
        "GRANT SELECT ON restores, restore_differences TO cairn_api",
        "GRANT UPDATE (left_alone) ON restores TO cairn_api",
        "GRANT SELECT, UPDATE ON restores TO cairn_worker",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON restore_hosts, restore_differences TO cairn_worker",
        "GRANT INSERT ON instances TO cairn_worker",
    ]


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
