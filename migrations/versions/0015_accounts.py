"""mails to be sent; the use of keys; what of sessions and keys workers clear away"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "mails",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("recipient", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mails")),
        sa.UniqueConstraint("kind", "recipient", name=op.f("uq_mails_kind_recipient")),
    )
    op.create_index("ix_mails_next_at", "mails", ["next_at"])
    op.create_index("ix_password_resets_expires_at", "password_resets", ["expires_at"])
    op.execute(KEYS_USED)
    for statement in access():
        op.execute(statement)


# Keys of all projects at once, which the API's role does not see.
KEYS_USED = """
CREATE FUNCTION keys_used(ids uuid[], times timestamptz[]) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    UPDATE api_keys k SET last_used_at = greatest(k.last_used_at, u.time)
    FROM (
        SELECT k.id, u.time FROM unnest(ids, times) AS u(id, time) JOIN api_keys k ON k.id = u.id
        ORDER BY k.id FOR UPDATE OF k
    ) u
    WHERE k.id = u.id
$$
"""
VOID = "least(revoked_at, expires_at) < now()"


def access() -> list[str]:
    return [
        "REVOKE ALL ON FUNCTION keys_used(uuid[], timestamptz[]) FROM PUBLIC",
        "GRANT EXECUTE ON FUNCTION keys_used(uuid[], timestamptz[]) TO cairn_api",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON mails TO cairn_api",
        "GRANT DELETE ON api_keys TO cairn_api",
        # To clear away what is void, by its age; digests and owners they do not see.
        "GRANT SELECT (id, expires_at, ended_at), DELETE ON sessions TO cairn_worker",
        "GRANT SELECT (digest, expires_at), DELETE ON password_resets TO cairn_worker",
        "GRANT SELECT (id, revoked_at, expires_at), DELETE ON api_keys TO cairn_worker",
        f"CREATE POLICY worker_reads ON api_keys FOR SELECT TO cairn_worker USING ({VOID})",
        f"CREATE POLICY worker_deletes ON api_keys FOR DELETE TO cairn_worker USING ({VOID})",
    ]


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
