"""what lay in clear lies sealed: webhooks' secrets, instances' scripts; logins of registries, by reference"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

MINE = "project_id = nullif((SELECT current_setting('cairn.project', true)), '')::uuid"
PLATFORM = "(SELECT current_setting('cairn.platform', true)) = 'on'"
# The API encrypts, and sees no ciphertext; what is sealed for a host it hands on, or forgets.
RIGHTS = [
    "GRANT SELECT (id, project_id, webhook_id, instance_id, data_key_id, created_at) ON sealed_values TO cairn_api",
    "GRANT INSERT, UPDATE (data_key_id, nonce, ciphertext), DELETE ON sealed_values TO cairn_api",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON sealed_values TO cairn_worker",
    "GRANT SELECT, DELETE ON image_logins TO cairn_api",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON image_logins TO cairn_worker",
    *(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY" for table in ("sealed_values", "image_logins")),
    *(
        f"CREATE POLICY {role} ON {table} TO cairn_{role} USING ({MINE}) WITH CHECK ({MINE})"
        for table in ("sealed_values", "image_logins")
        for role in ("api", "worker")
    ),
    f"CREATE POLICY platform ON sealed_values FOR SELECT TO cairn_api USING ({PLATFORM})",
]


def _made_at() -> sa.Column[object]:
    return sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)


def _of(table: str, column: str, other: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["project_id", column],
        [f"{other}.project_id", f"{other}.id"],
        name=op.f(f"fk_{table}_project_id_{column}_{other}"),
        ondelete=None if other == "data_keys" else "CASCADE",
    )


def upgrade() -> None:
    op.create_table(
        "sealed_values",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("webhook_id", sa.Uuid(), nullable=True),
        sa.Column("instance_id", sa.Uuid(), nullable=True),
        sa.Column("data_key_id", sa.Uuid(), nullable=False),
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        _made_at(),
        sa.CheckConstraint("num_nonnulls(webhook_id, instance_id) = 1", name=op.f("ck_sealed_values_owner")),
        _of("sealed_values", "webhook_id", "webhooks"),
        _of("sealed_values", "instance_id", "instances"),
        _of("sealed_values", "data_key_id", "data_keys"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sealed_values")),
        sa.UniqueConstraint("webhook_id", name=op.f("uq_sealed_values_webhook_id")),
        sa.UniqueConstraint("instance_id", name=op.f("uq_sealed_values_instance_id")),
    )
    op.create_index("ix_sealed_values_data_key", "sealed_values", ["project_id", "data_key_id"])
    # What is still in clear is looked for at each tick. The release before reads these columns, and writes them.
    op.alter_column("webhooks", "secret", nullable=True)
    op.create_index("ix_webhooks_secret", "webhooks", ["id"], postgresql_where=sa.text("secret IS NOT NULL"))
    op.create_index("ix_instances_user_data", "instances", ["id"], postgresql_where=sa.text("user_data IS NOT NULL"))
    op.add_column("instance_secrets", sa.Column("user_data", sa.String(), nullable=True))
    op.create_table(
        "image_logins",
        sa.Column("image_id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("host_id", sa.Uuid(), nullable=False),
        sa.Column("sealed", sa.String(), nullable=False),
        _made_at(),
        _of("image_logins", "image_id", "images"),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.id"], name=op.f("fk_image_logins_host_id_hosts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("image_id", name=op.f("pk_image_logins")),
    )
    for table in ("images", "instances"):
        op.add_column(table, sa.Column("registry_secret", JSONB(), nullable=True))
        op.create_index(
            f"ix_{table}_registry_secret",
            table,
            ["project_id"],
            postgresql_where=sa.text("registry_secret IS NOT NULL AND status <> 'deleted'"),
        )
    for statement in RIGHTS:
        op.execute(statement)
    _forget_with_a_project()


def _forget_with_a_project() -> None:
    """Before the data keys that they lie under."""
    shown = sa.text("SELECT pg_get_functiondef('forget_project(uuid)'::regprocedure)")
    before: str = op.get_bind().execute(shown).scalar_one()
    after = before.replace("'data_keys'", "'sealed_values', 'data_keys'", 1)
    if after == before:
        raise RuntimeError("forget_project does not name data_keys")
    op.execute(after.replace(":", r"\:"))


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
