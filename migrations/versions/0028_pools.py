"""pools: groups whose members are claimed by work sessions"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_constraint(op.f("ck_scaling_groups_kind"), "scaling_groups")
    op.create_check_constraint(
        op.f("ck_scaling_groups_kind"), "scaling_groups", "kind IN ('group', 'deployment', 'pool')"
    )
    op.add_column("instances", sa.Column("warm", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("work_sessions", sa.Column("pool_id", sa.Uuid(), nullable=True))
    cold = sa.Column("start", sa.String(), server_default=sa.text("'cold'"), nullable=False)
    op.add_column("work_sessions", cold)
    op.add_column("work_sessions", sa.Column("start_reason", sa.String(), nullable=True))
    op.create_check_constraint(op.f("ck_work_sessions_start"), "work_sessions", "start IN ('warm', 'cold')")
    op.create_index(
        "ix_work_sessions_pool",
        "work_sessions",
        ["pool_id", "created_at"],
        postgresql_where=sa.text("pool_id IS NOT NULL"),
    )


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
