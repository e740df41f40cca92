"""how long instances live and run, how they start, whether they are well; ssh keys"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("instances", sa.Column("ttl_seconds", sa.Integer(), nullable=True))
    op.add_column("instances", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("instances", sa.Column("idle_stop_seconds", sa.Integer(), nullable=True))
    op.add_column("instances", sa.Column("active_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("instances", sa.Column("restart_policy", sa.String(), server_default=sa.text("'no'"), nullable=False))
    op.add_column("instances", sa.Column("health_check", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column("instances", sa.Column("health", sa.String(), nullable=True))
    op.add_column("instances", sa.Column("user_data", sa.String(), nullable=True))
    op.add_column("instances", sa.Column("user_data_sha256", sa.String(), nullable=True))
    op.add_column("instances", sa.Column("ssh_key_id", sa.Uuid(), nullable=True))
    op.add_column("instances", sa.Column("authorized_key", sa.String(), nullable=True))
    op.create_check_constraint(op.f("ck_instances_ttl"), "instances", "(ttl_seconds IS NULL) = (expires_at IS NULL)")
    op.create_check_constraint(op.f("ck_instances_lifetimes"), "instances", "ttl_seconds > 0 AND idle_stop_seconds > 0")
    op.create_check_constraint(
        op.f("ck_instances_health"), "instances", "health IN ('starting', 'healthy', 'unhealthy')"
    )
    op.create_index(
        "ix_instances_expires",
        "instances",
        ["expires_at"],
        postgresql_where=sa.text("expires_at IS NOT NULL AND status <> 'deleted'"),
    )
    op.create_index(
        "ix_instances_idle",
        "instances",
        ["id"],
        postgresql_where=sa.text("idle_stop_seconds IS NOT NULL AND status = 'running'"),
    )
    op.create_table(
        "ssh_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("public_key", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_ssh_keys_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ssh_keys")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_ssh_keys_project_id_name")),
    )
    for statement in access():
        op.execute(statement)


MINE = "project_id = nullif((SELECT current_setting('cairn.project', true)), '')::uuid"


def access() -> list[str]:
    # Workers need no keys: an instance's row holds what its machine gets.
    return [
        "GRANT SELECT, INSERT, DELETE ON ssh_keys TO cairn_api",
        "ALTER TABLE ssh_keys ENABLE ROW LEVEL SECURITY",
        *(
            f"CREATE POLICY {name} ON ssh_keys TO cairn_{name} USING ({MINE}) WITH CHECK ({MINE})"
            for name in ("api", "worker")
        ),
    ]


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
