"""what an instance reaches; what a host's agent can do"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    default = sa.text("""'{"mode": "open", "allow": []}'::jsonb""")
    op.add_column("instances", sa.Column("network", JSONB(), server_default=default, nullable=False))
    op.create_check_constraint(
        op.f("ck_instances_network"), "instances", "network ->> 'mode' IN ('open', 'none', 'allow-list')"
    )
    op.add_column("hosts", sa.Column("capabilities", JSONB(), server_default=sa.text("'[]'::jsonb"), nullable=False))
    op.execute("GRANT INSERT (capabilities), UPDATE (capabilities) ON hosts TO cairn_api")


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
