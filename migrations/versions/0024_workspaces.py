"""workspaces, and the credentials with which they are fetched"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

MINE = "project_id = nullif((SELECT current_setting('cairn.project', true)), '')::uuid"


def _time(name: str, *, now: bool = True) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=not now)


def _word(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.String(), nullable=nullable)


def _id(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.Uuid(), nullable=nullable)


def _version() -> sa.Column[object]:
    return sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False)


def upgrade() -> None:
    _credentials()
    _workspaces()
    for statement in access():
        op.execute(statement)
    _end_with_a_project()


def _credentials() -> None:
    op.create_table(
        "credentials",
        _id("id"),
        _id("project_id"),
        _word("name"),
        _word("type"),
        _word("host"),
        _word("username"),
        _word("known_hosts", nullable=True),
        _version(),
        _time("created_at"),
        _time("updated_at"),
        _time("rotated_at"),
        sa.CheckConstraint("type IN ('https', 'ssh')", name=op.f("ck_credentials_type")),
        sa.CheckConstraint("(type = 'ssh') = (known_hosts IS NOT NULL)", name=op.f("ck_credentials_known_hosts")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_credentials_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credentials")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_credentials_project_id_id")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_credentials_project_id_name")),
    )
    op.add_column("sealed_values", _id("credential_id", nullable=True))
    op.create_unique_constraint(op.f("uq_sealed_values_credential_id"), "sealed_values", ["credential_id"])
    op.create_foreign_key(
        op.f("fk_sealed_values_project_id_credential_id_credentials"),
        "sealed_values",
        "credentials",
        ["project_id", "credential_id"],
        ["project_id", "id"],
        ondelete="CASCADE",
    )
    op.drop_constraint(op.f("ck_sealed_values_owner"), "sealed_values")
    op.create_check_constraint(
        op.f("ck_sealed_values_owner"),
        "sealed_values",
        "num_nonnulls(webhook_id, instance_id, cron_job_id, group_id, credential_id) = 1",
    )


def _workspaces() -> None:
    op.create_table(
        "workspaces",
        _word("git_url", nullable=True),
        _word("path", nullable=True),
        _word("wanted_ref", nullable=True),
        sa.Column("depth", sa.Integer(), nullable=True),
        sa.Column("submodules", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        _id("credential_id", nullable=True),
        _word("wanted_host", nullable=True),
        _id("host_id", nullable=True),
        _word("commit", nullable=True),
        _word("ref", nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        _id("workflow_id"),
        _id("id"),
        _id("project_id"),
        _word("name"),
        _word("status"),
        sa.Column("error", JSONB(), nullable=True),
        _version(),
        _time("created_at"),
        _time("updated_at"),
        _time("deleted_at", now=False),
        sa.CheckConstraint(
            "status IN ('initializing', 'ready', 'error', 'deleting', 'deleted')", name=op.f("ck_workspaces_status")
        ),
        sa.CheckConstraint("num_nonnulls(git_url, path) = 1", name=op.f("ck_workspaces_source")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_workspaces_project_id_projects")),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.id"], name=op.f("fk_workspaces_host_id_hosts")),
        sa.ForeignKeyConstraint(
            ["project_id", "credential_id"],
            ["credentials.project_id", "credentials.id"],
            name=op.f("fk_workspaces_project_id_credential_id_credentials"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "workflow_id"],
            ["workflows.project_id", "workflows.id"],
            name=op.f("fk_workspaces_project_id_workflow_id_workflows"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workspaces")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_workspaces_project_id_id")),
    )
    live, placed, named = (
        sa.text(where) for where in ("status <> 'deleted'", "host_id IS NOT NULL", "credential_id IS NOT NULL")
    )
    op.create_index("uq_workspaces_live_name", "workspaces", ["project_id", "name"], unique=True, postgresql_where=live)
    op.create_index("ix_workspaces_list", "workspaces", ["project_id", "id"], postgresql_where=live)
    op.create_index("ix_workspaces_host", "workspaces", ["host_id"], postgresql_where=placed)
    op.create_index("ix_workspaces_credential", "workspaces", ["credential_id"], postgresql_where=named)
    op.create_index("ix_workspaces_workflow", "workspaces", ["project_id", "workflow_id"])
    op.create_index(
        "ix_workspaces_deleted", "workspaces", ["deleted_at"], postgresql_where=sa.text("status = 'deleted'")
    )
    op.create_table(
        "workspace_logins",
        _id("workspace_id"),
        _id("project_id"),
        _id("host_id"),
        _word("sealed"),
        _time("created_at"),
        sa.ForeignKeyConstraint(
            ["project_id", "workspace_id"],
            ["workspaces.project_id", "workspaces.id"],
            name=op.f("fk_workspace_logins_project_id_workspace_id_workspaces"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.id"], name=op.f("fk_workspace_logins_host_id_hosts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("workspace_id", name=op.f("pk_workspace_logins")),
    )


def access() -> list[str]:
    statements = [
        "GRANT SELECT, INSERT, UPDATE, DELETE ON credentials TO cairn_api",
        "GRANT SELECT ON credentials TO cairn_worker",
        "GRANT SELECT, INSERT, UPDATE ON workspaces TO cairn_api",
        "GRANT SELECT, UPDATE, DELETE ON workspaces TO cairn_worker",
        # What is sealed for a host the API hands on, or forgets.
        "GRANT SELECT, DELETE ON workspace_logins TO cairn_api",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON workspace_logins TO cairn_worker",
        "GRANT SELECT (credential_id) ON sealed_values TO cairn_api",
    ]
    for table in ("credentials", "workspaces", "workspace_logins"):
        statements.append(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        statements.append(f"CREATE POLICY api ON {table} TO cairn_api USING ({MINE}) WITH CHECK ({MINE})")
        # The purge removes those of all projects.
        seen = "true" if table == "workspaces" else MINE
        statements.append(f"CREATE POLICY worker ON {table} TO cairn_worker USING ({seen}) WITH CHECK ({seen})")
    # A project that is going away takes no more of them.
    takes = "FOR EACH ROW EXECUTE FUNCTION project_takes()"
    return [
        *statements,
        *(f"CREATE TRIGGER project_takes BEFORE INSERT ON {table} {takes}" for table in ("credentials", "workspaces")),
    ]


def _end_with_a_project() -> None:
    """A project with workspaces is not at its end; its credentials go with it."""
    shown = sa.text("SELECT pg_get_functiondef('forget_project(uuid)'::regprocedure)")
    before: str = op.get_bind().execute(shown).scalar_one()
    images = "OR EXISTS (SELECT FROM images WHERE project_id = gone AND status <> 'deleted')"
    after = before.replace(images, f"{images}\n        {images.replace('images', 'workspaces')}", 1)
    ended = after.replace("'data_keys'", "'credentials', 'data_keys'", 1)
    if after in (before, ended):
        raise RuntimeError("forget_project is another")
    op.execute(ended.replace(":", r"\:"))


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
