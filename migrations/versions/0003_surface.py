"""retries, instance types that operators change, what a purge looks for"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003_surface"
down_revision = "0002"
branch_labels = None
depends_on = None

GRANTS = [
    "GRANT INSERT, UPDATE ON instance_types TO cairn_api",
]


def upgrade() -> None:
    # A run is tried again once. (Nothing has written the column so far.)
    op.create_index(
        "uq_workflows_retry_of",
        "workflows",
        ["retry_of"],
        unique=True,
        postgresql_where=sa.text("retry_of IS NOT NULL"),
    )
    op.add_column("instance_types", sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(
        "CREATE FUNCTION instance_type_in_use(wanted text) RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER "
        "SET search_path = pg_catalog, public AS "
        "'SELECT EXISTS (SELECT FROM public.instances WHERE instance_type = wanted AND status <> ''deleted'')'"
    )
    for statement in GRANTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
