"""What the API calls a request, as the command that sends it."""

from __future__ import annotations

import re

_ROUTE = re.compile(r"`?\b(GET|POST|PUT|PATCH|DELETE) /v1(/[^\s`,;:)?]*[^\s`,;:)?.])`?")
#: ``{}`` is one part of a path, and is put into the command in its turn; ``ID`` where it is not known.
_COMMANDS = {
    "GET /secrets": "cairn secret list",
    "GET /ssh-keys": "cairn ssh-key list",
    "GET /hosts": "cairn host list",
    "GET /instance-types": "cairn type list",
    "GET /instances": "cairn instance list",
    "GET /instances/{}/logs": "cairn instance logs {}",
    "GET /images": "cairn image list",
    "GET /lb": "cairn lb list",
    "GET /workflows": "cairn workflow list",
    "GET /projects/{}/quotas": "cairn quota show",
    "GET /operations/restore": "cairn restore status",
    "GET /operations/keys": "cairn secret keys",
    "GET /rbac/roles": "cairn role list",
    "GET /service-accounts": "cairn service-account list",
    "GET /webhooks": "cairn webhook list",
    "GET /workspaces": "cairn workspace list",
    "GET /sessions": "cairn session list",
    "GET /agents": "cairn agent list",
    "GET /credentials": "cairn credential list",
    "GET /cache-volumes": "cairn cache list",
    "DELETE /images/{}": "cairn image rm {}",
    "POST /hosts/{}/drain": "cairn host drain {}",
    "POST /auth/keys/{}/revoke": "cairn key revoke {}",
    "PATCH /auth/me": "cairn passwd",
    "POST /agents": "cairn agent create",
    "POST /workspaces/{}/sessions": "cairn session create --agent",
    "POST /auth/login": "cairn login",
    "POST /auth/forgot-password": "cairn login --reset",
    "POST /auth/reset-password": "cairn login --reset",
    "POST /rbac/bindings": "cairn role bind",
    "POST /projects/{}/invitations": "cairn project invite",
    "POST /invitations/accept": "cairn project join",
    "POST /workflows/{}/cancel": "cairn workflow cancel {}",
    "POST /workflows/{}/retry": "cairn workflow retry {}",
}


#: What there is, as commands call it, and where the API lists it.
PATHS = {
    "instance": "/instances",
    "image": "/images",
    "host": "/hosts",
    "type": "/instance-types",
    "secret": "/secrets",
    "ssh-key": "/ssh-keys",
    "preference": "/preferences",
    "webhook": "/webhooks",
    "cron": "/cron/jobs",
    "lb": "/lb",
    "group": "/autoscaling/groups",
    "deployment": "/containers/deployments",
    "pool": "/pools",
    "workflow": "/workflows",
    "project": "/projects",
    "user": "/users",
    "service-account": "/service-accounts",
    "workspace": "/workspaces",
    "session": "/sessions",
    "agent": "/agents",
    "credential": "/credentials",
    "cache": "/cache-volumes",
}
#: What people call it, where that is something else.
SAID = {"lb": "load balancer", "cron": "cron job", "cache": "cache volume", "service-account": "service account"}
#: The first part of a path, and the command that lists what is below it.
_LISTS = {path.split("/")[1]: f"cairn {noun} list" for noun, path in PATHS.items()}
#: The same of what belongs to one thing: first and last part of the path.
_PARTS = {
    ("autoscaling", "rollback"): "cairn group configurations NAME",
    ("containers", "rollback"): "cairn deployment configurations NAME",
}


def listing_of(path: str) -> str | None:
    """The command that lists what such a path is one of."""
    parts = path.strip("/").split("/")
    if parts[0] == "lb" and "targets" in parts[:-1]:
        return "cairn lb targets NAME"
    return _PARTS.get((parts[0], parts[-1])) or _LISTS.get(parts[0])


def as_commands(text: str) -> str:
    """With each request that it names (``POST /v1/hosts/ID/drain``) as a command, where one sends it, and
    ``?cascade=true`` as the option."""
    said = _ROUTE.sub(lambda found: _command(found[1], found[2]) or found[0], text)
    return said.replace("?cascade=true", "--cascade").replace(
        "already: PATCH changes its weight", "already: cairn lb weigh changes its weight"
    )


def _command(method: str, path: str) -> str | None:
    parts = path.strip("/").split("/")
    for route, command in _COMMANDS.items():
        known_method, _, known = route.partition(" ")
        pattern = known.strip("/").split("/")
        if known_method == method and len(pattern) == len(parts):
            pairs = list(zip(pattern, parts, strict=True))
            if all(of in ("{}", part) for of, part in pairs):
                named = ["ID" if part.startswith("{") else part for of, part in pairs if of == "{}"]
                return command.format(*named)
    return None
