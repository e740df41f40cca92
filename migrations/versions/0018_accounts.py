"""users go with what they alone own; proved addresses; invitations by mail, as long as who invited may invite"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

#: Of the audit log.
TOLD = (
    "project_id, id, actor, user_id, service_account_id, key_id, action, operation, outcome, code, status,"
    " resource_type, resource_id, before, after, address, agent, request_id, workflow_id"
)
# All that a user owns: how many others do, and how many of these are active; and whether the user is (again). Workers see neither users nor bindings, and
# the API those of one project alone.
OWNED = """
CREATE FUNCTION owned_by(owner uuid) RETURNS TABLE (
    id uuid, name text, unix_name text, personal boolean, deleting boolean, others bigint, active bigint, stays boolean
) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT p.id, p.name::text, p.unix_name::text, p.personal_of IS NOT NULL, p.deleting_at IS NOT NULL,
        count(u.id), count(u.id) FILTER (WHERE u.deactivated_at IS NULL),
        EXISTS (SELECT FROM users WHERE users.id = owner AND deactivated_at IS NULL)
    FROM projects p
    LEFT JOIN bindings b ON b.project_id = p.id AND b.role_name = 'owner' AND b.user_id <> owner
    LEFT JOIN users u ON u.id = b.user_id
    WHERE p.deleted_at IS NULL AND (p.personal_of = owner OR EXISTS (
        SELECT FROM bindings m WHERE m.project_id = p.id AND m.role_name = 'owner' AND m.user_id = owner
    ))
    GROUP BY p.id
    ORDER BY p.id
$$
"""
# Of a user who was deactivated for it. True: gone, now or before.
FORGET = """
CREATE FUNCTION forget_user(gone uuid) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    PERFORM FROM users WHERE id = gone FOR UPDATE;
    IF NOT FOUND THEN
        RETURN true;
    END IF;
    IF EXISTS (SELECT FROM owned_by(gone) WHERE personal OR others = 0)
        OR EXISTS (SELECT FROM users WHERE id = gone AND deactivated_at IS NULL) THEN
        RETURN false;
    END IF;
    DELETE FROM users WHERE id = gone;
    RETURN true;
END $$
"""


def upgrade() -> None:
    op.add_column("users", sa.Column("verified_at", sa.DateTime(timezone=True), nullable=True))
    # Who operates the platform made them.
    op.execute("UPDATE users SET verified_at = now() WHERE is_admin")
    _make_login_addresses()
    _change_mails()
    _change_invitations()
    op.execute(OWNED)
    op.execute(FORGET)
    for statement in access():
        op.execute(statement)


def _make_login_addresses() -> None:
    op.create_table(
        "login_addresses",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("failed", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("locked_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("logged_in_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_login_addresses_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "address", name=op.f("pk_login_addresses")),
    )
    op.create_index("ix_login_addresses_used_at", "login_addresses", ["used_at"])


def _change_mails() -> None:
    op.add_column("mails", sa.Column("about", JSONB(), server_default=sa.text("'{}'"), nullable=False))
    op.drop_constraint("uq_mails_kind_recipient", "mails")
    # What anybody may ask for: one at a time.
    asked = sa.text("about = '{}'")
    op.create_index("uq_mails_kind_recipient", "mails", ["kind", "recipient"], unique=True, postgresql_where=asked)


def _change_invitations() -> None:
    op.add_column("invitations", sa.Column("inviter_user_id", sa.Uuid(), nullable=True))
    op.add_column("invitations", sa.Column("inviter_account_id", sa.Uuid(), nullable=True))
    op.add_column("invitations", sa.Column("mailed_at", sa.DateTime(timezone=True), nullable=True))
    op.create_foreign_key(
        op.f("fk_invitations_inviter_user_id_users"),
        "invitations",
        "users",
        ["inviter_user_id"],
        ["id"],
        ondelete="CASCADE",
    )
    op.create_foreign_key(
        op.f("fk_invitations_project_id_inviter_account_id_service_accounts"),
        "invitations",
        "service_accounts",
        ["project_id", "inviter_account_id"],
        ["project_id", "id"],
        ondelete="CASCADE",
    )


def access() -> list[str]:
    return [
        "REVOKE ALL ON FUNCTION owned_by(uuid), forget_user(uuid) FROM PUBLIC",
        "GRANT EXECUTE ON FUNCTION owned_by(uuid) TO cairn_api, cairn_worker",
        "GRANT EXECUTE ON FUNCTION forget_user(uuid) TO cairn_worker",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON login_addresses TO cairn_api",
        # When, and in which order, the database says.
        "REVOKE INSERT ON audit FROM cairn_api",
        f"GRANT INSERT ({TOLD}) ON audit TO cairn_api",
        "GRANT SELECT (user_id, address, used_at), DELETE ON login_addresses TO cairn_worker",
    ]


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
