"""counts of requests that API processes share"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rate_limits",
        sa.Column("bucket", sa.String(), nullable=False),
        sa.Column("taken", sa.Integer(), nullable=False),
        sa.Column("given", sa.Integer(), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("bucket", name=op.f("pk_rate_limits")),
        prefixes=["UNLOGGED"],
        # Each lease updates its row, and touches no index: room for HOT keeps the table short.
        postgresql_with={"fillfactor": 50},
    )
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON rate_limits TO cairn_api")


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
