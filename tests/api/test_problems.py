"""What is said of values that are refused: words, of every pattern and of what people get wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from api.app import create_app
from api.chat_schemas import MOST_PROMPT, ChatCreate
from api.instance_schemas import InstanceCreate
from api.problems import PATTERNS, field_of, said
from api.project_quotas import QuotaPatch
from model.settings import Settings

#: Of an image's reference: it is checked by code of ours, whose words these are.
OURS = "@sha256:[a-f0-9]{64}"


def patterns(found: Any) -> set[str]:
    if isinstance(found, list):
        return set().union(*map(patterns, found))
    if not isinstance(found, dict):
        return set()
    own = {found["pattern"]} if isinstance(found.get("pattern"), str) else set()
    return own.union(found.get("patternProperties", {}), *map(patterns, found.values()))


def test_every_pattern_of_the_document_is_told_in_words() -> None:
    document = create_app(Settings(), None, None, None).openapi()  # type: ignore[arg-type]
    used = patterns(document["paths"]) | patterns(document["components"]["schemas"])
    assert len(used) > 10
    for pattern in used:
        words = said({"type": "string_pattern_mismatch", "loc": ("body", "x"), "msg": "-", "ctx": {"pattern": pattern}})
        assert OURS in pattern or words.startswith("expected "), pattern
    # The last: of a query parameter that the document shows otherwise.
    assert not set(PATTERNS) - used - {r"^[!-~]{1,255}$", r"^[^=\x00]{1,256}$"}


@pytest.mark.parametrize(
    ("sent", "field", "words"),
    [
        ({"name": "a b"}, "name", "expected up to 63 letters, digits, dots, dashes and underscores"),
        ({"name": None}, "name", "expected text"),
        ({"foo": 1}, "foo", "is not known here"),
        ({"backend": "kvm"}, "backend", "expected docker or simulated"),
        ({"ports": "80;90"}, "ports", "'80;90' is not HOST:CONTAINER"),
        ({"ports": [{"container_port": 0}]}, "ports.0.container_port", "must be at least 1"),
        ({"ports": [{"container_port": "a"}]}, "ports.0.container_port", "expected a whole number"),
        ({"ttl_seconds": 1.5}, "ttl_seconds", "expected a whole number"),
        ({"restart_policy": "x"}, "restart_policy", "expected no, always, on-failure or on-failure:N"),
        ({"tags": "x"}, "tags", "expected a list"),
        ({"labels": {"a b": "x"}}, "labels.a b", "the name: expected up to 63"),
        ({"env": {"A": 5}}, "env.A", "expected text"),
        ({"ssh_key_id": "x"}, "ssh_key_id", "expected an id (a UUID)"),
        ({"health_check": {"type": "http", "port": 99999}}, "health_check.port", "must be at most 65535"),
    ],
)
def test_words_for_what_people_get_wrong(sent: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(ValidationError) as refused:
        InstanceCreate.model_validate({"name": "x", "image": "nginx:1"} | sent)
    first = refused.value.errors()[0]
    assert field_of(("body", *first["loc"])) == field
    assert said(first).startswith(words), said(first)


def test_words_for_texts_that_are_too_short_or_too_long() -> None:
    for prompt, words in (("", "must not be empty"), ("x" * (MOST_PROMPT + 1), f"at most {MOST_PROMPT} characters")):
        with pytest.raises(ValidationError) as refused:
            ChatCreate(prompt=prompt)
        assert words in said(refused.value.errors()[0])


@pytest.mark.parametrize(
    ("sent", "field", "words"),
    [
        (-4, "instances", "must be at least 0"),
        ("x", "instances", "expected a whole number"),
        ({"limit": -4}, "instances.limit", "must be at least 0"),
        ({"limit": 1, "x": 2}, "instances.x", "is not known here"),
    ],
)
def test_wrong_limit_is_told_once_and_without_types_of_the_library(sent: Any, field: str, words: str) -> None:
    with pytest.raises(ValidationError) as refused:
        QuotaPatch.model_validate({"instances": sent})
    (problem,) = refused.value.errors()
    assert field_of(("body", *problem["loc"])) == field
    assert said(problem).startswith(words)
    assert field_of(("body", "x", "As[Annotated[int, Field(ge=0)]]", "constrained-int", "limit")) == "x.limit"


def test_no_words_of_the_library_reach_anybody() -> None:
    everything: list[dict[str, Any]] = [
        {"name": value, "image": value, "ports": value, "env": value, "labels": value, "cmd": value, "tags": value}
        for value in (None, 5, 1.5, True, "", "\x00", [], [None], {}, {"": None}, {"x": {}}, [{}], "é" * 99999)
    ]
    for body in [*everything, {}]:
        with pytest.raises(ValidationError) as refused:
            InstanceCreate.model_validate(body)
        told = json.dumps([said(problem) for problem in refused.value.errors()])
        assert not [word for word in ("Input should", "String should", "Value error", "Field required") if word in told]
