"""secrets, their versions, the keys that they lie under; what instances are given of them"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def _time(name: str, *, now: bool = True) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=not now)


def _project(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f(f"fk_{table}_project_id_projects"))


def upgrade() -> None:
    op.create_table(
        "data_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("master_key_id", sa.String(), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        _time("created_at"),
        _project("data_keys"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_data_keys")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_data_keys_project_id_id")),
        sa.UniqueConstraint("project_id", "master_key_id", name=op.f("uq_data_keys_project_id_master_key_id")),
    )
    op.create_table(
        "secrets",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("description", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("current_version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        _time("created_at"),
        _time("updated_at"),
        _project("secrets"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_secrets")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_secrets_project_id_id")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_secrets_project_id_name")),
    )
    op.create_table(
        "secret_versions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("secret_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("data_key_id", sa.Uuid(), nullable=True),
        sa.Column("nonce", sa.LargeBinary(), nullable=True),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=True),
        _time("created_at"),
        _time("destroyed_at", now=False),
        sa.CheckConstraint(
            "num_nonnulls(data_key_id, nonce, ciphertext) = CASE WHEN destroyed_at IS NULL THEN 3 ELSE 0 END",
            name=op.f("ck_secret_versions_destroyed"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "secret_id"],
            ["secrets.project_id", "secrets.id"],
            name=op.f("fk_secret_versions_project_id_secret_id_secrets"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "data_key_id"],
            ["data_keys.project_id", "data_keys.id"],
            name=op.f("fk_secret_versions_project_id_data_key_id_data_keys"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_secret_versions")),
        sa.UniqueConstraint("secret_id", "version", name=op.f("uq_secret_versions_secret_id_version")),
    )
    op.create_index("ix_secret_versions_data_key", "secret_versions", ["project_id", "data_key_id"])
    op.create_table(
        "instance_secrets",
        sa.Column("instance_id", sa.Uuid(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("sealed", sa.String(), nullable=False),
        _time("created_at"),
        sa.ForeignKeyConstraint(
            ["project_id", "instance_id"],
            ["instances.project_id", "instances.id"],
            name=op.f("fk_instance_secrets_project_id_instance_id_instances"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("instance_id", "generation", name=op.f("pk_instance_secrets")),
    )
    # Beside env, whose values the release before this reads as strings.
    op.add_column("instances", sa.Column("secrets", JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False))
    op.create_index(
        "ix_instances_secrets",
        "instances",
        ["project_id"],
        postgresql_where=sa.text("secrets <> '{}'::jsonb AND status <> 'deleted'"),
    )
    for statement in access():
        op.execute(statement)


# The API encrypts, and cannot read again what it wrote: it sees no ciphertext. What is sealed for a host it hands on.
OF_VERSIONS = "id, project_id, secret_id, version, data_key_id, created_at, destroyed_at"
GRANTS = [
    "GRANT SELECT, INSERT ON data_keys TO cairn_api",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON secrets TO cairn_api",
    f"GRANT SELECT ({OF_VERSIONS}) ON secret_versions TO cairn_api",
    "GRANT INSERT ON secret_versions TO cairn_api",
    "GRANT UPDATE (data_key_id, nonce, ciphertext, destroyed_at) ON secret_versions TO cairn_api",
    # What is called off before it began is settled by the API.
    "GRANT SELECT, DELETE ON instance_secrets TO cairn_api",
    "GRANT SELECT, INSERT, DELETE ON data_keys TO cairn_worker",
    "GRANT SELECT ON secrets TO cairn_worker",
    "GRANT SELECT, UPDATE ON secret_versions TO cairn_worker",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON instance_secrets TO cairn_worker",
]
MINE = "project_id = nullif((SELECT current_setting('cairn.project', true)), '')::uuid"
PLATFORM = "(SELECT current_setting('cairn.platform', true)) = 'on'"


def access() -> list[str]:
    statements = [*GRANTS]
    for table in ("data_keys", "secrets", "secret_versions", "instance_secrets"):
        statements.append(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        statements.append(f"CREATE POLICY api ON {table} TO cairn_api USING ({MINE}) WITH CHECK ({MINE})")
        # Keys are looked for in all projects; what lies under them is read one project at a time.
        seen = "true" if table == "data_keys" else MINE
        statements.append(f"CREATE POLICY worker ON {table} TO cairn_worker USING ({seen}) WITH CHECK ({seen})")
    # How much lies under which key, for who runs the platform.
    for table in ("data_keys", "secret_versions"):
        statements.append(f"CREATE POLICY platform ON {table} FOR SELECT TO cairn_api USING ({PLATFORM})")
    return statements


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
