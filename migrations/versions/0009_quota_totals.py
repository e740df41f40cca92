"""workers may sum up what projects use"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Beside the policy by which they change one project's row at a time: a figure of all is not a change.
    op.execute("CREATE POLICY totals ON quotas FOR SELECT TO cairn_worker USING (true)")


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
