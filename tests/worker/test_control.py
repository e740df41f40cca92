"""What a control worker begins with, and goes on with whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from activities.sweeper import Sweeper
from model.settings import Settings
from worker import control, metrics


class Begun(Exception):
    pass


def test_figures_are_read_with_the_password_of_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the same as all else: without them the platform looks as if its database were away."""
    (tmp_path / "password").write_text("p@ss")
    monkeypatch.setenv("CAIRN_DATABASE_URL", "postgresql://cairn_worker@db/cairn")
    monkeypatch.setenv("CAIRN_DATABASE_PASSWORD_FILE", str(tmp_path / "password"))
    asked: list[str] = []

    def begin(*_: Any) -> Any:
        raise Begun

    real = control.connect_database

    def connect(url: str, threads: int) -> Any:
        asked.append(url)
        return real(url, threads)

    monkeypatch.setattr(control, "connect_database", connect)
    monkeypatch.setattr("model.logs.configure", lambda *_: None)
    monkeypatch.setattr("worker.metrics.serve", begin)
    with pytest.raises(Begun):
        control.main()
    assert asked == ["postgresql://cairn_worker:p%40ss@db/cairn"]


class Odd:
    """Its first look fails as nobody thought of."""

    def __init__(self) -> None:
        self.looks = 0
        self.again = asyncio.Event()

    async def order_due(self) -> int:
        self.looks += 1
        if self.looks == 1:
            raise ValueError("a row of another release")
        self.again.set()
        return 0


async def test_the_clock_is_looked_at_again_after_an_odd_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CLOCK_SECONDS", 0.01)
    odd = Odd()
    looking = asyncio.create_task(control.look_at_the_clock(cast(Sweeper, odd)))
    await asyncio.wait_for(odd.again.wait(), 5)
    looking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await looking


def test_a_port_that_is_taken_is_said_by_the_name_of_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(metrics_port=taken.getsockname()[1])
        with pytest.raises(SystemExit, match="CAIRN_METRICS_PORT: cannot listen on "):
            metrics.serve(settings, "control")
