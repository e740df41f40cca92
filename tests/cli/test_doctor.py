"""``cairn doctor``, where a stack runs: what it says is what runs, whatever the settings of this shell."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from uuid import uuid4

import pytest

from cli import doctor
from model.settings import Settings
from worker import data_folder


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address at which the API of a folder's stack listens; Temporal does not, any more."""
    listening = socket.create_server(("127.0.0.1", 0))
    gone = socket.create_server(("127.0.0.1", 0))
    host, port = listening.getsockname()
    dead = gone.getsockname()[1]
    gone.close()
    endpoint = data_folder.Endpoint(
        api_url=f"http://{host}:{port}/v1",
        api_key="k",
        temporal_address=f"{host}:{dead}",
        temporal_ui_url=f"http://{host}:{port}",
        image="i",
        installation=uuid4(),
        docker_host=None,
        data_dir=str(tmp_path),
        pids={"supervisor": 4711},
    )
    data_folder.write_endpoint(tmp_path, endpoint)
    monkeypatch.setattr(data_folder, "owner", lambda folder: 4711)
    monkeypatch.setattr(doctor, "_listening", listening, raising=False)  # kept open
    return endpoint.api_url


def test_what_runs_is_shown_where_it_runs(tmp_path: Path, running: str) -> None:
    found = {finding.name: finding for finding in doctor._ports(Settings(data_dir=tmp_path))}
    assert set(found) == {"API", "Temporal", "Temporal UI"}
    assert found["API"].works and found["API"].version == running
    assert "process 4711" in str(found["API"].detail)
    assert not found["Temporal"].works and "logs" in str(found["Temporal"].fix)
    assert "8080" not in json.dumps([finding.model_dump() for finding in found.values()])


def test_where_nothing_runs_it_is_the_ports_that_would_be_used(tmp_path: Path) -> None:
    found = list(doctor._ports(Settings(data_dir=tmp_path, api_port=0)))
    assert [finding.detail for finding in found] == ["CAIRN_API_PORT", "CAIRN_TEMPORAL_PORT", "CAIRN_TEMPORAL_UI_PORT"]
