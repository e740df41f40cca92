"""Quotas on the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.project_quotas import QuotaPatch
from cli.errors import Exit
from cli.quotas import NAMES
from tests.cli.fake import HOST, WHEN, Answer, FakeApi, cairn

PROJECT = {"id": HOST, "name": "default", "unix_name": "default", "drift_policy": "report", "created_at": WHEN}
OTHER = "0199b3f0-0000-7000-8000-00000000000b"
QUOTAS: dict[str, Any] = {
    "instances": {"limit": 50, "used": 3, "reserved": 1},
    "vcpus": {"limit": None, "used": 2.5, "reserved": 0},
    "image_bytes": {"limit": 1 << 40, "used": 10_000_001, "reserved": 0},
}


def test_quotas_are_shown(api: FakeApi) -> None:
    api.on("GET /projects", Answer(200, [PROJECT]))
    api.on(f"GET /projects/{HOST}/quotas", Answer(200, QUOTAS))
    lines = [line.split() for line in cairn("quota", "show").stdout.splitlines()]
    assert lines[0] == ["project", "default", "(default)"]
    assert lines[2:] == [
        ["instances", "50", "3", "1"],
        ["vcpus", "none", "2.5", "0"],
        ["image_bytes", str(1 << 40), "10000001", "0"],
    ]
    assert json.loads(cairn("quota", "show", "-o", "json").stdout) == QUOTAS


def test_every_quota_of_the_api_can_be_set() -> None:
    assert set(NAMES) == set(QuotaPatch.model_fields)


def test_quotas_are_set(api: FakeApi) -> None:
    api.on("GET /projects", Answer(200, [PROJECT]))
    for project in (HOST, OTHER):
        api.on(f"PATCH /projects/{project}/quotas", Answer(200, QUOTAS))
    assert cairn("quota", "set", "default", "instances=50", "vcpus=none").exit_code == 0
    assert api.requests[-1].body == {"instances": 50, "vcpus": None}
    assert cairn("quota", "set", "default", "load_balancers=1").exit_code == 0
    assert api.requests[-1].body == {"load_balancers": 1}
    assert cairn("quota", "set", OTHER, "vcpus=2.5").exit_code == 0
    assert api.requests[-1].path.endswith(f"{OTHER}/quotas")
    assert cairn("quota", "set", "nope", "instances=1").exit_code == Exit.NOT_FOUND


def test_a_project_is_found_by_its_name_too_where_one_has_it(api: FakeApi) -> None:
    named = PROJECT | {"name": "Payments"}
    api.on(
        "GET /projects", Answer(200, [named]), Answer(200, [named, PROJECT | {"name": "Payments", "unix_name": "p"}])
    )
    api.on(f"PATCH /projects/{HOST}/quotas", Answer(200, QUOTAS))
    assert cairn("quota", "set", "Payments", "instances=1").exit_code == Exit.OK
    assert cairn("quota", "set", "Payments", "instances=1").exit_code == Exit.REFUSED


@pytest.mark.parametrize("said", ["disks=5", "instances", "instances=many", "instances=1.5", "=5", "vcpus=nan"])
def test_what_is_no_limit_is_refused(api: FakeApi, said: str) -> None:
    assert cairn("quota", "set", "default", said).exit_code == Exit.USAGE
    assert api.requests == []
