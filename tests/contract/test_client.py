"""A client generated from the OpenAPI document, used against a running platform."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from openapi_python_client import generate
from openapi_python_client.config import Config, ConfigFile, MetaType
from openapi_python_client.parser.errors import GeneratorError

from tests.stack import IMAGE, TERMINAL, Stack

PACKAGE = "cairn_generated_client"


@pytest.fixture
def generated(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    base = stack.endpoint()["api_url"].removesuffix("/v1")
    document = tmp_path / "openapi.json"
    document.write_text(stack._http.get(f"{base}/openapi.json").text)
    options = ConfigFile(package_name_override=PACKAGE, post_hooks=[])
    target = tmp_path / PACKAGE
    config = Config.from_sources(
        options, MetaType.NONE, document_source=document, file_encoding="utf-8", overwrite=True, output_path=target
    )
    problems = list(generate(config=config))
    assert not [problem for problem in problems if isinstance(problem, GeneratorError)], problems
    # Streams are for clients that read them as they come; everything else is there.
    said = [f"{problem.header}: {problem.detail}" for problem in problems]
    assert all("text/event-stream" in one or "text/plain" in one for one in said), said
    ids = [op["operationId"] for item in json.loads(document.read_text())["paths"].values() for op in item.values()]
    missing = [name for name in ids if not any((target / "api").glob(f"*/{name}.py"))]
    assert all(name.startswith("stream_") for name in missing), missing
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
        del sys.modules[name]
    return importlib.import_module(PACKAGE)


def call(group: str, operation: str, **arguments: Any) -> Any:
    """One generated function, and its answer as it was parsed."""
    module = importlib.import_module(f"{PACKAGE}.api.{group}.{operation}")
    answer = module.sync_detailed(**arguments)
    assert answer.parsed is not None, answer
    return answer.parsed


def test_generated_client_launches_waits_and_deletes(stack: Stack, generated: ModuleType) -> None:
    known = stack.endpoint()
    models = importlib.import_module(f"{PACKAGE}.models")
    client = generated.AuthenticatedClient(
        base_url=known["api_url"].removesuffix("/v1"),
        token=known["api_key"],
        prefix="",
        auth_header_name="X-API-Key",
        httpx_args={"trust_env": False},
    )
    body = models.InstanceCreate.from_dict({"name": "generated", "image": IMAGE, "backend": "simulated"})
    launched = call("instances", "create_instance", client=client, body=body)
    instance_id, workflow_id = launched.data.id, launched.meta.workflow_id
    _ended(client, workflow_id, "completed")
    shown = call("instances", "get_instance", client=client, instance_id=instance_id)
    assert (shown.data.name, shown.data.status) == ("generated", "running")
    assert instance_id in [one.id for one in call("instances", "list_instances", client=client).data]
    deleted = call("instances", "delete_instance", client=client, instance_id=instance_id)
    _ended(client, deleted.meta.workflow_id, "completed")
    gone = call("instances", "get_instance", client=client, instance_id=instance_id)
    assert gone.data.status == "deleted"
    nothing = models.Nothing()
    refused = call("instances", "start_instance", client=client, instance_id=instance_id, body=nothing)
    assert (refused.error.code, refused.data) == ("invalid_state", None)


def _ended(client: Any, workflow_id: str, state: str) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        row = call("workflows", "get_workflow", client=client, workflow_id=workflow_id).data
        if str(row.state.value) in TERMINAL:
            assert row.state.value == state, row
            return
        time.sleep(0.1)
    raise AssertionError(f"workflow {workflow_id} does not end")
