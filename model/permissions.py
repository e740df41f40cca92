"""What may be done, as ``noun:verb``, and which roles may do it.

A caller's permissions are those of the roles that are bound to it in the project, and of them only what the scopes of
its key leave. What belongs to the platform and to no project (hosts, sizes, users) is apart: platform administrators
alone have those, whatever their roles.
"""

from __future__ import annotations

#: Of a project.
PROJECT = {
    "instances:read": "list and show instances, their logs, events and samples",
    "instances:create": "launch instances",
    "instances:update": "rename, label and resize them, change their policies",
    "instances:operate": "start, stop, restart, pause and resume them",
    "instances:delete": "delete them",
    "instances:exec": "run commands and terminals in them",
    "groups:read": "list and show groups and what was done to them",
    "groups:write": "create, change and delete groups, with their members",
    "groups:scale": "scale them, hold, resume and roll back their changes",
    "deployments:read": "list and show deployments and what was done to them",
    "deployments:write": "create, change and delete deployments, with their members",
    "deployments:scale": "scale them, hold, resume and roll back their changes",
    "images:read": "list and show images",
    "images:create": "import and upload them",
    "images:delete": "delete them",
    "lb:read": "list and show load balancers, their targets and statistics",
    "lb:create": "create load balancers",
    "lb:update": "change them and their targets",
    "lb:delete": "delete them",
    "workspaces:read": "list and show workspaces",
    "workspaces:create": "create workspaces",
    "workspaces:update": "rename them and fetch them anew",
    "workspaces:delete": "delete them",
    "sessions:read": "list and show work sessions",
    "sessions:create": "make them on workspaces",
    "sessions:use": "stop and start them, work in them: their files, commands, terminals and agents",
    "sessions:delete": "delete them",
    "agents:read": "list and show agents",
    "agents:write": "create, change and delete them",
    "pools:read": "list and show pools of sandboxes",
    "pools:create": "make them",
    "pools:update": "change how many sandboxes they keep ready",
    "pools:delete": "delete them, with the sandboxes that nobody has claimed",
    "cache-volumes:read": "list and show cache volumes",
    "cache-volumes:create": "make them",
    "cache-volumes:update": "empty them",
    "cache-volumes:delete": "delete them",
    "credentials:read": "list credentials of Git servers; never their values",
    "credentials:use": "name them in workspaces",
    "credentials:write": "create, rotate and delete them",
    "ssh_keys:read": "list and show SSH keys",
    "ssh_keys:write": "add and delete them",
    "workflows:read": "list, show and wait for workflows",
    "workflows:cancel": "call them off",
    "workflows:retry": "try failed ones again",
    "events:read": "follow the project's events",
    "webhooks:read": "list and show webhooks and their deliveries",
    "webhooks:write": "create, change and delete them",
    "cron:read": "list and show cron jobs and their runs",
    "cron:write": "create, change, pause and delete them; what they do needs its own permission too",
    "cron:run": "run them out of turn, and make up for times that were missed",
    "secrets:read": "list secrets and their versions; never their values",
    "secrets:use": "name them in what is launched",
    "secrets:write": "create, change and delete them",
    "project:read": "show the project, its summary and its quotas",
    "project:update": "change its name and policies",
    "project:delete": "delete it",
    "members:read": "list members, invitations and bindings",
    "members:write": "invite and remove members, bind roles",
    "roles:read": "list roles",
    "roles:write": "create, change and delete custom roles",
    "service_accounts:read": "list service accounts and their keys",
    "service_accounts:write": "create and delete them and their keys",
    "audit:read": "read, export and verify the audit log",
    "hosts:read": "list and show hosts",
    "instance_types:read": "list and show instance types",
}
#: Of the caller's own account; everybody has them, where the scopes of a key leave them.
ACCOUNT = {
    "account:read": "show oneself, one's projects and keys",
    "account:write": "change oneself, make projects, make and revoke one's keys",
}
#: Of the platform.
PLATFORM = {
    "hosts:manage": "join, cordon, drain and remove hosts",
    "instance_types:manage": "create, change and delete instance types",
    "users:manage": "list, change, deactivate and delete users",
    "projects:manage": "list all projects, set their quotas, deactivate them",
    "operations:manage": "bring a restored platform in order",
    "platform_audit:read": "read, export and verify what the audit log says of the platform itself",
}
ALL = PROJECT | ACCOUNT | PLATFORM

_READ = frozenset(name for name in PROJECT if name.endswith(":read")) - {
    "audit:read",
    "secrets:read",
    "credentials:read",
}
_OPERATE = {
    *("instances:operate", "instances:exec", "workflows:cancel", "workflows:retry"),
    *("groups:scale", "deployments:scale"),
}
_DEVELOP = {
    *("instances:create", "instances:update", "instances:delete", "images:create", "images:delete"),
    *("ssh_keys:write", "secrets:read", "secrets:use", "cron:write", "cron:run", "groups:write", "deployments:write"),
    *("lb:create", "lb:update", "lb:delete"),
    *("workspaces:create", "workspaces:update", "workspaces:delete"),
    *("sessions:create", "sessions:use", "sessions:delete", "agents:write"),
    *("pools:create", "pools:update", "pools:delete"),
    *("cache-volumes:create", "cache-volumes:update", "cache-volumes:delete"),
    *("credentials:read", "credentials:use", "credentials:write"),
}
#: Built in; a project's own come beside them. Of two roles, the one further on may do all that the other may, but
#: ``developer`` and ``operator``: one changes what there is, the other keeps it running.
ROLES: dict[str, frozenset[str]] = {
    "viewer": _READ,
    "operator": _READ | _OPERATE | {"webhooks:write", "instances:update", "cron:run", "lb:update"},
    "developer": _READ | _OPERATE | _DEVELOP,
    "admin": frozenset(PROJECT) - {"project:delete"},
    "owner": frozenset(PROJECT),
}


def effective(roles: list[str], custom: list[str], *, is_admin: bool, scopes: list[str] | None) -> frozenset[str]:
    """What a caller with these roles, these permissions of custom roles, and a key of these scopes may do.

    A scope is a permission, or ``noun:*``; no scopes are no limit.
    """
    found = set(ACCOUNT).union(custom, *(ROLES.get(role, ()) for role in roles))
    if is_admin:
        found |= set(PLATFORM)
    return frozenset(found if scopes is None else (one for one in found if allows(scopes, one)))


def allows(scopes: list[str], permission: str) -> bool:
    """Whether these scopes name the permission."""
    return permission in scopes or f"{permission.partition(':')[0]}:*" in scopes
