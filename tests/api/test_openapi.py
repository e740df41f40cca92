"""The OpenAPI document: complete for every route that there is, whoever adds it."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from api import openapi
from api.app import create_app
from api.openapi import allowed, operation_id
from api.openapi_parts import TAGS
from model.settings import Settings
from tests.api.conftest import Api

Json = dict[str, Any]
#: Served until the client goes, or for people: these have no place in the document.
BODY_STATUSES = {"400", "413", "415", "422"}


@pytest.fixture(scope="module")
def document() -> Json:
    # Neither the database nor Temporal is asked for it.
    found: Json = create_app(Settings(), None, None, None).openapi()  # type: ignore[arg-type]
    return found


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", path, operation


def resolved(document: Json, found: Json) -> Json:
    while "$ref" in found:
        place: Any = document
        for part in found["$ref"].removeprefix("#/").split("/"):
            place = place[part]
        found = place
    return found


def test_every_operation_has_a_stable_id_a_summary_and_a_described_tag(document: Json) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    for name, _, operation in operations(document):
        assert re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", operation["operationId"]), name
        assert operation.get("description"), f"{name}: its function has no docstring"
        assert 5 <= len(operation["summary"]) <= 140, (name, operation["summary"])
        assert operation.get("tags"), f"{name} has no tag"
        assert set(operation["tags"]) <= set(TAGS), f"{name}: describe its tag in api/openapi_parts.py"


def test_every_body_has_an_example_that_its_schema_takes(document: Json) -> None:
    for name, _, operation in operations(document):
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            if kind != "application/json":
                continue
            schema = content["schema"]
            choices = [resolved(document, choice) for choice in schema.get("anyOf", [schema])]
            examples = [*content.get("examples", {}).values(), *(e for c in choices for e in c.get("examples", []))]
            assert examples, f"{name}: its body has no example (json_schema_extra)"
            for example in examples:
                whole = {**schema, "components": document["components"]}
                jsonschema_rs.Draft202012Validator(whole).validate(example)


def test_every_error_has_the_envelope_and_every_answer_its_request_id(document: Json) -> None:
    for name, path, operation in operations(document):
        for status, answer in operation["responses"].items():
            found = resolved(document, answer)
            assert found["description"] and found["description"] != "Successful Response", (name, status)
            if path.startswith("/v1"):
                assert "X-Request-ID" in found["headers"], (name, status)
            if status[0] in "45":
                schema = found["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorEnvelope"}, (name, status)
        if path.startswith("/v1"):
            wanted = {"401", "422", "503"} | (BODY_STATUSES if "requestBody" in operation else set())
            assert wanted <= set(operation["responses"]), name


def test_what_is_accepted_says_where_its_workflow_is_and_what_waiting_makes_of_it(document: Json) -> None:
    seen = 0
    for name, _, operation in operations(document):
        if "202" not in operation["responses"]:
            continue
        seen += 1
        assert "Location" in operation["responses"]["202"]["headers"], name
        if operation["operationId"] != "cancel_workflow":
            assert {"502", "429", "409"} <= set(operation["responses"]), name
            assert {"200", "201"} & set(operation["responses"]), name
            assert {"$ref": "#/components/parameters/Prefer"} in operation["parameters"], name
    assert seen > 5


def test_references_lead_somewhere_and_links_name_operations(document: Json) -> None:
    ids = {operation["operationId"] for _, _, operation in operations(document)}

    def walk(found: Any) -> None:
        if isinstance(found, dict):
            if "$ref" in found and isinstance(found["$ref"], str):
                resolved(document, found)
            for name, link in (found.get("links") or {}).items() if isinstance(found.get("links"), dict) else ():
                assert link["operationId"] in ids, name
            for value in found.values():
                walk(value)
        elif isinstance(found, list):
            for value in found:
                walk(value)

    walk(document)


def test_no_two_schemas_have_one_name(document: Json) -> None:
    """They would be told apart by their modules, in names that clients are generated from."""
    assert [name for name in document["components"]["schemas"] if name.startswith("api__")] == []


def test_choices_between_objects_say_how_they_are_told_apart(document: Json) -> None:
    def walk(found: Any) -> None:
        if isinstance(found, dict):
            for word in ("anyOf", "oneOf"):
                objects = [choice for choice in found.get(word, []) if "$ref" in choice]
                kinds = [choice for choice in objects if resolved(document, choice).get("type") == "object"]
                assert len(kinds) < 2 or "discriminator" in found, found
            for value in found.values():
                walk(value)
        elif isinstance(found, list):
            for value in found:
                walk(value)

    walk(document["components"]["schemas"])


def test_operations_that_need_a_permission_say_that_it_may_be_missing(document: Json) -> None:
    for name, _, operation in operations(document):
        needs = any(scopes for one in operation.get("security", []) for scopes in one.values())
        closed = name in ("POST /v1/auth/register", "POST /v1/auth/forgot-password")
        assert ("403" in operation["responses"]) == (needs or closed), name


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("post", "/v1/instances", "create_instance"),
        ("get", "/v1/instances/{instance_id}", "get_instance"),
        ("patch", "/v1/instances/{instance_id}", "update_instance"),
        ("post", "/v1/instances/{instance_id}/resize", "resize_instance"),
        ("put", "/v1/instances/{instance_id}/tags", "replace_instance_tags"),
        ("post", "/v1/hosts/tokens", "create_host_token"),
        ("get", "/v1/dashboard/summary", "get_dashboard_summary"),
        ("delete", "/v1/ssh-keys/{key_id}", "delete_ssh_key"),
        ("post", "/v1/security-groups/{id}/rules", "create_security_group_rule"),
        ("delete", "/v1/autoscaling/policies/{id}", "delete_autoscaling_policy"),
    ],
)
def test_operation_ids_follow_from_method_and_path(method: str, path: str, expected: str) -> None:
    assert operation_id(path, method) == expected


def test_every_path_of_the_document_knows_its_methods(document: Json) -> None:
    """As 405 tells them, which does not wait for the document."""
    app = create_app(Settings(), None, None, None)  # type: ignore[arg-type]
    for path, item in document["paths"].items():
        here = allowed(app.state.routes, re.sub(r"\{\w+\}", "x", path))
        assert set(here) >= {method.upper() for method in item}, path
        assert here, path


async def test_others_are_answered_while_the_document_is_made(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()
    document = openapi.document

    def slow(app: Any) -> Json:
        begun.set()
        assert go.wait(20)
        return document(app)

    monkeypatch.setattr(openapi, "document", slow)
    monkeypatch.setattr(api.app, "openapi_schema", None)
    asked = asyncio.create_task(api.http.get("/openapi.json"))
    assert await asyncio.to_thread(begun.wait, 20)
    assert (await api.http.get("/v1/instances")).status_code == 200
    go.set()
    answer = await asked
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["info"]["title"] == "Cairn"
