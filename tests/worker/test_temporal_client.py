"""How values travel between processes of releases that follow each other."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from activities.instances import PlaceRequest
from model.base import Frozen, new_id
from model.workflows import Order
from worker.temporal_client import DATA_CONVERTER


class Older(Frozen):
    """What the release before knows of ``Newer``."""

    name: str
    parts: list[str] = []


class Newer(Older):
    size: int | None = None


def test_what_is_new_is_not_sent_unless_it_is_used_and_is_not_overlooked_where_it_is() -> None:
    convert = DATA_CONVERTER.payload_converter
    payloads = convert.to_payloads([Newer(name="a", parts=["b"], size=None)])
    assert convert.from_payloads(payloads, [Older]) == [Older(name="a", parts=["b"])]
    assert convert.from_payloads(payloads, [Newer]) == [Newer(name="a", parts=["b"])]
    with pytest.raises(ValidationError):
        convert.from_payloads(convert.to_payloads([Newer(name="a", size=3)]), [Older])


def test_it_is_so_of_values_within_values_and_of_rows() -> None:
    ids = {"workflow_id": new_id(), "project_id": new_id(), "resource_id": new_id()}
    order = Order(**ids, kind="k", resource_type="instance", name="n", request_id="r", deadline_seconds=1, force=False)
    convert, request = DATA_CONVERTER.payload_converter, PlaceRequest(order=order)
    (payload,) = convert.to_payloads([request])
    required = {*ids, "kind", "resource_type", "name", "request_id", "deadline_seconds"}
    assert json.loads(payload.data)["order"].keys() == order.written().keys() == required
    assert convert.from_payloads([payload], [PlaceRequest]) == [request]
    assert Order.model_validate(order.written()) == order
