"""What is secret, kept out of logs: by the type of a value, by the name that it stands under, and by its looks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, SecretBytes, SecretStr

HIDDEN = "[redacted]"
#: Whatever stands under such a name is hidden: as it is, or at the end of one (``db_password``, ``x-api-key``).
SECRET_NAMES = (
    *("env", "environ", "environment", "user_data", "authorized_key", "cmd", "command", "payload", "body"),
    *("authorization", "cookie", "credential", "credentials", "password", "passwd", "passphrase", "secret", "token"),
    *("api_key", "access_key", "secret_key", "private_key", "ticket_key", "ticket", "signature", "database_url", "dsn"),
    *("master_key", "master_keys", "smtp_url"),
)
_SECRET_NAME = re.compile(rf"(?:^|_)(?:{'|'.join(SECRET_NAMES)})$")
#: Deeper than anything that we log.
DEPTH = 6
_IN_TEXT: tuple[tuple[re.Pattern[str], str], ...] = (
    # Keys, credentials and tokens of ours.
    (re.compile(r"\bcairn_[A-Za-z0-9_-]{20,}"), HIDDEN),
    # JSON web tokens: tickets for agents.
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"), HIDDEN),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), HIDDEN),
    # What a URL has before its host.
    (re.compile(r"(\b[a-z][a-z0-9+.-]{1,20}://)[^\s/@'\"]+@", re.IGNORECASE), rf"\1{HIDDEN}@"),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (
        re.compile(
            r"([\w-]*(?:password|passwd|passphrase|secret|token|api[_-]?key|authorization|user_data)['\"]?\s*[=:]\s*)"
            r"(?!\[redacted\]|bearer |basic )(?:'[^']*'|\"[^\"]*\"|[^\s,;&)}\]]+)",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    # What libraries repeat of what they were given: pydantic its input, PostgreSQL the row, SQLAlchemy parameters.
    (re.compile(r"input_value=.*?(?=, input_type=|\]$)", re.DOTALL | re.MULTILINE), f"input_value={HIDDEN}"),
    (re.compile(r"^DETAIL:.*$", re.MULTILINE), f"DETAIL: {HIDDEN}"),
    (re.compile(r"\[parameters: .*", re.DOTALL), f"[parameters: {HIDDEN}]"),
)
#: Without any of these, in small letters, there is nothing to hide. A search for each is faster than one for all.
_SUSPICIOUS = (
    *("cairn_", "eyj", "-----begin", "@", "bearer", "basic", "passw", "passphrase", "secret", "token", "api_key"),
    *("api-key", "apikey", "authorization", "user_data", "input_value=", "detail:", "[parameters"),
)


@lru_cache(1000)
def is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name.lower().replace("-", "_")) is not None


def redacted_text(value: str) -> str:
    """Without what looks like a secret."""
    small = value.lower()
    for word in _SUSPICIOUS:
        if word in small:
            break
    else:
        return value
    for pattern, instead in _IN_TEXT:
        value = pattern.sub(instead, value)
    return value


def redacted(value: Any, depth: int = DEPTH) -> Any:
    """The same value, fit to be shown: plain types stay, secrets go, bytes are counted, others are written out."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, SecretStr | SecretBytes) or depth == 0:
        return HIDDEN
    if isinstance(value, bytes | bytearray | memoryview):
        return f"[{len(value)} bytes]"
    if (fields := _fields(value)) is not None:
        return {
            str(name): HIDDEN if one is not None and is_secret_name(str(name)) else redacted(one, depth - 1)
            for name, one in fields.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [redacted(one, depth - 1) for one in value]
    return redacted_text(str(value))


def _fields(value: Any) -> Mapping[Any, Any] | None:
    """What stands under names in it; None: it has none."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None
