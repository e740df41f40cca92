"""cron jobs and their runs"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0020"
down_revision = "0018"
branch_labels = None
depends_on = None

JSON = postgresql.JSONB(astext_type=sa.Text())
#: What the workers alone write.
APPLIED = ("applied_version", "good_until", "in_hand_until")


def _time(name: str, *, now: bool = True, nullable: bool | None = None) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=default, nullable=not now if nullable is None else nullable
    )


def upgrade() -> None:
    op.create_table(
        "cron_jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("schedule", sa.String(), nullable=False),
        sa.Column("time_zone", sa.String(), nullable=False),
        sa.Column("target", JSON, nullable=False),
        sa.Column("overlap", sa.String(), nullable=False),
        sa.Column("catchup_seconds", sa.Integer(), nullable=False),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("labels", JSON, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("service_account_id", sa.Uuid(), nullable=True),
        sa.Column("scopes", sa.ARRAY(sa.String()), nullable=True),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("applied_version", sa.Integer(), server_default=sa.text("0"), nullable=False),
        _time("good_until", now=False),
        _time("in_hand_until", now=False),
        _time("deleted_at", now=False),
        _time("created_at"),
        _time("updated_at"),
        sa.CheckConstraint(
            "overlap IN ('skip', 'buffer_one', 'buffer_all', 'cancel_other', 'terminate_other', 'allow_all')",
            name=op.f("ck_cron_jobs_overlap"),
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_cron_jobs_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cron_jobs")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_cron_jobs_project_id_id")),
    )
    live = sa.text("deleted_at IS NULL")
    op.create_index("uq_cron_jobs_live_name", "cron_jobs", ["project_id", "name"], unique=True, postgresql_where=live)
    op.create_index("ix_cron_jobs_due", "cron_jobs", ["id"], postgresql_where=sa.text("applied_version <> version"))
    op.create_index(
        "ix_cron_jobs_renewed", "cron_jobs", ["good_until"], postgresql_where=sa.text("good_until IS NOT NULL")
    )
    op.create_table(
        "cron_runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        _time("scheduled_at", now=False, nullable=False),
        sa.Column("manual", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("state", sa.String(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("temporal_id", sa.String(), nullable=True),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("error", JSON, nullable=True),
        sa.Column("output", sa.String(), nullable=True),
        sa.Column("truncated", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("workflow_id", sa.Uuid(), nullable=True),
        _time("created_at"),
        _time("started_at", now=False),
        _time("finished_at", now=False),
        _time("checked_at"),
        sa.CheckConstraint(
            "state IN ('pending', 'running', 'completed', 'failed', 'cancelled')", name=op.f("ck_cron_runs_state")
        ),
        sa.CheckConstraint(
            "(state IN ('pending', 'running')) = (finished_at IS NULL)", name=op.f("ck_cron_runs_finished")
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "job_id"],
            ["cron_jobs.project_id", "cron_jobs.id"],
            name=op.f("fk_cron_runs_project_id_job_id_cron_jobs"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cron_runs")),
    )
    op.create_index(
        "uq_cron_runs_time",
        "cron_runs",
        ["job_id", "scheduled_at"],
        unique=True,
        postgresql_where=sa.text("NOT manual"),
    )
    op.create_index("ix_cron_runs_list", "cron_runs", ["project_id", "job_id", "id"])
    op.create_index(
        "ix_cron_runs_open", "cron_runs", ["checked_at"], postgresql_where=sa.text("state IN ('pending', 'running')")
    )
    op.create_index(
        "ix_cron_runs_ended", "cron_runs", ["finished_at"], postgresql_where=sa.text("finished_at IS NOT NULL")
    )
    _seal_what_signs()
    # A project that is being deleted takes nothing new (0016).
    op.execute("CREATE TRIGGER project_takes BEFORE INSERT ON cron_jobs FOR EACH ROW EXECUTE FUNCTION project_takes()")
    op.execute(IDENTIFY_JOB)
    op.execute(RIGHTS_OF_JOB)
    for statement in access():
        op.execute(statement)
    _end_with_a_project()


def _end_with_a_project() -> None:
    """Their rows go once Temporal has no schedule of them any more."""
    shown = sa.text("SELECT pg_get_functiondef('forget_project(uuid)'::regprocedure)")
    before: str = op.get_bind().execute(shown).scalar_one()
    anchor = "    UPDATE users u SET default_project_id"
    after = before.replace(anchor, f"{ENDED}{anchor}", 1)
    if after == before:
        raise RuntimeError("forget_project is another")
    op.execute(after.replace(":", r"\:"))


def _seal_what_signs() -> None:
    """As that of webhooks (0017)."""
    op.add_column("sealed_values", sa.Column("cron_job_id", sa.Uuid(), nullable=True))
    op.create_unique_constraint(op.f("uq_sealed_values_cron_job_id"), "sealed_values", ["cron_job_id"])
    op.create_foreign_key(
        op.f("fk_sealed_values_project_id_cron_job_id_cron_jobs"),
        "sealed_values",
        "cron_jobs",
        ["project_id", "cron_job_id"],
        ["project_id", "id"],
        ondelete="CASCADE",
    )
    op.drop_constraint(op.f("ck_sealed_values_owner"), "sealed_values")
    one = "num_nonnulls(webhook_id, instance_id, cron_job_id) = 1"
    op.create_check_constraint(op.f("ck_sealed_values_owner"), "sealed_values", one)


# As whom a cron job acts: who said what it does, with the roles that they have now, and no more than the key might with
# which they said it. No row: they are gone, or it is.
IDENTIFY_JOB = """
CREATE FUNCTION identify_job(job uuid) RETURNS TABLE (
    key_id uuid, key_name text, scopes varchar[], user_id uuid, email text, is_admin boolean,
    service_account_id uuid, service_account_name text, project_id uuid, is_active boolean,
    roles varchar[], permissions varchar[]
) LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT NULL::uuid, c.name::text, c.scopes, c.user_id, u.email::text, coalesce(u.is_admin, false),
        c.service_account_id, a.name::text, p.id, p.deactivated_at IS NULL, b.roles, b.permissions
    FROM cron_jobs c
    LEFT JOIN users u ON u.id = c.user_id AND u.deactivated_at IS NULL
    LEFT JOIN service_accounts a ON a.project_id = c.project_id AND a.id = c.service_account_id
    LEFT JOIN LATERAL (
        SELECT array_agg(DISTINCT b.project_id) AS projects, array_agg(DISTINCT b.role_name) AS roles,
            array_agg(DISTINCT one) FILTER (WHERE one IS NOT NULL) AS permissions
        FROM bindings b
        LEFT JOIN roles r ON r.project_id = b.project_id AND r.name = b.role_name
        LEFT JOIN LATERAL unnest(r.permissions) one ON true
        WHERE b.project_id = c.project_id
            AND (b.user_id = c.user_id OR b.service_account_id = c.service_account_id)
    ) b ON true
    LEFT JOIN projects p ON p.id = b.projects[1] AND p.deleted_at IS NULL
    WHERE c.id = job AND c.deleted_at IS NULL AND (u.id IS NOT NULL OR a.id IS NOT NULL);
