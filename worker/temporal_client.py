"""Connections to Temporal, alike for every process."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from pydantic_core import SchemaSerializer
from pydantic_core.core_schema import any_schema
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from temporalio.contrib.pydantic import PydanticJSONPlainPayloadConverter
from temporalio.converter import (
    CompositePayloadConverter,
    DataConverter,
    DefaultPayloadConverter,
    JSONPlainPayloadConverter,
)
from temporalio.runtime import Runtime

from model.settings import Settings
from worker import tracing

log = structlog.get_logger()


class WithoutDefaults(PydanticJSONPlainPayloadConverter):
    """Values go without the fields that are at their defaults, and are read strictly.

    So workers and agents of the release before understand all that does not use what is new, and leave the rest to
    those that know it, instead of doing half of it. A field that is added has a default, which never changes.
    """

    _serializer = SchemaSerializer(any_schema())

    def to_payload(self, value: Any) -> Payload | None:
        data = self._serializer.to_json(value, exclude_defaults=True)
        return Payload(metadata={"encoding": self.encoding.encode()}, data=data)


class _Payloads(CompositePayloadConverter):
    def __init__(self) -> None:
        as_json = WithoutDefaults()
        others = DefaultPayloadConverter.default_encoding_payload_converters
        super().__init__(*(as_json if isinstance(other, JSONPlainPayloadConverter) else other for other in others))


DATA_CONVERTER = DataConverter(payload_converter_class=_Payloads)


async def connect(settings: Settings, *, lazy: bool = False, runtime: Runtime | None = None) -> Client:
    """``lazy``: at the first call. Otherwise waits until the server answers: workers need it."""
    waited = False
    while True:
        try:
            return await connect_once(settings, lazy=lazy, runtime=runtime)
        except RuntimeError as error:
            if not waited:
                log.warning("temporal.waiting", address=settings.temporal_address, error=str(error))
            waited = True
            await asyncio.sleep(0.2)


async def connect_once(settings: Settings, *, lazy: bool = False, runtime: Runtime | None = None) -> Client:
    """Raises RuntimeError, which is what the SDK has for a server that does not answer."""
    return await Client.connect(
        settings.temporal_address,
        namespace=settings.temporal_namespace,
        data_converter=DATA_CONVERTER,
        interceptors=tracing.interceptors(),
        runtime=runtime,
        lazy=lazy,
    )
