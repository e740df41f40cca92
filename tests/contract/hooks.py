"""What the generated requests may not do, and what must hold of every answer. Loaded by schemathesis."""

from __future__ import annotations

import os
from http import HTTPStatus
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response

#: A request of a test waits no longer, so that the next can be made.
WAIT_SECONDS = 1
#: What would leave no host to launch on. They are asked for of hosts that there are not.
_NO_HOST_LEFT = {"cordon_host", "drain_host", "delete_host"}
_EXPECTED = {
    (502, "workflow_failed"),  # it was waited for
    (502, "outcome_unknown"),
    (504, "command_timeout"),
}


@schemathesis.hook
def before_call(context: HookContext, case: Case, **kwargs: Any) -> None:
    """Bound what waits and follows; keep the hosts."""
    name = case.operation.definition.raw.get("operationId")
    if name == "wait_for_workflow" and isinstance(case.query, dict) and "timeout" in case.query:
        try:
            case.query["timeout"] = min(float(case.query["timeout"]), WAIT_SECONDS)
        except (TypeError, ValueError):
            return
    elif name == "get_instance_logs" and isinstance(case.query, dict):
        if str(case.query.get("follow")).lower() in ("true", "1", "on", "t", "y", "yes"):
            case.query["follow"] = "false"
    elif name in _NO_HOST_LEFT and case.path_parameters.get("host_id") in os.environ["CONTRACT_HOSTS"].split(","):
        case.path_parameters["host_id"] = "0199b3f0-0000-7000-8000-000000000001"


@schemathesis.check
def every_5xx_is_expected(context: CheckContext, response: Response, case: Case) -> None:
    """502 of a workflow that was waited for; nothing else, as long as no fault is injected."""
    if response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return
    code = response.json()["error"]["code"]
    assert (response.status_code, code) in _EXPECTED, f"{response.status_code} {code}: {response.text[:500]}"
