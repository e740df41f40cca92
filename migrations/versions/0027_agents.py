"""agents, what is said to them, and preferences of users"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

MINE = "project_id = nullif((SELECT current_setting('cairn.project', true)), '')::uuid"
STATES = ("pending", "running", "completed", "failed", "cancelled")


def _time(name: str, *, now: bool = True) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=not now)


def _word(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.String(), nullable=nullable)


def _id(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.Uuid(), nullable=False)


def upgrade() -> None:
    op.add_column("work_sessions", sa.Column("agent_id", sa.Uuid(), nullable=True))
    op.add_column("work_sessions", sa.Column("agent_port", sa.Integer(), nullable=True))
    op.create_check_constraint(
        op.f("ck_work_sessions_agent"), "work_sessions", "(agent_id IS NULL) = (agent_port IS NULL)"
    )
    _agents()
    _messages()
    op.create_table(
        "preferences",
        _id("user_id"),
        _word("key"),
        sa.Column("value", JSONB(), nullable=False),
        _time("updated_at"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_preferences_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "key", name=op.f("pk_preferences")),
    )
    for statement in access():
        op.execute(statement)
    _end_with_a_project()


def _agents() -> None:
    op.create_table(
        "agents",
        _id("id"),
        _id("project_id"),
        _word("name"),
        _word("type"),
        _word("mode", nullable=True),
        _word("model", nullable=True),
        sa.Column("is_default", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("mcp_servers", JSONB(), server_default=sa.text("'[]'::jsonb"), nullable=False),
        _word("image", nullable=True),
        sa.Column("cmd", JSONB(), nullable=True),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("env", JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        _time("created_at"),
        _time("updated_at"),
        sa.CheckConstraint("type IN ('reference', 'custom')", name=op.f("ck_agents_type")),
        sa.CheckConstraint("(type = 'custom') = (cmd IS NOT NULL)", name=op.f("ck_agents_cmd")),
        sa.CheckConstraint("port BETWEEN 1024 AND 65535", name=op.f("ck_agents_port")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_agents_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agents")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_agents_project_id_id")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_agents_project_id_name")),
    )
    op.create_index("uq_agents_default", "agents", ["project_id"], unique=True, postgresql_where=sa.text("is_default"))


def _messages() -> None:
    op.create_table(
        "messages",
        _id("id"),
        _id("project_id"),
        _id("session_id"),
        sa.Column("number", sa.Integer(), nullable=False),
        _word("role"),
        _word("content", nullable=True),
        _word("status"),
        sa.Column("error", JSONB(), nullable=True),
        _id("workflow_id"),
        _time("created_at"),
        _time("finished_at", now=False),
        sa.CheckConstraint("role IN ('user', 'agent')", name=op.f("ck_messages_role")),
        sa.CheckConstraint("(role = 'user') = (content IS NOT NULL)", name=op.f("ck_messages_content")),
        sa.CheckConstraint(
            "status IN ({})".format(", ".join(f"'{state}'" for state in STATES)), name=op.f("ck_messages_status")
        ),
        sa.CheckConstraint(
            "(status IN ('pending', 'running')) = (finished_at IS NULL)", name=op.f("ck_messages_finished")
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "session_id"],
            ["work_sessions.project_id", "work_sessions.id"],
            name=op.f("fk_messages_project_id_session_id_work_sessions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_messages")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_messages_project_id_id")),
        sa.UniqueConstraint("session_id", "number", name=op.f("uq_messages_session_id_number")),
    )
    op.create_index("ix_messages_workflow", "messages", ["workflow_id"])
    unfinished = sa.text("status IN ('pending', 'running')")
    op.create_index("uq_messages_open", "messages", ["session_id"], unique=True, postgresql_where=unfinished)
    op.create_table(
        "message_chunks",
        _id("message_id"),
        sa.Column("number", sa.Integer(), nullable=False),
        _id("project_id"),
        _word("kind"),
        sa.Column("data", JSONB(), nullable=False),
        _time("created_at"),
        sa.CheckConstraint("number >= 1", name=op.f("ck_message_chunks_number")),
        sa.ForeignKeyConstraint(
            ["project_id", "message_id"],
            ["messages.project_id", "messages.id"],
            name=op.f("fk_message_chunks_project_id_message_id_messages"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("message_id", "number", name=op.f("pk_message_chunks")),
    )


def access() -> list[str]:
    statements = [
        "GRANT SELECT, INSERT, UPDATE, DELETE ON agents TO cairn_api",
        "GRANT SELECT, INSERT, UPDATE ON messages TO cairn_api",
        "GRANT SELECT, INSERT ON message_chunks TO cairn_api",
        # They go with their sessions.
        "GRANT SELECT, UPDATE ON messages TO cairn_worker",
        "GRANT SELECT, INSERT ON message_chunks TO cairn_worker",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON preferences TO cairn_api",
    ]
    for table in ("agents", "messages", "message_chunks"):
        statements.append(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        for role in ("api", "worker"):
            mine = f"USING ({MINE}) WITH CHECK ({MINE})"
            statements.append(f"CREATE POLICY {role} ON {table} TO cairn_{role} {mine}")
    takes = "FOR EACH ROW EXECUTE FUNCTION project_takes()"
    return [*statements, f"CREATE TRIGGER project_takes BEFORE INSERT ON agents {takes}"]


def _end_with_a_project() -> None:
    """Its agents go with it."""
    shown = sa.text("SELECT pg_get_functiondef('forget_project(uuid)'::regprocedure)")
    before: str = op.get_bind().execute(shown).scalar_one()
    after = before.replace("'credentials'", "'agents', 'credentials'", 1)
    if before == after:
        raise RuntimeError("forget_project is another")
    op.execute(after.replace(":", r"\:"))


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
