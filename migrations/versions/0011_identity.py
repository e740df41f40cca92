"""users, sessions, roles, bindings, service accounts; keys that are somebody's"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

WORDS = ARRAY(sa.String())


def _time(name: str, *, now: bool = True, nullable: bool | None = None) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=default, nullable=not now if nullable is None else nullable
    )


def _version() -> sa.Column[object]:
    return sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False)


def _description() -> sa.Column[object]:
    return sa.Column("description", sa.String(), server_default=sa.text("''"), nullable=False)


def _project(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f(f"fk_{table}_project_id_projects"))


def _service_account(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["project_id", "service_account_id"],
        ["service_accounts.project_id", "service_accounts.id"],
        name=op.f(f"fk_{table}_project_id_service_account_id_service_accounts"),
        ondelete="CASCADE",
    )


def _users(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["user_id"], ["users.id"], name=op.f(f"fk_{table}_user_id_users"), ondelete="CASCADE"
    )


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("password_hash", sa.String(), nullable=True),
        sa.Column("is_admin", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("default_project_id", sa.Uuid(), nullable=True),
        sa.Column("failed_logins", sa.Integer(), server_default=sa.text("0"), nullable=False),
        _time("locked_until", now=False),
        _time("deactivated_at", now=False),
        _version(),
        _time("created_at"),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
        sa.ForeignKeyConstraint(
            ["default_project_id"], ["projects.id"], name=op.f("fk_users_default_project_id_projects")
        ),
    )
    _change_projects()
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        _time("created_at"),
        _time("last_used_at"),
        _time("expires_at", now=False, nullable=False),
        _time("ended_at", now=False),
        _users("sessions"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
    )
    op.create_index("ix_sessions_user", "sessions", ["user_id"])
    op.create_index("ix_sessions_expires_at", "sessions", ["expires_at"])
    op.create_table(
        "refresh_tokens",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        _time("created_at"),
        _time("used_at", now=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("fk_refresh_tokens_session_id_sessions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_refresh_tokens")),
    )
    op.create_index("ix_refresh_tokens_session", "refresh_tokens", ["session_id"])
    op.create_table(
        "password_resets",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        _time("created_at"),
        _time("expires_at", now=False, nullable=False),
        _users("password_resets"),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_password_resets")),
    )
    op.create_index("ix_password_resets_user", "password_resets", ["user_id"])
    op.create_table(
        "service_accounts",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        _description(),
        _version(),
        _time("created_at"),
        _project("service_accounts"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_service_accounts")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_service_accounts_project_id_id")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_service_accounts_project_id_name")),
    )
    op.create_table(
        "roles",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        _description(),
        sa.Column("permissions", WORDS, nullable=False),
        _version(),
        _time("created_at"),
        _time("updated_at"),
        _project("roles"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_roles")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_roles_project_id_name")),
    )
    op.create_table(
        "bindings",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("service_account_id", sa.Uuid(), nullable=True),
        sa.Column("role_name", sa.String(), nullable=False),
        _time("created_at"),
        sa.CheckConstraint("num_nonnulls(user_id, service_account_id) = 1", name=op.f("ck_bindings_one_subject")),
        _project("bindings"),
        _users("bindings"),
        _service_account("bindings"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bindings")),
    )
    op.create_index(
        "uq_bindings_subject",
        "bindings",
        ["project_id", sa.literal_column("coalesce(user_id, service_account_id)"), "role_name"],
        unique=True,
    )
    op.create_index("ix_bindings_user", "bindings", ["user_id"])
    op.create_table(
        "invitations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.String(), nullable=False),
        sa.Column("role_name", sa.String(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("invited_by", sa.String(), nullable=False),
        _time("created_at"),
        _time("expires_at", now=False, nullable=False),
        _time("accepted_at", now=False),
        _project("invitations"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invitations")),
        sa.UniqueConstraint("digest", name=op.f("uq_invitations_digest")),
    )
    _change_keys()
    op.execute(IDENTIFY)
    for statement in access():
        op.execute(statement)


def _change_projects() -> None:
    op.add_column(
        "projects",
        sa.Column(
            "unix_name",
            sa.String(),
            # Of what an older release inserts. Hexadecimal digits, 122 random bits of them.
            server_default=sa.text("'p-' || left(replace(gen_random_uuid()::text, '-', ''), 24)"),
            nullable=False,
        ),
    )
    op.execute("UPDATE projects SET unix_name = name WHERE name ~ '^[a-z][a-z0-9-]{1,30}[a-z0-9]$'")
    op.create_check_constraint(
        op.f("ck_projects_unix_name"), "projects", "unix_name ~ '^[a-z][a-z0-9-]{1,30}[a-z0-9]$'"
    )
    op.add_column("projects", _description())
    op.add_column("projects", sa.Column("personal_of", sa.Uuid(), nullable=True))
    op.create_foreign_key(op.f("fk_projects_personal_of_users"), "projects", "users", ["personal_of"], ["id"])
    op.add_column("projects", _version())
    op.add_column("projects", _time("deactivated_at", now=False))
    op.add_column("projects", _time("deleted_at", now=False))
    op.drop_constraint("uq_projects_name", "projects")
    live = sa.text("deleted_at IS NULL")
    op.create_index("uq_projects_live_unix_name", "projects", ["unix_name"], unique=True, postgresql_where=live)


def _change_keys() -> None:
    op.add_column("api_keys", sa.Column("user_id", sa.Uuid(), nullable=True))
    op.add_column("api_keys", sa.Column("service_account_id", sa.Uuid(), nullable=True))
    op.add_column("api_keys", sa.Column("scopes", WORDS, nullable=True))
    op.add_column("api_keys", _time("expires_at", now=False))
    op.add_column("api_keys", _time("last_used_at", now=False))
    op.create_check_constraint(
        op.f("ck_api_keys_one_owner"), "api_keys", "num_nonnulls(user_id, service_account_id) < 2"
    )
    op.create_foreign_key(
        op.f("fk_api_keys_user_id_users"), "api_keys", "users", ["user_id"], ["id"], ondelete="CASCADE"
    )
    op.create_foreign_key(
        op.f("fk_api_keys_project_id_service_account_id_service_accounts"),
        "api_keys",
        "service_accounts",
        ["project_id", "service_account_id"],
        ["project_id", "id"],
        ondelete="CASCADE",
    )
    op.create_index("ix_api_keys_user", "api_keys", ["user_id"])
    op.create_index("ix_api_keys_project", "api_keys", ["project_id"])


# Who it is that showed this key, or this session's token, and what roles it has in the project that it asked for: of a
# key its own and no other. No row: nobody. No project: none that is theirs. It sees what its caller's role does not:
# digests of all keys, all projects, all bindings.
IDENTIFY = """
CREATE FUNCTION identify(shown bytea, signed_in uuid, asked uuid) RETURNS TABLE (
    key_id uuid, key_name text, scopes varchar[], user_id uuid, email text, is_admin boolean,
    service_account_id uuid, service_account_name text, project_id uuid, is_active boolean,
    roles varchar[], permissions varchar[]
) LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT c.key_id, c.key_name::text, c.scopes, c.user_id, u.email::text, coalesce(u.is_admin, false),
        c.service_account_id, a.name::text, p.id, p.deactivated_at IS NULL, b.roles, b.permissions
    FROM (
        SELECT k.id AS key_id, k.name AS key_name, k.scopes, k.user_id, k.service_account_id, k.project_id AS home
        FROM api_keys k
        WHERE k.digest = shown AND (k.revoked_at IS NULL OR k.revoked_at > now())
            AND (k.expires_at IS NULL OR k.expires_at > now())
        UNION ALL
        SELECT NULL, NULL, NULL, s.user_id, NULL, NULL FROM sessions s
        WHERE s.id = signed_in AND s.ended_at IS NULL AND s.expires_at > now()
    ) c
    LEFT JOIN users u ON u.id = c.user_id AND u.deactivated_at IS NULL
    LEFT JOIN service_accounts a ON a.project_id = c.home AND a.id = c.service_account_id
    LEFT JOIN LATERAL (
        SELECT array_agg(DISTINCT b.project_id) AS projects, array_agg(DISTINCT b.role_name) AS roles,
            array_agg(DISTINCT one) FILTER (WHERE one IS NOT NULL) AS permissions
        FROM bindings b
        LEFT JOIN roles r ON r.project_id = b.project_id AND r.name = b.role_name
        LEFT JOIN LATERAL unnest(r.permissions) one ON true
        WHERE b.project_id = coalesce(asked, c.home, u.default_project_id)
            AND (b.user_id = c.user_id OR b.service_account_id = c.service_account_id)
    ) b ON true
    LEFT JOIN projects p ON p.id = b.projects[1] AND p.deleted_at IS NULL AND (c.home IS NULL OR p.id = c.home)
    WHERE u.id IS NOT NULL OR a.id IS NOT NULL;
