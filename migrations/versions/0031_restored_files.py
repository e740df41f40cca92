"""files that no row knows since a restore"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "restore_trees",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("restore_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("told_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("kind IN ('workspace', 'session', 'cache')", name=op.f("ck_restore_trees_kind")),
        sa.PrimaryKeyConstraint("id", "host", name=op.f("pk_restore_trees")),
    )
    # An API writes down what agents tell it, a worker names it among the differences.
    op.execute("GRANT SELECT, INSERT, UPDATE ON restore_trees TO cairn_api")
    op.execute("GRANT SELECT, DELETE ON restore_trees TO cairn_worker")


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
