"""The texts, headers and errors of the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from model.errors import CairnError

Json = dict[str, Any]

INFO = """\
Every change to infrastructure is a durable workflow: a request answers `202` at once, with the resource and the id of
a workflow, which survives the death of any process and ends either done or undone.

Every answer has the shape `{"data": …, "error": …, "meta": …}`. Branch on `error.code`, never on its message. Lists are
newest first; `meta.next_cursor` goes into `?cursor=`. Every path and method that is not listed here is a 404 or 405.

Answers of the type `text/event-stream` are server-sent events: frames of `id:`, `event:` and `data:` (a JSON object),
with comments where nothing happens for a while. A client that lost the connection sends the last id that it saw in
`Last-Event-ID`.
"""
WEBSOCKETS = """
**WebSockets.** A `GET` with `Upgrade: websocket` is answered `101` at these paths, or with an error as anywhere else.
Browsers, which send no headers, give their key as a subprotocol: `["cairn", "key." + key]`. What goes wrong later is a
close code: 4000 and the status.

| path | carries |
|---|---|
| `/v1/ws/events?resource_type=&resource_id=&type=&last_event_id=` | text: each event of the project as JSON |
| `/v1/ws/logs/{instance_id}?tail=` | binary: what the instance's program writes |
| `/v1/ws/stats/{instance_id}` | text, about once a second: what the instance uses, as a JSON object |
| `/v1/ws/terminal/{instance_id}?command=&columns=&rows=&name=` | binary both ways; sizes, and how it ended, as text |
| `/v1/sessions/{session_id}/terminal?command=&columns=&rows=&name=` | the same, in a session's sandbox |
| `/v1/sessions/{session_id}/forward/{port}` | a connection to what listens at this port of a session's sandbox |
"""
TAGS = {
    "auth": "Users, their logins, and the keys that they make.",
    "users": "All users, for administrators of the platform.",
    "instances": "Containers and machines: launch, read, change, delete.",
    "groups": "Instances from one template, as many as are desired; what fails is replaced.",
    "deployments": "An image, so many times: groups by other names.",
    "instance-types": "The sizes that instances come in.",
    "load-balancers": "One address for many instances: HTTP and TCP, with checks, weights, cookies and TLS.",
    "images": "What instances are made from.",
    "workspaces": "Repositories that are brought to hosts, and the credentials with which they are fetched.",
    "sessions": "Sandboxes on the files of workspaces, each with changes of its own; and these files.",
    "pools": "Sandboxes that run before a session asks for one.",
    "ssh-keys": "Public keys that are put into instances.",
    "secrets": "Values that instances are given, and nobody is shown.",
    "streams": "Into a running instance, through the agent of its host: logs, commands.",
    "workflows": "What was asked for, how far it is, calling it off, trying it again.",
    "events": "What happens, in commit order, resumable.",
    "webhooks": "Events, sent to an address of yours.",
    "cron": "Requests, commands and workflows at certain times.",
    "audit": "Who did what, or was refused; and that nobody changed it since.",
    "dashboard": "Everything at one look.",
    "operations": "What the operator does about the platform itself, with a key of its first project.",
    "hosts": "Machines on which instances run. Changed with a key of the platform's first project.",
    "agents": "What host agents ask for, each with the credential of its host.",
    "projects": "Who owns what, its policies and its quotas.",
    "members": "Who is in a project, and who was invited.",
    "roles": "What may be done in a project, and who has which role.",
    "service-accounts": "Members of a project who are programs, and their keys.",
    "health": "Whether the platform can serve; without a key.",
}
_REQUEST_ID = "0199b3f0-0000-7000-8000-00000000000a"


_FRAME = """\
id: 1-4711-815
event: instance.running
data: {"id": "1-4711-815", "type": "instance.running", "resource_type": "instance", "data": {"name": "web"}}

"""
EVENT_STREAM_CONTENT = {"text/event-stream": {"schema": {"type": "string"}, "example": _FRAME}}


def download(*types: str) -> dict[str, Any]:
    """The answer of a route that sends bytes, of these types; the first is what generated clients know."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {"content": dict.fromkeys(("application/octet-stream", *types), binary)}


