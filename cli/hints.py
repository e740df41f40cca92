"""What a person may do about an error: by its code, and by what was asked for. None is better than a wrong one."""

from __future__ import annotations

from typing import Any

from cli.routes import listing_of

#: States in which nothing is under way, though a workflow was the last to change them.
SETTLED = ("running", "stopped", "paused", "error", "deleted", "completed", "failed", "cancelled")
#: Codes of which nothing can be said that is right for every request.
BY_REQUEST = ("not_found", "in_use", "invalid_state", "quota_exceeded")
_ENDED = "its program has ended: run it again with cairn instance restart NAME"
_START, _RESUME = "start it first: cairn instance start NAME", "let it go on: cairn instance resume NAME"
#: By code, what is asked of what kind, and the state that it is in.
_OF_STATES = {
    ("invalid_state", "sessions", "", "folder"): "copy a folder with -r",
    (
        "invalid_state",
        "sessions",
        "chat",
        "running",
    ): "its agent works on what it was told before; call that off: cairn session chat NAME --cancel",
    (
        "invalid_state",
        "sessions",
        "chat",
        "no_agent",
    ): "make one that has: cairn session create WORKSPACE --agent AGENT; see which there are: cairn agent list",
    ("invalid_state", "sessions", "commit", "not_in_a_patch"): "name it in .gitignore, or move it out of /workspace;"
    " to take it along: cairn session cp NAME: DIR -r",
    ("invalid_state", "sessions", "diff", "not_in_a_patch"): "take it by paths: cairn session diff NAME PATH --patch;"
    " or the files: cairn session cp NAME: DIR -r",
    ("invalid_state", "instances", "start", "paused"): _RESUME,
    ("invalid_state", "instances", "restart", "paused"): f"{_RESUME}; or stop it: cairn instance stop NAME",
    ("invalid_state", "instances", "resize", "paused"): f"{_RESUME}; or stop it: cairn instance stop NAME",
    ("invalid_state", "instances", "restart", "stopped"): _START,
    ("invalid_state", "instances", "pause", "stopped"): _START,
    (
        "invalid_state",
        "instances",
        "resume",
        "stopped",
    ): "it was stopped, not paused: run it again: cairn instance start NAME",
    (
        "invalid_state",
        "instances",
        "start",
        "running",
    ): "it runs; where its program has ended (drift: stopped), bring it back: cairn instance restart NAME",
    ("invalid_state", "instances", "exec", "exited"): _ENDED,
    ("invalid_state", "instances", "terminal", "exited"): _ENDED,
    ("invalid_state", "instances", "exec", "stopped"): _START,
    ("invalid_state", "instances", "terminal", "stopped"): _START,
    ("invalid_state", "instances", "exec", "paused"): _RESUME,
    ("invalid_state", "instances", "terminal", "paused"): _RESUME,
    ("invalid_state", "users", "", "last_administrator"): "make somebody else one: cairn user set USER --admin",
    ("validation_failed", "autoscaling", "scale", "None"): "other bounds: cairn group update NAME --min N --max N",
    ("invalid_state", "lb", "", "error"): "see why: cairn lb show NAME; it can only be removed, and made anew: cairn lb"
    " rm NAME",
    ("name_taken", "instances", "", "error"): "remove that one: cairn instance rm NAME; or choose another name",
}
#: By code, and by the beginning of a path.
_OF_REQUESTS = {
    ("not_found", "rbac/bindings"): "see what roles there are: cairn role list; invite who is not here yet:"
    " cairn project invite ADDRESS",
    ("not_found", "rbac/roles"): "see what there is: cairn role list",
    ("in_use", "hosts"): "what is on it moves away with: cairn host drain NAME",
    ("in_use", "images"): "remove what uses it: cairn instance rm NAME",
    ("in_use", "secrets"): "remove what uses it, or give that another",
    ("in_use", "secret versions"): "see which there are: cairn secret versions NAME",
    ("in_use", "workspaces"): "remove its sessions: cairn session list; cairn session rm NAME",
    ("in_use", "credentials"): "remove the workspaces that name it: cairn workspace list",
    (
        "in_use",
        "cache-volumes",
    ): "remove the sessions that have it: cairn session rm NAME; or a cache, where there are too"
    " many: cairn cache list",
    ("invalid_state", "cache-volumes"): "see how it is: cairn cache show NAME",
    (
        "validation_failed",
        "cache-volumes",
    ): "give a folder of the cache alone, as sandboxes see it: cairn cache create pip /root/.cache/pip",
    ("in_use", "instance-types"): "see which have it: cairn instance list",
    ("in_use", "rbac/roles"): "see who has it: cairn role bindings",
    ("invalid_state", "instances"): "see how it is: cairn instance show NAME",
    ("not_found", "session files"): "see what is there: cairn session files NAME",
    ("validation_failed", "session create"): "see what each option takes: cairn session create --help",
    ("invalid_state", "sessions"): "see how it is: cairn session show NAME",
    ("invalid_state", "workspaces"): "see how it is: cairn workspace show NAME",
    (
        "url_refused",
        "workspaces",
    ): "it is https://… or ssh://USER@HOST/…, of a server that may be reached; a folder of the host: --path",
    ("validation_failed", "workspaces"): "give https://… or ssh://USER@HOST/PATH; a folder of the host: --path",
    ("invalid_state", "images"): "see how it is: cairn image show NAME",
    ("invalid_state", "hosts"): "see how it is: cairn host show NAME",
    ("invalid_state", "workflows"): "see how it is: cairn workflow show ID",
    ("invalid_state", "webhooks"): "see how it is: cairn webhook show NAME",
    ("invalid_state", "cron"): "see how it is: cairn cron show NAME",
    ("invalid_state", "operations/restore"): "see how far it is: cairn restore status",
    (
        "checksum_mismatch",
        "images",
    ): "get the file again; where the checksum was wrong, remove the image first (cairn image"
    " rm NAME) and bring it again with the right --checksum: it keeps what was announced",
    ("name_taken", "lb"): "choose another name; or see how that one is: cairn lb show NAME, and remove it: cairn lb rm"
    " NAME",
    ("port_taken", "load_balancers"): "choose another port of the host: --host-port PORT; 0: any that is free",
    ("port_taken", "lb"): "choose another port of the host: --host-port PORT; 0: any that is free",
    ("fetch_failed", "images"): "see whether the URL can be reached, from the platform too: cairn image show NAME",
    (
        "in_use",
        "lb",
    ): "take it from its groups, with: cairn group update NAME --lb ''; or remove them: cairn group rm NAME",
    (
        "invalid_state",
        "lb targets",
    ): "see its targets: cairn lb targets NAME; another weight: cairn lb weigh NAME INSTANCE WEIGHT",
    ("quota_exceeded", "instances"): "see what there is of it: cairn quota show; remove something, or ask for more",
    ("quota_exceeded", "images"): "see what there is of it: cairn quota show; remove something, or ask for more",
    ("quota_exceeded", "workflows"): "see what there is of it: cairn quota show; remove something, or ask for more",
    ("unhealthy", "groups"): "see how members are: cairn instance list; their check has to pass within"
    " CAIRN_DEADLINE_LAUNCH of the platform, and is asked every --health-interval",
    ("quota_exceeded", "projects"): "delete one that is not needed: cairn project list",
    ("name_taken", "users"): "see who it is: cairn user show ADDRESS",
    ("name_taken", "auth"): "log in, or set another password: cairn login --reset",
}
#: What a thing may belong to, and the command for that.
_MANAGERS = {
    "session": "cairn session",
    "pool": "cairn pool",
    "load_balancer": "cairn lb",
    "group": "cairn group",
    "deployment": "cairn deployment",
}
HINTS = {
    "unauthenticated": "see whose key is used: cairn context show; give another with CAIRN_API_KEY or a context",
    "registration_closed": "ask an administrator of the platform to let you in",
    "mails_off": "ask an administrator of the platform: CAIRN_SMTP_URL is not set",
    "address_unproved": "invite them: cairn project invite ADDRESS",
    "project_inactive": "ask an administrator of the platform; or use another project (X-Project-ID)",
    "key_unknown": "give the processes the master key that it names: CAIRN_MASTER_KEYS",
    "forbidden": "use a key whose role allows this: cairn context list, or CAIRN_API_KEY",
    "validation_failed": "see what is expected: the command with --help, or /docs of the API",
    "restored": "its operator decides what differs: cairn restore status",
    "unresolved": "decide about each (cairn restore adopt|forget|discard ID), or cairn restore finish --leave ID",
    "version_refused": "see which agents a platform works with: docs/upgrading.md",
    "last_owner": "make somebody else an owner: cairn role bind owner NAME",
    "name_taken": "choose another name, or remove what has it: what has failed keeps its name until then",
    "port_taken": "choose another host port, or give only the container's and let Cairn choose: --port 80",
    "no_capacity": "see what hosts there are, their state, their labels and what they have left: cairn host list",
    "needs_stop": "resume or stop it first",
    "needs_recreate": "where what it wrote outside of volumes may be lost: --recreate",
    "unhealthy": "see what its check asks for: cairn instance show NAME; it has to pass within CAIRN_DEADLINE_LAUNCH of"
    " the platform, and is asked every --health-interval",
    "image_not_found": "see what there is: cairn image list; every platform has cairn/base:latest. A name without a"
    " registry is of docker.io, whose name the host must be able to resolve; to bring an image without any registry:"
    " cairn image upload NAME FILE (a file of docker save)",
    "idempotency_mismatch": "a key stands for one request: give another --idempotency-key",
    "internal": "see the API's log for the request id: --debug shows it",
    "precondition_failed": "it has changed meanwhile: look again, then repeat",
    "fetch_failed": "see what git said: cairn workspace show NAME; where the server wants a login: --credential NAME",
    "path_refused": "name a folder of the host; its operator says which may be copied: CAIRN_WORKSPACE_PATHS of its"
    " agent",
    "workspace_moved": "take its changes to a new session: cairn session diff NAME --patch --since commit (or"
    " start, where the workspace is at its source again); cairn session create WORKSPACE",
    "workspace_too_large": "fetch less of it: cairn workspace create NAME URL --depth 1",
    "managed": "change what it belongs to",
    "unreachable_target": "publish the port (--port), or launch it on the balancer's host: cairn lb show NAME",
    "unavailable": "the platform is starting, or its database is away: see cairn doctor, then repeat",
    "host_unreachable": "see whether its agent runs and reaches the platform: cairn host list",
    "malformed": "see what is expected: /docs of the API",
    "body_too_large": "send less: see /docs of the API",
    "unsupported_media_type": "send JSON, or say what it is with -H 'Content-Type: …'",
    "workflow_failed": "see what happened: cairn workflow list --state failed",
    "rate_limited": "wait as long as it says; follow what changes with: cairn events",
    "too_many_streams": "close another log, terminal or event stream first",
    "too_many_imports": "wait for one of them, or delete it: cairn image list --status importing",
    "host_busy": "nothing has to be done: it takes its turn by itself",
    "others_first": "nothing has to be done: it takes its turn by itself",
    "call_failed": "see what was answered: cairn cron runs NAME RUN",
    "call_again": "nothing has to be done: it is tried again by itself",
    "command_timeout": "give it longer with --timeout, at most 600 s",
    "agent_unavailable": "nothing has to be done: it is tried again by itself",
    "range_not_there": "ask for a part that begins before its end",
    "port_closed": "see what listens there: cairn session exec NAME -- ss -tln",
    "agent_failed": "see what it wrote: cairn instance logs of the session's sandbox (cairn session show NAME)",
    "outcome_unknown": "look whether it ran before you run it again",
    "foreign_object": "something of this name is on the host's engine and not ours: rename or remove it there",
    "instance_exited": "see what was done before, step by step: cairn workflow show ID",
    "engine_refused": "see its cause: cairn workflow show ID; then change the request",
    "unsupported": "choose another --backend, or another host: cairn host list",
    "deadline_exceeded": "see which step: cairn workflow show ID; and whether its host answers: cairn host list",
    "not_ready": "repeat in a moment",
    "host_is_back": "nothing has to be done: it stays where it is",
    "secret_unusable": "see which versions there are: cairn secret versions NAME",
    "envelope_broken": "give the secret its value again: cairn secret set NAME",
    "superseded": "something later took its place: cairn workflow list",
    "lease_lapsed": "its host has lost the platform, and starts nothing exclusive meanwhile: cairn host list",
    "registry_busy": "the registry asks for time: it is tried again by itself",
    "image_refused": "see what its file may hold: docs/images.md",
    "checksum_mismatch": "the file is not what was announced: get it again, or correct the checksum",
    "url_refused": "it must be http or https, on a port of theirs, and lead to a public address, or one of"
    " CAIRN_OUTBOUND_ALLOW: docs/events.md",
    "fault_injected": "a test asked for it: see cairn faults list",
    "engine_unavailable": "see whether the engine of the host runs: cairn doctor",
}


