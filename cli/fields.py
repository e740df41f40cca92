"""What the API calls a field, as the option of a command that says it."""

from __future__ import annotations

import re

from cli.given import given

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
    "health_check.interval_seconds": "--health-interval",
    "health_check.timeout_seconds": "--health-timeout",
    "health_check.retries": "--health-retries",
    "health_check.start_period_seconds": "--health-start-period",
    "health_check": "--health",
    "drain_seconds": "--drain",
    "target.workflow.resource_id": "--resource",
    "resource_id": "--resource",
    "target.workflow.kind": "--workflow",
    "target.workflow": "--workflow",
    "target.exec": "--exec",
    "target.http.headers": "--header",
    "remembered": "--head",
    "expires_in_seconds": "--expires",
    "overlap_seconds": "--overlap",
    "max_size": "--max",
    "agent_id": "--agent",
    "credential_id": "--credential",
    "load_balancer_id": "--lb",
    "expires_at": "--expires",
    "time_zone": "--time-zone",
}
#: What commands of one noun call otherwise than all others.
_OF_NOUNS = {
    "lb": {"health_check.interval_seconds": "--interval", "health_check": "--check", "instance_type": "--type"},
    "audit": {"resource_type": "--type"},
    "group schedule": {"schedule": "--cron"},
    "deployment schedule": {"schedule": "--cron"},
    "type": {"memory_mb": "--memory", "disk_gb": "--disk"},
    "workflow": {"created_after": "--since", "created_before": "--until"},
    "webhook": {"events": "--type"},
}
#: Options of every command, or about the command itself: no field is meant by them.
_GLOBAL = frozenset({"--context", "--api-url", "--debug", "--no-color", "--output", "--watch", "--wait", "--help"})
#: Of lists and tables the entry is named too: which one.
_MANY = frozenset({"env", "labels", "metadata", "host_labels"})
#: In the middle of what is said: names that are no words. What stands in quotes is somebody's own.
_WORDS = re.compile(r"(?<![\w'\".$/-])[a-z]+(?:_[a-z]+)+\b(?!['\"])")
#: What pydantic says of a number.
_BOUND = re.compile(r"Input should be (greater than or equal to|less than or equal to|greater than|less than) ")
#: A number of seconds, where a field is a time.
_LIMIT = re.compile(r"\b(at least|at most|more than|less than|greater than|equal to) (\d+(?:\.\d+)?)\b(?! ?s\b)")
_TIMES = ("_seconds", "_sec")
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"))


def option_of(field: str, message: str = "") -> str:
    """The option of the command that runs which says it; the field itself where none does, and nothing of what is
    wrong with the request as a whole. ``message``: what is wrong with it."""
    if field == "body":
        return ""
    if field.startswith("env.") and "secret" in message:
        return f"--secret {field.partition('.')[2]}"
    tables = [_OF_NOUNS.get(given.command, {}), _OF_NOUNS.get(given.command.partition(" ")[0], {}), _OPTIONS]
    for table in tables:
        option = _named(field.split("."), table)
        if option and option.startswith("--") and _has(option.partition(" ")[0]):
            return option
    return _alike(field.split(".")) or _worded(field)


def _named(parts: list[str], table: dict[str, str]) -> str | None:
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if option := table.get(name):
            rest = parts[length:]
            return f"{option} {rest[0]}" if rest and name in _MANY else option
    return None


def _worded(field: str) -> str:
    """What an argument says, and no option."""
    found = _named(field.split("."), _OPTIONS)
    return found if found and not found.startswith("--") else field


def _has(option: str) -> bool:
    """Of a command that is not known, every option is taken to be there."""
    return not given.options or option in given.options


def _alike(parts: list[str]) -> str | None:
    """The option of the same name, the innermost first: ``scopes.0`` is --scope."""
    for part in reversed(parts):
        plain = part
        for suffix in _TIMES:
            plain = plain.removesuffix(suffix)
        for name in (part, plain, part.removesuffix("s")):
            option = f"--{name.replace('_', '-')}"
            if option in given.options and option not in _GLOBAL:
                return option
    return None


def as_options(text: str, fields: list[str]) -> str:
    """What the API says, with the fields that it is about, and others that are no words, as options."""
    for field in sorted(fields, key=len, reverse=True):
        parts = text.split("; ")
        text = "; ".join(_renamed(part, field) if part.startswith(f"{field}:") else part for part in parts)
    text = _WORDS.sub(lambda found: _word(found[0]), text)
    return _BOUND.sub(r"it must be \1 ", text)


def _renamed(text: str, field: str) -> str:
    said = timed(field, text[len(field) :])
    option = option_of(field, text)
    return f"{option}{said}" if option else said.removeprefix(":").lstrip()


def _word(word: str) -> str:
    option = option_of(word)
    return option if option.startswith("--") else word


def timed(field: str, said: str) -> str:
    """With the unit of its limits, where the field is a time."""
    if not field.endswith((*_TIMES, "timeout")):
        return said
    return _LIMIT.sub(lambda found: f"{found[1]} {as_time(float(found[2]))}", said)


def as_time(seconds: float) -> str:
    """As one writes it, without rounding: 7d, 90s."""
    for size, unit in _UNITS:
        if seconds and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"