def _header(name: str, description: str, schema: Json, example: str) -> Json:
    return {"name": name, "in": "header", "description": description, "schema": schema, "example": example}


PARAMETERS: Json = {
    parameter["name"]: parameter
    for parameter in (
        _header("X-Request-ID", "Answered again, and logged, where it is well-formed", {"type": "string"}, "build-17"),
        _header(
            "X-Project-ID",
            "The project; without it the one of the key, or the user's default; not beside one in the path",
            {"type": "string", "format": "uuid"},
            "0199b3f0-0000-7000-8000-000000000001",
        ),
        _header(
            "Idempotency-Key",
            "The same request with the same key within 24 hours is answered with the same resource and workflow",
            {"type": "string", "pattern": "^[!-~]{1,255}$"},
            "launch-web-1",
        ),
        _header(
            "Prefer",
            "`wait=N`: answer when the workflow has ended, or after N seconds (at most 60); RFC 7240",
            {"type": "string"},
            "wait=30",
        ),
        _header("If-Match", "Only where the resource's ETag is (one of) these", {"type": "string"}, "*"),
        _header(
            "Last-Event-ID",
            "Go on after the event with this id; `0-0-0`: from the oldest that is kept",
            {"type": "string", "pattern": "^[0-9]{1,9}-[0-9]{1,19}-[0-9]{1,19}$"},
            "0-0-0",
        ),
    )
}
HEADERS: Json = {
    "X-Request-ID": {"description": "Of this request, in the logs too", "schema": {"type": "string"}},
    "Location": {"description": "Of the workflow", "schema": {"type": "string"}},
    "ETag": {"description": "The resource's version, for If-Match", "schema": {"type": "string"}},
    "Preference-Applied": {"description": "How long it was waited for at most", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds", "schema": {"type": "string", "pattern": "^[0-9]+$"}},
}
_MEANING = {
    200: "Done",
    201: "Created",
    202: "Accepted: from here on it happens, whatever dies. `meta.workflow_id` says how far it is",
    204: "Done, and nothing to say",
    400: "Malformed JSON",
    401: "The key is missing or not valid, whatever the path",
    403: "The key may not do this",
    404: "Absent, or another project's",
    409: "What is there forbids it",
    412: "It is at another version than `If-Match` names",
    413: "The body is too large",
    415: "The body is not of the type that this takes",
    422: "A field, parameter or header is not what this takes: `details.fields` names it",
    429: "Too much, for now",
    502: "What was waited for failed: `details.error` says why, `details.workflow_id` where",
    503: "Away for a moment; nothing was accepted",
    504: "A command inside an instance took too long",
}


def reason(status: str, said: str) -> str:
    """What a status means here, where the route does not say it itself."""
    return _MEANING.get(int(status), said) if said in ("", "Successful Response") else said


def error_components() -> Json:
    """Each status of an error as a response that operations refer to, with its codes and an example."""
    codes: dict[int, list[type[CairnError]]] = {}
    for kind in _kinds(CairnError):
        codes.setdefault(kind.status, []).append(kind)
    found: Json = {}
    for status, meaning in _MEANING.items():
        if status < HTTPStatus.BAD_REQUEST:
            continue
        names = sorted({kind.code for kind in codes.get(status, [])})
        error = {"code": names[0] if names else "internal", "message": f"{meaning[0].lower()}{meaning[1:]}"}
        headers = ["X-Request-ID", "Retry-After"] if status in (429, 503) else ["X-Request-ID"]
        found[str(status)] = {
            "description": f"{meaning}. Codes: {', '.join(f'`{name}`' for name in names)}",
            "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/ErrorEnvelope"},
                    "example": {
                        "data": None,
                        "error": {**error, "details": {}},
                        "meta": {"request_id": _REQUEST_ID},
                    },
                }
            },
        }
    return found


def _kinds(kind: type[CairnError]) -> Iterator[type[CairnError]]:
    for child in kind.__subclasses__():
        if child.__module__ == "model.errors":
            yield child
        yield from _kinds(child)