def hint_of(code: str, path: str, details: dict[str, Any]) -> str | None:
    """``path``: of the request, without the root of the API; or the list of what a workflow was about."""
    state = details.get("state")
    if details.get("workflow_id") and state not in SETTLED:
        return f"wait for what is under way: cairn workflow wait {details['workflow_id']}"
    by = details.get("managed_by") or {}
    if command := _MANAGERS.get(by.get("type", "")):
        return f"change what it belongs to: {command} … {by.get('name') or 'NAME'}"
    parts = path.partition("?")[0].strip("/").split("/")
    kind, last = parts[0], parts[-1]
    about = "secret versions" if "versions" in parts else "/".join(parts[:2])
    if kind == "lb" and "targets" in parts:
        about = "lb targets"
    if code == "validation_failed" and kind == "workspaces" and last == "sessions":
        about = "session create"
    if kind == "sessions" and ("files" in parts or last == "archive"):
        about = "session files"
    found = (
        _OF_STATES.get((code, kind, last, str(state)))
        or _OF_STATES.get((code, kind, "", str(state)))
        or _OF_REQUESTS.get((code, about))
        or _OF_REQUESTS.get((code, kind))
    )
    if found is None and code == "not_found" and len(parts) > 1 and (listing := listing_of(path)):
        return f"see what there is: {listing}"
    return found or HINTS.get(code)
