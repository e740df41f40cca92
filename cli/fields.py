"""What the API calls a field, as the option of a command that says it."""

from __future__ import annotations

import re

#: By the whole path of a field, or by its beginning; a number in it is the place in a list.
_OPTIONS = {
    "desired_count": "--desired",
    "min_instances": "--min",
    "max_instances": "--max",
    "min_ready_seconds": "--min-ready",
    "max_surge": "--max-surge",
    "max_unavailable": "--max-unavailable",
    "target.workflow.parameters.desired_count": "--desired",
    "target.workflow.parameters.min_instances": "--min",
    "target.workflow.parameters.max_instances": "--max",
    "target.workflow.parameters.replicas": "--replicas",
    "target.workflow.parameters": "--parameters",
    "target.http.url": "--url",
    "target.http.method": "--method",
    "ports": "--port",
    "env": "--env",
    "labels": "--label",
    "tags": "--tag",
    "metadata": "--metadata",
    "host_labels": "--host-label",
    "instance_type": "--type",
    "ttl_seconds": "--ttl",
    "idle_stop_seconds": "--idle-stop",
    "restart_policy": "--restart",
    "source.upload.checksum": "--checksum",
    "source.url.checksum": "--checksum",
    "source.url.url": "the URL",
    "metric_type": "--metric",
    "target_value": "--target",
    "scale_out_step": "--out",
    "scale_in_step": "--in",
    "cooldown_sec": "--cooldown",
    "catchup_window_seconds": "--catchup",
    "schedule": "the schedule",
    "events": "--event",
    "source.git_url": "the URL",
    "source.path": "the folder",
    "source.ref": "--ref",
    "source.depth": "--depth",
    "network.allow": "--allow",
    "network": "--network",
    "user_data": "--user-data",
    "health_check": "--health",
    "max_size": "--max",
    "agent_id": "--agent",
    "credential_id": "--credential",
    "load_balancer_id": "--lb",
    "expires_at": "--expires",
    "time_zone": "--time-zone",
}
#: Of lists and tables the entry is named too: which one.
_MANY = frozenset({"env", "labels", "metadata", "host_labels"})
#: In the middle of what is said: names that are no words.
_WORDS = re.compile(r"\b(?:desired_count|min_instances|max_instances|instance_type|ttl_seconds|target_value)\b")
#: What pydantic says of a number.
_BOUND = re.compile(r"Input should be (greater than or equal to|less than or equal to|greater than|less than) ")


def option_of(field: str, message: str = "") -> str:
    """The option that says it; the field itself where none does. ``message``: what is wrong with it."""
    if field.startswith("env.") and "secret" in message:
        return f"--secret {field.partition('.')[2]}"
    parts = field.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if option := _OPTIONS.get(name):
            rest = parts[length:]
            return f"{option} {rest[0]}" if rest and name in _MANY else option
    return field


def as_options(text: str, fields: list[str]) -> str:
    """What the API says, with the fields that it is about, and others that are no words, as options."""
    for field in sorted(fields, key=len, reverse=True):
        if text.startswith(f"{field}:"):
            text = option_of(field, text) + text[len(field) :]
        text = text.replace(f"; {field}:", f"; {option_of(field)}:")
    text = _WORDS.sub(lambda found: option_of(found[0]), text)
    return _BOUND.sub(r"it must be \1 ", text)
