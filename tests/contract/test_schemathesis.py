"""Requests that are made up from the OpenAPI document, one after the other as its links say, against a whole platform.

A sample each time; half an hour with ``CAIRN_CHAOS=all``. ``CAIRN_CHAOS_SEED`` makes the same requests again.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import invariants
from tests.stack import Stack

LONG = os.environ.get("CAIRN_CHAOS") == "all"
SEED = int(os.environ.get("CAIRN_CHAOS_SEED") or random.randrange(1_000_000))  # noqa: S311 - a test's choice
SECONDS = int(os.environ.get("CAIRN_CONTRACT_SECONDS") or (1800 if LONG else 45))
#: Of these: what is made up by itself, then what follows from one answer to the next.
PARTS = {"examples,coverage,fuzzing": 2 / 3, "stateful": 1 / 3}


@pytest.fixture(scope="module")
def platform() -> Iterator[Stack]:
    """With room for some instances only: what is beyond is refused as documented."""
    # Short: an import of a registry that nobody can reach is tried until then.
    deadlines = {"CAIRN_DEADLINE_LAUNCH": "10", "CAIRN_DEADLINE_IMPORT": "10"}
    stack = Stack(docker=False, simulated_hosts=2, CAIRN_QUOTA_INSTANCES="40", **deadlines)
    try:
        yield stack.start().ready()
    finally:
        stack.remove()


@pytest.mark.timeout(SECONDS + 900)
@pytest.mark.parametrize("phases", PARTS)
def test_every_answer_is_as_documented_and_the_platform_comes_to_rest(
    platform: Stack, tmp_path: Path, phases: str
) -> None:
    known, me = platform.endpoint(), platform.get("/auth/me")
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file"),
        *(str(Path(__file__).with_name("schemathesis.toml")), "run"),
        *(f"{known['api_url'].removesuffix('/v1')}/openapi.json", "--header", f"X-API-Key: {known['api_key']}"),
        *("--phases", phases, "--seed", str(SEED), "--max-time", str(int(SECONDS * PARTS[phases])), "--no-color"),
    ]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")} | {
        "SCHEMATHESIS_HOOKS": "tests.contract.hooks",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "CONTRACT_HOSTS": ",".join(host["id"] for host in platform.list("/hosts")),
        "CONTRACT_PROJECT": platform.list("/projects")[-1]["id"],
        "CONTRACT_OWN": ",".join([me["key_id"], me["user"]["id"], platform.list("/rbac/bindings")[-1]["id"]]),
    }
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"CAIRN_CHAOS_SEED={SEED}\n{done.stdout[-20000:]}\n{done.stderr[-2000:]}"
    print(done.stdout[done.stdout.find("= SUMMARY") :])
    platform.delete_all()
    invariants.settle(platform)
