"""The document at ``/openapi.json``: what FastAPI knows of the routes, and what follows from our conventions.

A route brings its path, its models and a docstring; operation ids, summaries, the headers that it reads and writes,
and the errors that it may answer are derived here, in one place. What cannot be derived (a status that only this
route answers) it declares itself, with ``errors.also``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from api.openapi_parts import (
    EVENT_STREAM_CONTENT,
    HEADERS,
    INFO,
    PARAMETERS,
    TAGS,
    WEBSOCKETS,
    error_components,
    reason,
)

Json = dict[str, Any]
_METHODS = ("get", "put", "post", "patch", "delete")
_VERBS = {"get": "get", "post": "create", "put": "replace", "patch": "update", "delete": "delete"}
#: Nouns that end in s and are one thing.
_SINGULAR = {"logs", "stats", "dns", "status", "progress"}
#: It answers 202 and starts nothing that could be waited for.
_ONLY_ASKS = "cancel_workflow"
#: What is no POST, and begins another run each time.
_KEYED = ("scale_group", "scale_deployment")


def install(app: FastAPI) -> None:
    """Serve this document in the place of FastAPI's own. It takes seconds to make: a thread does, for the first who
    asks, while others are answered."""
    making, written = asyncio.Lock(), b""

    def openapi() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = document(app)
        return app.openapi_schema

    async def serve(_request: Request) -> Response:
        nonlocal written
        async with making:
            written = written or await asyncio.to_thread(lambda: orjson.dumps(openapi()))
        return Response(written, media_type="application/json")

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's way
    url = str(app.openapi_url)
    app.router.routes = [route for route in app.router.routes if getattr(route, "path", None) != url]
    app.add_route(url, serve, include_in_schema=False)


def document(app: FastAPI) -> Json:
    """The whole document."""
    found = get_openapi(
        title=app.title,
        version=version("cairn-platform"),
        summary=app.summary,
        description=INFO + WEBSOCKETS,
        contact={"name": "The Cairn maintainers"},
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        servers=[{"url": "/", "description": "The installation that serves this document"}],
        routes=app.routes,
        openapi_version=app.openapi_version,
    )
    schemas = found["components"]["schemas"]
    found["components"] |= {"responses": error_components(), "parameters": PARAMETERS, "headers": HEADERS}
    _close_maps(schemas)
    operations = list(_operations(found))
    with_version = {
        path for path, _, operation in operations if "version" in _data(operation, schemas).get("properties", {})
    }
    for path, method, operation in operations:
        data = _data(operation, schemas)
        function = _name(path, method, operation, is_list=data.get("type") == "array")
        _say_what(operation, function)
        if path.startswith("/v1"):
            versioned = "version" in data.get("properties", {})
            _add_headers(path, method, operation, versioned=versioned, matches=versioned or path in with_version)
            _add_errors(path, method, operation)
    _add_links(operations)
    used = {tag for _, _, operation in operations for tag in operation.get("tags", [])}
    found["tags"] = [{"name": name, "description": text} for name, text in TAGS.items() if name in used]
    return found


def allowed(routes: Sequence[APIRoute], path: str, *, exactly: bool = False) -> list[str]:
    """The methods that a path has. ``exactly``: of a path without parameters. (Of the document nobody is made to wait
    for this: it takes seconds to make.)"""
    here = [route for route in routes if route.path == path]
    if not here and not exactly:
        here = [route for route in routes if route.path_regex.fullmatch(path)]
    return sorted({method for route in here for method in route.methods or ()})


def operation_id(path: str, method: str, *, is_list: bool = False, is_stream: bool = False) -> str:
    """verb_noun: ``POST /v1/instances/{instance_id}/start`` is start_instance. It changes with the path alone, so what
    was generated from it goes on working. A route may name another (``operation_id=``)."""
    parts = [part for part in path.split("/") if part and part != "v1"]
    nouns = []
    for part, follower in zip(parts, [*parts[1:], None], strict=True):
        if not part.startswith("{"):
            word = part.replace("-", "_")
            nouns.append(word if follower is None else _singular(word))
    last = nouns[-1]
    if parts[-1].startswith("{"):
        verb = _VERBS[method]
    elif method == "get":
        verb = "stream" if is_stream else "list" if is_list else "get"
    elif method in ("post", "put") and len(nouns) > 1 and last == _singular(last):
        verb = nouns.pop()  # an action
    else:
        verb = _VERBS[method]
        nouns[-1] = _singular(last) if method == "post" else last
    return "_".join([verb, *nouns])


def _singular(word: str) -> str:
    if word in _SINGULAR or not word.endswith("s"):
        return word
    for plural, singular in (("ies", "y"), ("sses", "ss"), ("xes", "x")):
        if word.endswith(plural):
            return word.removesuffix(plural) + singular
    return word.removesuffix("s")


def _close_maps(found: Any) -> None:
    """A map whose names have a pattern takes no others; pydantic leaves that out."""
    if isinstance(found, dict):
        if "patternProperties" in found:
            found.setdefault("additionalProperties", False)
        for value in found.values():
            _close_maps(value)
    elif isinstance(found, list):
        for value in found:
            _close_maps(value)


def _operations(found: Json) -> Iterator[tuple[str, str, Json]]:
    for path, item in found["paths"].items():
        for method in _METHODS:
            if method in item:
                yield path, method, item[method]


def _data(operation: Json, schemas: Json) -> Json:
    """The schema of ``data`` in the answer of success, with references followed; {} where there is none."""
    for status, answer in operation["responses"].items():
        if status.startswith("2"):
            schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
            envelope = schemas.get(schema.get("$ref", "").rpartition("/")[2], {})
            data = envelope.get("properties", {}).get("data", {})
            return dict(schemas.get(data.get("$ref", "").rpartition("/")[2], data))
    return {}


def _name(path: str, method: str, operation: Json, *, is_list: bool) -> str | None:
    """Give it its id; the name of its function, where the route gave no id."""
    # A streamed answer is the one of which FastAPI knows no type.
    success = operation["responses"].get("200", {})
    is_stream = method == "get" and bool(success) and "content" not in success
    if is_stream:
        success["content"] = EVENT_STREAM_CONTENT
    made_up = re.sub(r"\W", "_", path) + f"_{method}"  # by FastAPI, behind the function's name
    if not operation["operationId"].endswith(made_up):
        return None
    function: str = operation["operationId"].removesuffix(made_up)
    operation["operationId"] = operation_id(path, method, is_list=is_list, is_stream=is_stream)
    return function


def _say_what(operation: Json, function: str | None) -> None:
    """The docstring's first sentence is the summary, where FastAPI took the function's name for one."""
    for status, answer in operation["responses"].items():
        answer["description"] = reason(status, answer["description"])
    if function is not None and operation["summary"] != function.replace("_", " ").title():
        return
    text = " ".join(operation.get("description", "").split())
    for stop in re.finditer(r"[.:;](?= |$)", text):
        head = text[: stop.start()]
        if head.count("(") == head.count(")"):
            operation["summary"] = head
            return


def _add_headers(path: str, method: str, operation: Json, *, versioned: bool, matches: bool) -> None:
    """``versioned``: what it answers has a version; ``matches``: what its path names has one, to be asked for."""
    responses = operation["responses"]
    # Of agents, and of who has no credential yet: they have no project.
    for_agents = "agents" in operation.get("tags", []) or not operation.get("security")
    starts = "202" in responses and operation["operationId"] != _ONLY_ASKS
    reads = {
        "X-Request-ID": True,
        "X-Project-ID": not for_agents,
        "Idempotency-Key": (method == "post" or operation["operationId"] in _KEYED) and not for_agents,
        "Prefer": starts,
        "If-Match": method != "get" and "{" in path and matches,
        "Last-Event-ID": responses.get("200", {}).get("content") is EVENT_STREAM_CONTENT,
    }
    parameters = operation.setdefault("parameters", [])
    parameters += [{"$ref": f"#/components/parameters/{name}"} for name, does in reads.items() if does]
    if starts:
        # Waited for, and it has ended in time; or there was nothing to do any more.
        creates = operation["operationId"].startswith("create_")
        said = "Created: it was waited for" if creates else "Done: it was waited for, or there was nothing to do"
        status = "201" if creates else "200"
        streams = responses.get(status, {}).get("content", {})  # to who does not ask for JSON
        content = responses["202"].get("content", {}) | streams
        responses[status] = {**responses["202"], "description": said, "content": content}
    for status, answer in responses.items():
        if status.startswith("2"):
            writes = {
                "X-Request-ID": True,
                "ETag": versioned,
                "Location": "202" in responses,
                "Preference-Applied": starts,
            }
            answer["headers"] = {
                name: {"$ref": f"#/components/headers/{name}"} for name, does in writes.items() if does
            }


def _add_errors(path: str, method: str, operation: Json) -> None:
    """What the conventions say that such a request may meet, and what the route declares."""
    responses = operation["responses"]
    reads = {str(parameter.get("$ref", "")).rpartition("/")[2] for parameter in operation["parameters"]}
    for_agents = "X-Project-ID" not in reads
    may = {
        400: "requestBody" in operation,
        403: any(scopes for requirement in operation.get("security", []) for scopes in requirement.values()),
        404: not for_agents or "{" in path,
        409: method != "get" and not for_agents,
        412: "If-Match" in reads,
        413: "requestBody" in operation,
        415: "requestBody" in operation,
        429: True,
        502: "Prefer" in reads,
    }
    statuses = {status for status, does in may.items() if does}
    statuses |= {int(status) for status in responses if status[0] in "45"}
    for status in sorted(statuses):
        responses[str(status)] = {"$ref": f"#/components/responses/{status}"}


def _add_links(operations: list[tuple[str, str, Json]]) -> None:
    """Where an id in an answer can be used: from what creates a thing to all that takes its id, and from what
    starts a workflow to looking at it and calling it off."""
    names = {(path, method): operation["operationId"] for path, method, operation in operations}
    for path, _, operation in operations:
        responses, links = operation["responses"], {}
        if operation["operationId"].startswith("create_"):
            for (other, _), name in names.items():
                found = re.fullmatch(re.escape(path) + r"/\{(\w+)\}(/[^{]*)?", other)
                if found and "{" not in path:
                    field = "name" if found[1].endswith("_name") else "id"
                    links[name] = {"operationId": name, "parameters": {found[1]: f"$response.body#/data/{field}"}}
        if "202" in responses:
            for name in {"get_workflow", "cancel_workflow", "retry_workflow"} & set(names.values()):
                workflow = {"workflow_id": "$response.body#/meta/workflow_id"}
                links[name] = {"operationId": name, "parameters": workflow}
        for status in ("201", "202"):
            if links and status in responses:
                responses[status]["links"] = dict(sorted(links.items()))
