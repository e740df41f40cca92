"""Names and ids on the command line: completed, several at once, shown whole, and free of what steers a terminal."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from cli.commands import COMMANDS
from cli.errors import Exit
from cli.main import load
from cli.routes import as_commands
from tests.cli.fake import HOOK, HOST, IMAGE, INSTANCE, WORKFLOW, Answer, FakeApi, accepted, cairn, hook, host, image
from tests.cli.fake import workflow as run_of
from tests.cli.test_commands import ALL

#: Arguments of these are no names, or of things that are not kept.
UNKNOWN = {"audit", "backup", "restore", "completion", "context", "faults"}
REMOVALS = sorted(words for words in ALL if words.endswith(" rm"))
_ROUTE = re.compile(r"(?:GET|POST|PUT|PATCH|DELETE) /v1/[^\s`)]+")


@pytest.mark.parametrize("name", [name for name in COMMANDS if hasattr(load(name), "commands")])
def test_only_the_program_itself_is_about_completion(name: str) -> None:
    assert "completion" not in cairn(name, "--help").stdout.replace("cairn completion", "")


def _arguments(words: str) -> list[Any]:
    return [param for param in ALL[words].params if param.param_type_name == "argument"]


@pytest.mark.parametrize("words", [w for w in ALL if w.endswith((" show", " rm")) and w.split()[0] not in UNKNOWN])
def test_names_of_what_there_is_are_completed(words: str) -> None:
    for argument in _arguments(words):
        assert argument._custom_shell_complete is not None, argument.name


@pytest.mark.parametrize("words", REMOVALS)
def test_what_removes_takes_several_names(words: str) -> None:
    (argument,) = _arguments(words)
    assert argument.nargs == -1 and argument.required


def test_one_that_cannot_be_removed_keeps_no_other_from_it(api: FakeApi) -> None:
    api.on("GET /images", Answer(200, [image()]))
    api.on(f"DELETE /images/{IMAGE}", accepted(image(status="deleting")))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, run_of()))
    ended = cairn("image", "rm", "nothing", "app")
    assert ended.exit_code == Exit.NOT_FOUND
    assert "there is no image named 'nothing'" in ended.stderr
    assert "image app is deleted" in ended.stderr
    api.on("GET /webhooks", Answer(200, [hook("a")]), Answer(200, [hook("b")]))
    api.on(f"DELETE /webhooks/{HOOK}", Answer(204))
    assert cairn("webhook", "rm", "a", "b").exit_code == Exit.OK
    assert len(api.seen(f"DELETE /webhooks/{HOOK}")) == 2
    api.on("GET /hosts", Answer(200, [host()]))
    refusal = {"code": "in_use", "message": f"drain it first (POST /v1/hosts/{HOST}/drain)"}
    api.on(f"DELETE /hosts/{HOST}", Answer(409, error=refusal))
    refused = cairn("host", "rm", "rack-1")
    assert f"drain it first (cairn host drain {HOST})" in refused.stderr


def test_requests_that_the_api_names_are_commands_here(request: pytest.FixtureRequest) -> None:
    named = set()
    for module in (request.config.rootpath / "api").glob("*.py"):
        named |= {route for text in _texts(module) for route in _ROUTE.findall(text)}
    assert len(named) > 5
    assert not {route for route in named if as_commands(route) == route}
    assert as_commands("GET /v1/nah: Not Found") == "GET /v1/nah: Not Found"
    assert as_commands("see GET /v1/projects/{id}/quotas, please") == "see cairn quota show, please"


def _texts(module: Path) -> list[str]:
    """What a module says in calls (messages, and no docstrings), values of f-strings as ``{}``."""
    found = []
    for call in (node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call)):
        left: list[ast.AST] = [call]
        while left:
            node = left.pop()
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
                found.append("".join(parts))
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            left += ast.iter_child_nodes(node)
    return found


def frames(*ids: int, type: str = "instance.running") -> Answer:
    made = "".join(
        f'id: 1-{n}-0\nevent: {type}\ndata: {{"type": "{type}", "created_at": "2026-01-01T12:00:00Z",'
        f' "resource_type": "instance", "resource_id": "\\u001b[2J{INSTANCE}", "data": {{"to": "r\\u009b1m"}}}}\n\n'
        for n in ids
    )
    return Answer(200, raw=made.encode(), headers={"Content-Type": "text/event-stream"})


def test_the_newest_events_are_shown_oldest_first_with_their_ids(api: FakeApi) -> None:
    api.on("GET /events", frames(1, 2, 3, 4))
    shown = cairn("events", "--limit", "2").stdout
    assert re.findall(r"1-\d-0", shown) == ["1-3-0", "1-4-0"]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)
    assert re.findall(r"1-\d-0", cairn("events", "--limit", "2", "--after", "1-0-0").stdout) == ["1-1-0", "1-2-0"]
    assert api.requests[-1].headers["last-event-id"] == "1-0-0"


def test_a_list_of_workflows_names_what_they_are_of(api: FakeApi) -> None:
    api.on("GET /workflows", Answer(200, [run_of(resource_name="web")]), Answer(200, [run_of()]))
    head, row = cairn("workflow", "list").stdout.splitlines()
    assert head.split()[:3] == ["ID", "KIND", "RESOURCE"]
    assert row.split()[:3] == [WORKFLOW, "ProvisionInstance", "web"]
    assert INSTANCE in cairn("workflow", "list").stdout, "of an older platform"
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, run_of(resource_name="web")))
    assert f"instance web ({INSTANCE})" in cairn("workflow", "show", WORKFLOW).stdout