END $$
"""
# What a worker asks before it calls a URL in somebody's name, whom it does not learn. No row: nobody, or no member.
RIGHTS_OF_JOB = """
CREATE FUNCTION rights_of_job(job uuid) RETURNS TABLE (
    roles varchar[], permissions varchar[], scopes varchar[], is_active boolean
) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT i.roles, i.permissions, i.scopes, i.is_active FROM identify_job(job) i WHERE i.project_id IS NOT NULL
$$
"""
ENDED = """    UPDATE cron_jobs SET deleted_at = now(), version = version + 1, updated_at = now()
    WHERE project_id = gone AND deleted_at IS NULL;
"""
SAID = (
    "name, schedule, time_zone, target, overlap, catchup_seconds, paused, labels, user_id, service_account_id, scopes,"
    " owner, version, deleted_at, updated_at"
)
GRANTS = [
    f"GRANT INSERT ({SAID}, id, project_id), UPDATE ({SAID}) ON cron_jobs TO cairn_api",
    f"GRANT SELECT ({SAID}, {', '.join(APPLIED)}, id, project_id, created_at) ON cron_jobs TO cairn_api",
    "GRANT SELECT (cron_job_id) ON sealed_values TO cairn_api",
    "GRANT SELECT, INSERT, UPDATE ON cron_runs TO cairn_api",
    "GRANT SELECT, UPDATE, DELETE ON cron_jobs TO cairn_worker",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON cron_runs TO cairn_worker",
    "REVOKE ALL ON FUNCTION identify_job(uuid), rights_of_job(uuid) FROM PUBLIC",
    "GRANT EXECUTE ON FUNCTION identify_job(uuid) TO cairn_api",
    "GRANT EXECUTE ON FUNCTION rights_of_job(uuid) TO cairn_worker",
]
MINE = "project_id = nullif((SELECT current_setting('cairn.project', true)), '')::uuid"


def access() -> list[str]:
    statements = [*GRANTS]
    for table in ("cron_jobs", "cron_runs"):
        statements.append(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        statements.append(f"CREATE POLICY api ON {table} TO cairn_api USING ({MINE}) WITH CHECK ({MINE})")
        statements.append(f"CREATE POLICY worker ON {table} TO cairn_worker USING (true) WITH CHECK (true)")
    return statements


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
