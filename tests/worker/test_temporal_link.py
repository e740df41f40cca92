"""An agent's way to Temporal: where it answers, and where the platform says that it is now."""

from __future__ import annotations

import socket

import pytest

from model.settings import Settings
from tests.services import TemporalServer, temporal_server
from worker.temporal_link import TemporalLink

__all__ = ["temporal_server"]


def nobody() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def link(address: str, told: list[str], *, follows: bool = True) -> TemporalLink:
    return TemporalLink(Settings(temporal_address=address), follows=follows, remember=told.append)


async def test_it_goes_where_temporal_answers_and_remembers_that(temporal_server: TemporalServer) -> None:
    there = temporal_server.address
    remembered: list[str] = []
    lost = link(nobody(), remembered)
    with pytest.raises((RuntimeError, TimeoutError)):
        await lost.check()
    await lost.told(nobody())
    assert remembered == []
    await lost.told(there)
    assert remembered == [there]
    await lost.check()
    before = lost.client
    await lost.told(nobody())
    await lost.told(there)
    assert lost.client is before
    assert remembered == [there]


async def test_it_stays_where_it_was_told_to_be(temporal_server: TemporalServer) -> None:
    remembered: list[str] = []
    fixed = link(nobody(), remembered, follows=False)
    await fixed.told(temporal_server.address)
    assert remembered == []
    with pytest.raises((RuntimeError, TimeoutError)):
        await fixed.check()
