"""limits of images, and their purge; which webhooks are being delivered to"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("quotas", sa.Column("images_limit", sa.Integer(), nullable=True))
    op.add_column("quotas", sa.Column("image_bytes_limit", sa.BigInteger(), nullable=True))
    op.add_column("webhooks", sa.Column("in_hand_until", sa.DateTime(timezone=True), nullable=True))
    # A workflow that goes is looked for among the images, as among the instances.
    op.create_index("ix_images_workflow", "images", ["project_id", "workflow_id"])
    op.create_index("ix_images_deleted", "images", ["deleted_at"], postgresql_where=sa.text("status = 'deleted'"))
    op.create_index(
        "ix_webhook_deliveries_ended",
        "webhook_deliveries",
        ["created_at"],
        postgresql_where=sa.text("state <> 'pending'"),
    )
    op.execute("GRANT DELETE ON images TO cairn_worker")


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
