"""``cairn pool``: what it sends, and what it says."""

from __future__ import annotations

from typing import Any

from cli.errors import Exit
from tests.cli.fake import WHEN, WORKFLOW, Answer, FakeApi, accepted, cairn, workflow

POOL = "0199b3f0-0000-7000-8000-0000000000b1"


def pool(**over: Any) -> dict[str, Any]:
    made = {"id": POOL, "name": "python", "status": "active", "image": "cairn/base:latest", "instance_type": "basic-1"}
    counts = {"size": 2, "max_size": 5, "wanted": 3, "ready": 2, "filling": 1, "claimed": 4}
    rest = {"network": {"mode": "none", "allow": []}, "host": None, "error": None, "created_at": WHEN}
    return made | counts | rest | over


def test_pools_are_made_shown_changed_and_deleted(api: FakeApi) -> None:
    api.on("POST /pools", accepted(pool(status="pending")))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow()))
    api.on(f"GET /pools/{POOL}", Answer(200, pool()))
    api.on("GET /pools", Answer(200, [pool()]))
    result = cairn("pool", "create", "python", "--size", "2", "--max", "5", "--network", "none")
    assert result.exit_code == 0, result.output
    (sent,) = api.seen("POST /pools")
    wanted = {"name": "python", "size": 2, "max_size": 5, "instance_type": "basic-1", "network": {"mode": "none"}}
    assert sent.body == wanted
    listed = cairn("pool", "list")
    assert "2/3" in listed.stdout and "4" in listed.stdout, listed.output
    assert "2 of 3" in cairn("pool", "show", "python").stdout
    api.on(f"PATCH /pools/{POOL}", Answer(200, pool()))
    assert cairn("pool", "set", "python", "--max", "9").exit_code == 0
    assert api.seen(f"PATCH /pools/{POOL}")[0].body == {"max_size": 9}
    assert cairn("pool", "set", "python").exit_code == Exit.USAGE
    api.on(f"DELETE /pools/{POOL}", accepted(pool(status="deleting")))
    assert cairn("pool", "rm", "python").exit_code == 0


def test_numbers_that_are_not_what_they_will_be_say_why(api: FakeApi) -> None:
    for over, told in (
        ({"ready": 0, "wanted": 1, "size": 0, "filling": 1}, "0 of 1; under way: 1\n"),
        ({"ready": 1, "wanted": 1, "size": 0, "filling": 0}, "1 of 1; sessions asked for more than its size: it goes"),
        ({"ready": 2, "wanted": 0, "size": 0, "filling": 0, "status": "scaling"}, "2 of 0; under way: what is too"),
        ({"ready": 2, "wanted": 2, "size": 2, "filling": 0}, "2 of 2\n"),
    ):
        api.scripts["GET /pools"].clear()
        api.on("GET /pools", Answer(200, [pool(**over)]))
        assert told in cairn("pool", "show", "python").stdout
