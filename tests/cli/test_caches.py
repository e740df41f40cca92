"""``cairn cache``: what it sends, and what it says."""

from __future__ import annotations

from typing import Any

from cli.errors import Exit
from tests.cli.fake import WHEN, WORKFLOW, Answer, FakeApi, accepted, cairn, workflow
from tests.cli.test_sessions import ABOUT, WORKSPACE, session

CACHE = "0199b3f0-0000-7000-8000-0000000000a9"
PATH = f"/cache-volumes/{CACHE}"


def cache(**over: Any) -> dict[str, Any]:
    about = {"path": "/root/.cache/pip", "hosts": ["rack-1", "rack-2"], "cleared_at": None, "error": None}
    return {"id": CACHE, "name": "pip", "status": "ready", **about, "created_at": WHEN, **over}


def test_it_is_made_at_once_shown_emptied_and_removed(api: FakeApi) -> None:
    api.on("POST /cache-volumes", Answer(201, cache(hosts=[])))
    assert cairn("cache", "create", "pip", "/root/.cache/pip").exit_code == 0
    (sent,) = api.seen("POST /cache-volumes")
    assert sent.body == {"name": "pip", "path": "/root/.cache/pip"}
    api.on("GET /cache-volumes", *[Answer(200, [cache()])] * 5)
    shown = cairn("cache", "show", "pip").stdout
    assert "rack-1, rack-2" in shown and "/root/.cache/pip" in shown
    assert "pip" in cairn("cache", "list").stdout
    api.on(f"POST {PATH}/clear", accepted(cache(status="clearing")))
    api.on(f"GET /workflows/{WORKFLOW}", *[Answer(200, workflow())] * 2)
    api.on(f"GET {PATH}", Answer(200, cache(cleared_at=WHEN)), Answer(404, error={"code": "not_found", "message": ""}))
    cleared = cairn("cache", "clear", "pip")
    assert cleared.exit_code == 0 and f"{WHEN} (" in cleared.stdout, cleared.output
    refusal = {"code": "in_use", "message": "cache volume pip is of the sessions work", "details": {}}
    api.on(f"DELETE {PATH}", Answer(409, error=refusal), accepted(cache(status="deleting")))
    refused = cairn("cache", "rm", "pip")
    assert refused.exit_code != 0 and "cairn session rm NAME" in refused.stderr
    assert cairn("cache", "rm", "pip", "--force", "--no-wait").exit_code == 0
    assert api.seen(f"DELETE {PATH}")[-1].query == {"force": "true"}


def test_a_path_that_no_cache_can_be_at_says_which_can(api: FakeApi) -> None:
    message = "no cache can be in /etc: give a folder such as /root/.cache/pip"
    api.on("POST /cache-volumes", Answer(422, error={"code": "validation_failed", "message": message, "details": {}}))
    refused = cairn("cache", "create", "etc", "/etc/pip")
    assert refused.exit_code == Exit.REFUSED and "cairn cache create pip /root/.cache/pip" in refused.stderr


def test_a_session_names_its_caches(api: FakeApi) -> None:
    api.on("GET /workspaces", Answer(200, [ABOUT]))
    api.on(f"POST /workspaces/{WORKSPACE}/sessions", accepted(session(status="initializing")))
    result = cairn("session", "create", "shop", "--cache", "pip", "--cache", "npm", "--no-wait")
    assert result.exit_code == 0, result.output
    (sent,) = api.seen(f"POST /workspaces/{WORKSPACE}/sessions")
    assert sent.body["caches"] == ["pip", "npm"]
    api.on("GET /sessions", Answer(200, [session(caches=["npm", "pip"])]))
    api.on(f"GET /workspaces/{WORKSPACE}", Answer(200, ABOUT))
    assert "npm, pip" in cairn("session", "show", "work").stdout
