"""first schema"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "hosts",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("backend", sa.String(), nullable=False),
        sa.Column("state", sa.String(), server_default=sa.text("'ready'"), nullable=False),
        sa.Column("cpus", sa.Double(), nullable=False),
        sa.Column("memory_mb", sa.Integer(), nullable=False),
        sa.Column("allocated_vcpus", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("allocated_memory_mb", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_port", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("state IN ('ready', 'cordoned')", name=op.f("ck_hosts_state")),
        sa.CheckConstraint("allocated_vcpus >= 0 AND allocated_memory_mb >= 0", name=op.f("ck_hosts_never_negative")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hosts")),
        sa.UniqueConstraint("name", name=op.f("uq_hosts_name")),
    )
    op.create_table(
        "installation",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("epoch", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_installation")),
    )
    op.create_index("uq_installation_one", "installation", [sa.text("(true)")], unique=True)
    op.create_table(
        "instance_types",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("vcpus", sa.Double(), nullable=False),
        sa.Column("memory_mb", sa.Integer(), nullable=False),
        sa.Column("disk_gb", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_instance_types")),
    )
    op.create_table(
        "projects",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
        sa.UniqueConstraint("name", name=op.f("uq_projects_name")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_api_keys_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_keys_digest")),
    )
    # The epoch is read at every insertion of an event; the function keeps it one expression.
    op.execute(
        "CREATE FUNCTION current_epoch() RETURNS integer LANGUAGE sql STABLE SECURITY DEFINER "
        "SET search_path = pg_catalog, public AS 'SELECT epoch FROM public.installation'"
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("epoch", sa.Integer(), server_default=sa.text("current_epoch()"), nullable=False),
        sa.Column("xid", sa.BigInteger(), server_default=sa.text("pg_current_xact_id()::text::bigint"), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("resource_type", sa.String(), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=False),
        sa.Column("workflow_id", sa.Uuid(), nullable=True),
        sa.Column(
            "data", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_events_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index("ix_events_order", "events", ["project_id", "epoch", "xid", "id"], unique=False)
    op.create_index("ix_events_workflow", "events", ["workflow_id", "epoch", "xid", "id"], unique=False)
    op.create_table(
        "idempotency_keys",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=False),
        sa.Column("workflow_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_idempotency_keys_project_id_projects")),
        sa.PrimaryKeyConstraint("project_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"], unique=False)
    op.create_table(
        "quotas",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("instances_limit", sa.Integer(), nullable=True),
        sa.Column("instances_used", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("instances_reserved", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("vcpus_limit", sa.Double(), nullable=True),
        sa.Column("vcpus_used", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("vcpus_reserved", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("memory_mb_limit", sa.Integer(), nullable=True),
        sa.Column("memory_mb_used", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("memory_mb_reserved", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint(
            "instances_used >= 0 AND instances_reserved >= 0 AND vcpus_used >= 0 AND vcpus_reserved >= 0 AND memory_mb_used >= 0 AND memory_mb_reserved >= 0",
            name=op.f("ck_quotas_never_negative"),
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_quotas_project_id_projects")),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_quotas")),
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "workflows",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(), server_default=sa.text("'accepted'"), nullable=False),
        sa.Column("resource_type", sa.String(), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("order", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("prior_status", sa.String(), nullable=True),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("steps", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("retry_of", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("checked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "(state IN ('completed', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
            name=op.f("ck_workflows_finished"),
        ),
        sa.CheckConstraint(
            "state IN ('accepted', 'running', 'completed', 'failed', 'cancelled')", name=op.f("ck_workflows_state")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_workflows_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workflows")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_workflows_project_id_id")),
    )
    op.create_index(
        "ix_workflows_open",
        "workflows",
        ["checked_at"],
        unique=False,
        postgresql_where=sa.text("state IN ('accepted', 'running')"),
    )
    op.create_index("ix_workflows_resource", "workflows", ["project_id", "resource_id", "id"], unique=False)
    op.create_index("ix_workflows_state", "workflows", ["project_id", "state", "id"], unique=False)
    op.create_table(
        "instances",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("image", sa.String(), nullable=False),
        sa.Column("instance_type", sa.String(), nullable=False),
        sa.Column("vcpus", sa.Double(), nullable=False),
        sa.Column("memory_mb", sa.Integer(), nullable=False),
        sa.Column(
            "env", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("cmd", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column(
            "ports", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'::jsonb"), nullable=False
        ),
        sa.Column(
            "wanted_ports",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "labels", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column(
            "metadata", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("backend", sa.String(), nullable=False),
        sa.Column("wanted_host", sa.String(), nullable=True),
        sa.Column("host_id", sa.Uuid(), nullable=True),
        sa.Column("generation", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("quota", sa.String(), server_default=sa.text("'reserved'"), nullable=False),
        sa.Column("container_id", sa.String(), nullable=True),
        sa.Column("private_ip", sa.String(), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("workflow_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("quota IN ('none', 'reserved', 'used')", name=op.f("ck_instances_quota")),
        sa.CheckConstraint(
            "status IN ('pending', 'provisioning', 'running', 'stopping', 'stopped', 'starting', 'deleting', 'deleted', 'error')",
            name=op.f("ck_instances_status"),
        ),
        sa.CheckConstraint("vcpus > 0 AND memory_mb > 0", name=op.f("ck_instances_size")),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.id"], name=op.f("fk_instances_host_id_hosts")),
        sa.ForeignKeyConstraint(
            ["instance_type"], ["instance_types.name"], name=op.f("fk_instances_instance_type_instance_types")
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "workflow_id"],
            ["workflows.project_id", "workflows.id"],
            name=op.f("fk_instances_project_id_workflow_id_workflows"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_instances_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instances")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_instances_project_id_id")),
    )
    op.create_index(
        "ix_instances_host", "instances", ["host_id"], unique=False, postgresql_where=sa.text("host_id IS NOT NULL")
    )
    op.create_index(
        "ix_instances_labels",
        "instances",
        ["labels"],
        unique=False,
        postgresql_using="gin",
        postgresql_ops={"labels": "jsonb_path_ops"},
    )
    op.create_index(
        "ix_instances_list",
        "instances",
        ["project_id", "id"],
        unique=False,
        postgresql_where=sa.text("status <> 'deleted'"),
    )
    op.create_index("ix_instances_status", "instances", ["project_id", "status", "id"], unique=False)
    op.create_index(
        "uq_instances_live_name",
        "instances",
        ["project_id", "name"],
        unique=True,
        postgresql_where=sa.text("status <> 'deleted'"),
    )
    op.create_table(
        "host_ports",
        sa.Column("host_id", sa.Uuid(), nullable=False),
        sa.Column("protocol", sa.String(), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("instance_id", sa.Uuid(), nullable=False),
        sa.CheckConstraint("protocol IN ('tcp', 'udp')", name=op.f("ck_host_ports_protocol")),
        sa.CheckConstraint("port BETWEEN 1 AND 65535", name=op.f("ck_host_ports_port")),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.id"], name=op.f("fk_host_ports_host_id_hosts")),
        sa.ForeignKeyConstraint(
            ["project_id", "instance_id"],
            ["instances.project_id", "instances.id"],
            name=op.f("fk_host_ports_project_id_instance_id_instances"),
        ),
        sa.PrimaryKeyConstraint("host_id", "protocol", "port", name=op.f("pk_host_ports")),
    )
    op.create_index("ix_host_ports_instance", "host_ports", ["instance_id"], unique=False)
    for statement in access():
        op.execute(statement)


# Who may do what. cairn_api sees one project at a time: the one that authentication put into
# cairn.project. cairn_worker sees all projects where system work spans them, one elsewhere.
MINE = "project_id = nullif((SELECT current_setting('cairn.project', true)), '')::uuid"
PER_PROJECT = ("instances", "workflows", "events", "idempotency_keys", "quotas")
SPANNED_BY_WORKER = ("instances", "workflows")
GRANTS = {
    "cairn_api": {
        "SELECT": (
            "installation, projects, api_keys, hosts, host_ports, instance_types, "
            "instances, workflows, events, idempotency_keys, quotas"
        ),
        "INSERT": "instances, workflows, events, idempotency_keys",
        "UPDATE": "instances, workflows, idempotency_keys, quotas",
    },
    "cairn_worker": {
        "SELECT": (
            "installation, projects, hosts, host_ports, instance_types, "
            "instances, workflows, events, idempotency_keys, quotas"
        ),
        "INSERT": "host_ports, events",
        "UPDATE": "hosts, instances, workflows, quotas",
        "DELETE": "host_ports, idempotency_keys",
    },
}


def access() -> list[str]:
    statements = []
    for role, rights in GRANTS.items():
        statements.append(f"GRANT USAGE ON SCHEMA public TO {role}")
        statements += [f"GRANT {right} ON {tables} TO {role}" for right, tables in rights.items()]
    for table in PER_PROJECT:
        statements.append(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        statements.append(f"CREATE POLICY api ON {table} TO cairn_api USING ({MINE}) WITH CHECK ({MINE})")
        seen = "true" if table in SPANNED_BY_WORKER else MINE
        statements.append(f"CREATE POLICY worker ON {table} TO cairn_worker USING ({seen}) WITH CHECK ({seen})")
    return statements


def downgrade() -> None:
    raise NotImplementedError("the first schema has nothing before it: drop the database instead")
