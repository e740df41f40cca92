"""What the generated requests may not do, and what must hold of every answer. Loaded by schemathesis."""

from __future__ import annotations

import os
from http import HTTPStatus
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, GenerationMode, HookContext, Response

#: A request of a test waits no longer, so that the next can be made.
WAIT_SECONDS = 1
ABSENT = "0199b3f0-0000-7000-8000-000000000001"
HOSTS = os.environ["CONTRACT_HOSTS"].split(",")
PROJECT = os.environ["CONTRACT_PROJECT"]
#: The key that asks, its user, and what lets that into the project.
OWN = set(os.environ["CONTRACT_OWN"].split(","))
#: What would leave no host to launch on. They are asked for of hosts that there are not.
_NO_HOST_LEFT = {"cordon_host", "drain_host", "delete_host"}
#: Of the launches that a schema allows, hardly one could be placed. These parts make most of them impossible.
_RARELY_POSSIBLE = ("host", "host_labels", "ports", "instance_type")
_EXPECTED = {
    (502, "workflow_failed"),  # it was waited for
    (502, "outcome_unknown"),
    (504, "command_timeout"),
}


@schemathesis.hook
def before_call(context: HookContext, case: Case, **kwargs: Any) -> None:
    """Bound what waits and follows; keep the hosts; let some requests succeed."""
    name = case.operation.definition.raw.get("operationId")
    query = case.query if isinstance(case.query, dict) else {}
    if name == "wait_for_workflow" and isinstance(query.get("timeout"), int | float):
        query["timeout"] = min(query["timeout"], WAIT_SECONDS)
    elif name == "get_instance_logs" and str(query.get("follow")).lower() in ("true", "1", "on", "t", "y", "yes"):
        query["follow"] = "false"
    elif name in _NO_HOST_LEFT and case.path_parameters.get("host_id") in HOSTS:
        case.path_parameters["host_id"] = ABSENT
    if case.method != "GET":  # else the rest of the requests would be answered 401 or 404, and tell nothing
        for parameter in [name for name, value in (case.path_parameters or {}).items() if value in OWN]:
            case.path_parameters[parameter] = ABSENT
    positive = case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE
    headers = case.headers or {}
    if positive or headers.get("X-Project-ID") == ABSENT:
        if "X-Project-ID" in headers:
            headers["X-Project-ID"] = PROJECT
        if isinstance(case.body, dict | list) and repr(plain := _plain(case.body)) != repr(case.body):
            case.body = plain
        if name == "create_instance" and isinstance(case.body, dict):
            case.body["backend"] = "simulated"
            for part in _RARELY_POSSIBLE:
                case.body.pop(part, None)


def _plain(value: Any) -> Any:
    """Whole numbers without a fraction: 5.0 is an integer for a schema, and 5 alone is one here."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@schemathesis.check
def every_5xx_is_expected(context: CheckContext, response: Response, case: Case) -> None:
    """502 of a workflow that was waited for; nothing else, as long as no fault is injected."""
    if response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return
    code = response.json()["error"]["code"]
    assert (response.status_code, code) in _EXPECTED, f"{response.status_code} {code}: {response.text[:500]}"
