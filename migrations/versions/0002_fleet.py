"""many hosts: joining, leases, drift, moves, samples"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def _object(name: str) -> sa.Column[object]:
    return sa.Column(
        name, postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
    )


def upgrade() -> None:
    op.add_column("hosts", _object("labels"))
    op.add_column("hosts", _object("versions"))
    op.add_column("hosts", sa.Column("credential", sa.LargeBinary(), nullable=True))
    op.add_column("hosts", sa.Column("public_key", sa.LargeBinary(), nullable=True))
    op.add_column("hosts", sa.Column("agent_url", sa.String(), nullable=True))
    op.add_column("hosts", sa.Column("fingerprint", sa.LargeBinary(), nullable=True))
    op.add_column("hosts", sa.Column("inventory", sa.String(), nullable=True))
    op.add_column("hosts", sa.Column("reconciled", sa.String(), nullable=True))
    op.add_column("hosts", sa.Column("reconciled_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("hosts", sa.Column("warning", sa.String(), nullable=True))
    op.create_index("ix_hosts_credential", "hosts", ["credential"])
    op.drop_constraint(op.f("ck_hosts_state"), "hosts")
    op.create_check_constraint(op.f("ck_hosts_state"), "hosts", "state IN ('ready', 'cordoned', 'draining')")
    op.create_table(
        "host_tokens",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("name", sa.String(), nullable=True),
        _object("labels"),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("host_id", sa.Uuid(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_host_tokens")),
        sa.UniqueConstraint("digest", name=op.f("uq_host_tokens_digest")),
    )
    op.create_table(
        "pulses",
        sa.Column("process", sa.String(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("process", name=op.f("pk_pulses")),
    )
    op.add_column(
        "projects", sa.Column("drift_policy", sa.String(), server_default=sa.text("'report'"), nullable=False)
    )
    op.create_check_constraint(op.f("ck_projects_drift_policy"), "projects", "drift_policy IN ('report', 'heal')")
    op.add_column("instances", _object("wanted_labels"))
    op.add_column("instances", sa.Column("on_host_lost", sa.String(), server_default=sa.text("'keep'"), nullable=False))
    op.add_column("instances", sa.Column("next_host_id", sa.Uuid(), nullable=True))
    op.add_column("instances", sa.Column("next_generation", sa.Integer(), nullable=True))
    op.add_column("instances", sa.Column("next_ports", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column("instances", sa.Column("last_generation", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.execute("UPDATE instances SET last_generation = generation")
    op.add_column("instances", sa.Column("drift", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.create_foreign_key(op.f("fk_instances_next_host_id_hosts"), "instances", "hosts", ["next_host_id"], ["id"])
    op.create_check_constraint(
        op.f("ck_instances_on_host_lost"), "instances", "on_host_lost IN ('keep', 'replace', 'fence')"
    )
    op.create_check_constraint(
        op.f("ck_instances_next"), "instances", "(next_host_id IS NULL) = (next_generation IS NULL)"
    )
    op.create_index(
        "ix_instances_next_host", "instances", ["next_host_id"], postgresql_where=sa.text("next_host_id IS NOT NULL")
    )
    op.create_table(
        "samples",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("instance_id", sa.Uuid(), nullable=False),
        sa.Column("seconds", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cpu_percent", sa.Double(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("pids", sa.Integer(), nullable=False),
        sa.Column("rx_bytes", sa.BigInteger(), nullable=False),
        sa.Column("tx_bytes", sa.BigInteger(), nullable=False),
        sa.Column("read_bytes", sa.BigInteger(), nullable=False),
        sa.Column("written_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("instance_id", "seconds", "at", name=op.f("pk_samples")),
    )
    op.create_index("ix_samples_age", "samples", ["seconds", "at"])
    for statement in access():
        op.execute(statement)


# The API lets hosts join and renews their leases; what they hold is the workers' alone.
HOST_COLUMNS = (
    "id, name, backend, state, cpus, memory_mb, labels, versions, credential, public_key, agent_url, fingerprint, "
    "last_seen_at, inventory"
)
GRANTS = [
    f"GRANT INSERT ({HOST_COLUMNS}), UPDATE ({HOST_COLUMNS}), DELETE ON hosts TO cairn_api",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON host_tokens TO cairn_api",
    "GRANT UPDATE (drift_policy) ON projects TO cairn_api",
    "GRANT SELECT, INSERT, UPDATE ON pulses TO cairn_api, cairn_worker",
    "GRANT SELECT, INSERT ON samples TO cairn_api",
    "GRANT SELECT, INSERT, DELETE ON samples TO cairn_worker",
    "GRANT SELECT, DELETE ON host_tokens TO cairn_worker",
    "GRANT INSERT ON workflows TO cairn_worker",
]
MINE = "project_id = nullif((SELECT current_setting('cairn.project', true)), '')::uuid"


def access() -> list[str]:
    return [
        *GRANTS,
        "ALTER TABLE samples ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY api ON samples TO cairn_api USING ({MINE}) WITH CHECK ({MINE})",
        "CREATE POLICY worker ON samples TO cairn_worker USING (true) WITH CHECK (true)",
    ]


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
