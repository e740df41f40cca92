"""The one shape of every answer: ``{"data", "error", "meta"}``."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import orjson
from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


class Nothing(BaseModel):
    """The body of a request that takes none: absent, or an empty object. Whatever is in it is refused."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{}]})


class Meta(BaseModel):
    request_id: str
    workflow_id: str | None = None
    next_cursor: str | None = None


class ErrorBody(BaseModel):
    code: str
    message: str
    details: dict[str, Any]


class Envelope(BaseModel, Generic[T]):
    """A success. Handlers build it by hand (it is on every path); this class documents it."""

    data: T
    error: None = None
    meta: Meta


class ErrorEnvelope(BaseModel):
    data: None = None
    error: ErrorBody
    meta: Meta


def answer(
    request: Request,
    data: Any,
    status: int = 200,
    *,
    headers: dict[str, str] | None = None,
    error: dict[str, Any] | None = None,
    **meta: Any,
) -> Response:
    """Any answer that has a body. ``meta`` entries that are None are left out."""
    body = {
        "data": data,
        "error": error,
        "meta": {
            "request_id": request.state.request_id,
            **{name: value for name, value in meta.items() if value is not None},
        },
    }
    return Response(orjson.dumps(body), status, headers, media_type="application/json")
