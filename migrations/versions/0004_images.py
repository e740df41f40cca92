"""images, where they are cached, and what instances are made of exactly"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "images",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("reference", sa.String(), nullable=True),
        sa.Column("url", sa.String(), nullable=True),
        sa.Column("checksum", sa.String(), nullable=True),
        sa.Column("format", sa.String(), nullable=True),
        sa.Column("digest", sa.String(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("workflow_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('pending', 'importing', 'available', 'error', 'deleting', 'deleted')",
            name=op.f("ck_images_status"),
        ),
        sa.CheckConstraint("source IN ('registry', 'upload', 'url')", name=op.f("ck_images_source")),
        sa.CheckConstraint(
            "format IN ('docker-archive', 'oci-archive', 'rootfs-tar', 'qcow2')", name=op.f("ck_images_format")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_images_project_id_projects")),
        sa.ForeignKeyConstraint(
            ["project_id", "workflow_id"],
            ["workflows.project_id", "workflows.id"],
            name=op.f("fk_images_project_id_workflow_id_workflows"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_images")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_images_project_id_id")),
    )
    op.create_index(
        "uq_images_live_name",
        "images",
        ["project_id", "name"],
        unique=True,
        postgresql_where=sa.text("status <> 'deleted'"),
    )
    op.create_index("ix_images_digest", "images", ["digest"], postgresql_where=sa.text("digest IS NOT NULL"))
    op.create_table(
        "image_caches",
        sa.Column("host_id", sa.Uuid(), nullable=False),
        sa.Column("image_id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.id"], name=op.f("fk_image_caches_host_id_hosts"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "image_id"],
            ["images.project_id", "images.id"],
            name=op.f("fk_image_caches_project_id_image_id_images"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("host_id", "image_id", name=op.f("pk_image_caches")),
    )
    op.create_index("ix_image_caches_image", "image_caches", ["image_id"])
    op.add_column("hosts", sa.Column("images_at", sa.DateTime(timezone=True), nullable=True))
    for name in ("image_reference", "image_format", "image_digest"):
        op.add_column("instances", sa.Column(name, sa.String(), nullable=True))
    op.add_column("instances", sa.Column("image_id", sa.Uuid(), nullable=True))
    op.create_foreign_key(
        op.f("fk_instances_project_id_image_id_images"),
        "instances",
        "images",
        ["project_id", "image_id"],
        ["project_id", "id"],
    )
    op.create_index("ix_instances_image", "instances", ["image_id"], postgresql_where=sa.text("image_id IS NOT NULL"))
    for statement in access():
        op.execute(statement)


MINE = "project_id = nullif((SELECT current_setting('cairn.project', true)), '')::uuid"
GRANTS = [
    "GRANT SELECT, INSERT, UPDATE ON images TO cairn_api",
    "GRANT SELECT, UPDATE ON images TO cairn_worker",
    "GRANT SELECT ON image_caches TO cairn_api",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON image_caches TO cairn_worker",
]
# An agent has no project: what it may fetch is what the instances that are placed on its hosts are made of.
MAY_FETCH = """
    CREATE FUNCTION may_fetch(credential bytea, digest text) RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, public AS $$
        SELECT EXISTS (
            SELECT FROM public.instances i
            JOIN public.hosts h ON h.id = i.host_id OR h.id = i.next_host_id
            WHERE h.credential = $1 AND i.image_digest = $2 AND i.image_format IS NOT NULL AND i.status <> 'deleted'
        )
    $$
"""


def access() -> list[str]:
    statements = [*GRANTS]
    for table in ("images", "image_caches"):
        statements += [
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            f"CREATE POLICY api ON {table} TO cairn_api USING ({MINE}) WITH CHECK ({MINE})",
            f"CREATE POLICY worker ON {table} TO cairn_worker USING (true) WITH CHECK (true)",
        ]
    return [
        *statements,
        MAY_FETCH,
        "REVOKE EXECUTE ON FUNCTION may_fetch(bytea, text) FROM PUBLIC",
        "GRANT EXECUTE ON FUNCTION may_fetch(bytea, text) TO cairn_api",
    ]


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
