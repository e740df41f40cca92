"""projects that are being deleted take nothing new; one function forgets a project that is empty"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

#: What is not made in a project that is going away. A table that another revision makes comes with it.
OF_PROJECTS = ("instances", "images", "ssh_keys", "webhooks", "service_accounts", "secrets")

# Waits for a deletion that is being accepted, and then sees it: what is asked for meanwhile is either there when the
# project is looked through, or is refused.
TAKES = """
CREATE FUNCTION project_takes() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    PERFORM FROM projects WHERE id = NEW.project_id AND deleting_at IS NULL AND deleted_at IS NULL FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the project is being deleted' USING ERRCODE = 'check_violation', CONSTRAINT = 'project_takes';
    END IF;
    RETURN NEW;
END $$
"""
# Of the project that the transaction is in, once nothing runs or lies anywhere that is its own: its rows, then itself.
# A user's personal project goes with the user, and the user with it. True: it is gone, now or before.
FORGET = """
CREATE FUNCTION forget_project(gone uuid) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    was projects%ROWTYPE;
    of_projects text;
BEGIN
    IF gone IS DISTINCT FROM nullif(current_setting('cairn.project', true), '')::uuid THEN
        RAISE EXCEPTION 'not in project %', gone USING ERRCODE = 'insufficient_privilege';
    END IF;
    SELECT * INTO was FROM projects WHERE id = gone FOR UPDATE;
    IF NOT FOUND OR was.deleted_at IS NOT NULL THEN
        RETURN true;
    END IF;
    IF EXISTS (SELECT FROM instances WHERE project_id = gone AND status <> 'deleted')
        OR EXISTS (SELECT FROM images WHERE project_id = gone AND status <> 'deleted') THEN
        RETURN false;
    END IF;
    -- Of these, one may be of a later revision.
    FOREACH of_projects IN ARRAY ARRAY['ssh_keys', 'webhooks', 'secrets', 'data_keys', 'invitations', 'api_keys',
        'bindings', 'service_accounts', 'roles'] LOOP
        IF to_regclass(of_projects) IS NOT NULL THEN
            EXECUTE format('DELETE FROM %I WHERE project_id = $1', of_projects) USING gone;
        END IF;
    END LOOP;
    UPDATE users u SET default_project_id =
        (SELECT p.id FROM projects p WHERE p.personal_of = u.id AND p.id <> gone AND p.deleted_at IS NULL LIMIT 1)
    WHERE u.default_project_id = gone;
    UPDATE projects SET deleted_at = now(), personal_of = NULL, version = version + 1 WHERE id = gone;
    DELETE FROM users WHERE id = was.personal_of;
    RETURN true;
END $$
"""


def upgrade() -> None:
    op.add_column("projects", sa.Column("deleting_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(TAKES)
    op.execute(FORGET)
    existing = sa.inspect(op.get_bind()).get_table_names()
    for table in OF_PROJECTS:
        if table in existing:
            op.execute(
                f"CREATE TRIGGER project_takes BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION project_takes()"
            )
    op.execute("REVOKE ALL ON FUNCTION project_takes(), forget_project(uuid) FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION forget_project(uuid) TO cairn_api, cairn_worker")
    # What failed to be deleted is open again: workers see all projects, and change the one that they are in.
    op.execute("DROP POLICY worker ON projects")
    op.execute("CREATE POLICY worker ON projects FOR SELECT TO cairn_worker USING (true)")
    own = "id = nullif((SELECT current_setting('cairn.project', true)), '')::uuid"
    op.execute(f"CREATE POLICY worker_own ON projects FOR UPDATE TO cairn_worker USING ({own}) WITH CHECK ({own})")
    op.execute("GRANT UPDATE (deleting_at) ON projects TO cairn_worker")


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
