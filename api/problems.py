"""What is wrong with a value that was sent, in words: pydantic's are those of whoever writes the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from model.networks import ENTRY_PATTERN

_NO_NUL = "expected text without NUL characters"
_NAME = "expected up to 63 letters, digits, dots, dashes and underscores, the first a letter or a digit"
_EMAIL = "expected an address such as jo@example.org"
#: Of every pattern of the API what it lets through. (A test knows all of them.)
PATTERNS = {
    r"^[^\x00]*$": _NO_NUL,
    ENTRY_PATTERN: "expected NAME, *.NAME, NAME:PORT or *.NAME:PORT, such as pypi.org or *.debian.org:443",
    r"^[^\x00]{1,254}$": "expected 1 to 254 characters, none of them NUL",
    r"^[A-Za-z0-9_-]{21}[AQgw]$": "expected what an answer gave as next_cursor",
    r"^[^=\x00]+=[^\x00]*$": "expected KEY=VALUE",
    r"^[^=\x00]{1,256}$": "expected 1 to 256 characters, none of them = or NUL",
    r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,62}$": (
        "expected up to 63 letters, digits and any of . _ : / -, the first a letter or a digit"
    ),
    r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$": (
        "expected up to 63 letters, digits and any of . _ / -, the first a letter or a digit"
    ),
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$": _NAME,
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": _NAME,
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,53}$": _NAME.replace("63", "54"),
    r"^([0-9]|[1-9][0-9]|100)%$": "expected a whole number, or a share such as 25%",
    r"^[a-z][a-z0-9_]{0,62}$": "expected up to 63 lower-case letters, digits and underscores, the first a letter",
    r"^[A-Za-z_][A-Za-z0-9_]{0,127}$": "expected up to 128 letters, digits and underscores, the first no digit",
    r"^[A-Za-z0-9_-]{1,64}$": "expected up to 64 letters, digits, dashes and underscores",
    r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$": "expected the name of a header: up to 128 letters, digits and dashes",
    r"^[a-z][a-z0-9_]*$": "expected a kind of resource, such as instance",
    r"^(\*|[a-z][a-z0-9_]*\.([a-z0-9_]+(\.[a-z0-9_]+)*\.?)?)$": (
        "expected a type of event such as instance.running, instance. for all that begin so, or * for all"
    ),
    r"^[ -~]*$": "expected visible ASCII characters and spaces",
    r"^[!-~]{1,200}$": "expected 1 to 200 visible ASCII characters",
    r"^[!-~]{1,255}$": "expected 1 to 255 visible ASCII characters",
    r"^[!-~]+$": "expected visible ASCII characters, without spaces",
    r"^[a-z][a-z0-9-]{0,62}$": "expected up to 63 lower-case letters, digits and dashes, the first a letter",
    r"^[a-z][a-z0-9-]{1,30}[a-z0-9]$": (
        "expected 3 to 32 lower-case letters, digits and dashes, the first a letter, the last no dash"
    ),
    r"^[a-z0-9][a-z0-9._-]{0,62}$": "expected up to 63 lower-case letters, digits, dots, dashes and underscores",
    r"^https?://[^\s\x00]{1,2000}$": "expected a URL that begins with http:// or https://",
    r"^/[!-~]*$": "expected a path that begins with /, of visible ASCII characters",
    r"^[0-9a-f]{64}$": "expected 64 hexadecimal digits, in lower case",
    r"^(sha256:)?[0-9A-Fa-f]{64}$": "expected a SHA-256: 64 hexadecimal digits",
    r"^(no|always|on-failure(:[1-9][0-9]{0,3})?)$": "expected no, always, on-failure or on-failure:N",
    r"^[^\x00-\x1f\x7f]{1,100}$": "expected 1 to 100 characters, none of them a control character",
}
_OTHER_FORM = "does not have the form that is expected: see /docs"
#: By pydantic's type of error; braces are of its context.
_WORDS = {
    "missing": "is required",
    "extra_forbidden": "is not known here: check its spelling",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "finite_number": "must be a finite number",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "literal_error": "expected {expected}",
    "enum": "expected {expected}",
    "none_required": "must be null",
    "url_parsing": "expected a URL",
}
#: What is expected, by the beginning of pydantic's type of error: int_type, int_parsing, int_from_float …
_EXPECTED = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "bool": "true or false",
    "list": "a list",
    "set": "a list",
    "tuple": "a list",
    "dict": "an object",
    "model": "an object",
    "mapping": "an object",
    "uuid": "an id (a UUID)",
    "datetime": "a time such as 2026-01-31T12:00:00Z",
    "timezone": "a time with its zone, such as 2026-01-31T12:00:00Z",
    "date": "a date such as 2026-01-31",
    "time": "a time",
    "bytes": "bytes",
}
#: Parts of a location that are of the model, and not of what was sent.
_OURS = re.compile(
    r"\[key\]|(function-(after|before|wrap|plain)|list|dict|constrained-\w+|nullable|union|[A-Z]\w*)\[.*\]"
    r"|constrained-\w+"
)


def field_of(location: tuple[int | str, ...]) -> str:
    """The path without its first part, which says where it was: body, query, path or header."""
    return ".".join(str(part) for part in location[1:] if not _OURS.fullmatch(str(part))) or "body"


def said(problem: Mapping[str, Any]) -> str:
    """Of one of pydantic's errors."""
    kind = str(problem["type"])
    if kind in ("too_short", "too_long") and isinstance(problem.get("input"), str):
        kind = f"string_{kind}"
    words = _said(kind, problem.get("ctx") or {}, str(problem["msg"]))
    return f"the name: {words}" if problem["loc"][-1:] == ("[key]",) else words


def _said(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind == "string_pattern_mismatch":
        pattern = str(context.get("pattern"))
        return PATTERNS.get(pattern) or (_EMAIL if "@" in pattern else _OTHER_FORM)
    if context.get("min_length") == 1 and kind.endswith("too_short"):
        return "must not be empty"
    if kind in _WORDS:
        return _WORDS[kind].format(**{name: _plain(value) for name, value in context.items()})
    expected = _EXPECTED.get(kind.partition("_")[0])
    return f"expected {expected}" if expected else message


def _plain(value: Any) -> str:
    """Names without their quotes: ``docker or simulated``."""
    return value.replace("'", "") if isinstance(value, str) else str(value)