END $$
"""
PROJECT = "nullif((SELECT current_setting('cairn.project', true)), '')::uuid"
USER = "nullif((SELECT current_setting('cairn.user', true)), '')::uuid"
PLATFORM = "(SELECT current_setting('cairn.platform', true)) = 'on'"
# Connections of this release say so. What the release before it reads while both run, it reads as it did; the next
# release lets go of this.
BEFORE = "coalesce((SELECT current_setting('cairn.isolation', true)), '') <> 'on'"
# It takes every key for one that may do everything, for ever: so it finds those alone of which that is true.
WHOLE = (
    "scopes IS NULL AND expires_at IS NULL AND service_account_id IS NULL AND (user_id IS NULL"
    " OR EXISTS (SELECT FROM users u WHERE u.id = api_keys.user_id AND u.is_admin AND u.deactivated_at IS NULL))"
)
POLICIES = {
    "api_keys": f"project_id = {PROJECT} OR user_id = {USER} OR ({BEFORE} AND {WHOLE})",
    "projects": (
        f"id = {PROJECT} OR {PLATFORM} OR {BEFORE}"
        f" OR EXISTS (SELECT FROM bindings b WHERE b.project_id = projects.id AND b.user_id = {USER})"
    ),
    "service_accounts": f"project_id = {PROJECT}",
    "roles": f"project_id = {PROJECT}",
    "bindings": f"project_id = {PROJECT} OR user_id = {USER}",
    "invitations": f"project_id = {PROJECT}",
}


def access() -> list[str]:
    statements = [
        # Unless it is named, what a session made for a while comes first: the API could have its own tables read.
        "ALTER FUNCTION may_fetch(bytea, text) SET search_path = pg_catalog, public, pg_temp",
        "ALTER FUNCTION instance_type_in_use(text) SET search_path = pg_catalog, public, pg_temp",
        "ALTER FUNCTION current_epoch() SET search_path = pg_catalog, public, pg_temp",
        "REVOKE ALL ON FUNCTION identify(bytea, uuid, uuid) FROM PUBLIC",
        "GRANT EXECUTE ON FUNCTION identify(bytea, uuid, uuid) TO cairn_api",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON users, service_accounts, roles, bindings, invitations TO cairn_api",
        "GRANT SELECT, INSERT, UPDATE ON sessions, refresh_tokens TO cairn_api",
        "GRANT SELECT, INSERT, DELETE ON password_resets TO cairn_api",
        "GRANT INSERT, UPDATE ON api_keys, projects TO cairn_api",
        "GRANT INSERT ON quotas TO cairn_api",
    ]
    for table, seen in POLICIES.items():
        statements.append(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        statements.append(f"CREATE POLICY api ON {table} TO cairn_api USING ({seen}) WITH CHECK ({seen})")
    statements.append("CREATE POLICY worker ON projects FOR SELECT TO cairn_worker USING (true)")
    return statements


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
