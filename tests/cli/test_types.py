"""Instance types on the command line."""

from __future__ import annotations

import json

from cli.errors import Exit
from tests.cli.fake import Answer, FakeApi, cairn

TINY = {"name": "tiny-1", "vcpus": 0.5, "memory_mb": 128, "disk_gb": 4}


def test_list_and_show(api: FakeApi) -> None:
    api.on("GET /instance-types", Answer(200, [TINY]))
    assert "128 MiB" in cairn("type", "list").stdout
    api.on("GET /instance-types/tiny-1", Answer(200, TINY))
    assert json.loads(cairn("type", "show", "tiny-1", "-o", "json").stdout) == TINY


def test_create_and_update_send_what_was_given(api: FakeApi) -> None:
    api.on("POST /instance-types", Answer(201, TINY))
    made = cairn("type", "create", "tiny-1", "--vcpus", "0.5", "--memory", "128", "--disk", "4")
    assert made.exit_code == 0, made.output
    assert api.requests[0].body == TINY
    api.on("PATCH /instance-types/tiny-1", Answer(200, TINY))
    assert cairn("type", "update", "tiny-1", "--memory", "256").exit_code == 0
    assert api.requests[1].body == {"memory_mb": 256}
    assert cairn("type", "update", "tiny-1").exit_code == Exit.USAGE


def test_rm_of_one_in_use_is_refused(api: FakeApi) -> None:
    api.on("GET /instance-types/tiny-1", Answer(200, TINY))
    api.on("DELETE /instance-types/tiny-1", Answer(409, error={"code": "in_use", "message": "there are instances"}))
    assert cairn("type", "rm", "tiny-1").exit_code == Exit.REFUSED
