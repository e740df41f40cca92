"""verbs: more states, tags, the size that an instance is to get"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

STATES = (
    "'pending', 'provisioning', 'running', 'stopping', 'stopped', 'starting', 'restarting', 'pausing', 'paused', "
    "'resuming', 'resizing', 'deleting', 'deleted', 'error'"
)


def upgrade() -> None:
    op.drop_constraint(op.f("ck_instances_status"), "instances")
    op.create_check_constraint(op.f("ck_instances_status"), "instances", f"status IN ({STATES})")
    op.add_column(
        "instances",
        sa.Column(
            "tags", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'::jsonb"), nullable=False
        ),
    )
    op.create_index(
        "ix_instances_tags", "instances", ["tags"], postgresql_using="gin", postgresql_ops={"tags": "jsonb_path_ops"}
    )
    op.add_column("instances", sa.Column("next_type", sa.String(), nullable=True))
    op.add_column("instances", sa.Column("next_vcpus", sa.Double(), nullable=True))
    op.add_column("instances", sa.Column("next_memory_mb", sa.Integer(), nullable=True))
    op.add_column("instances", sa.Column("next_held", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_foreign_key(
        op.f("fk_instances_next_type_instance_types"), "instances", "instance_types", ["next_type"], ["name"]
    )
    op.create_check_constraint(
        op.f("ck_instances_next_size"), "instances", "num_nonnulls(next_type, next_vcpus, next_memory_mb) IN (0, 3)"
    )


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
