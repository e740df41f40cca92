"""Every command of the program: its help, its options, its formats, and what becomes of its output."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from cli.commands import COMMANDS, VIEWS
from cli.errors import MEANINGS, Exit
from cli.main import load
from tests.cli.fake import (
    INSTANCE,
    WORKFLOW,
    Answer,
    FakeApi,
    accepted,
    cairn,
    cron_job,
    hook,
    host,
    image,
    instance,
    workflow,
)
from tests.cli.test_program import PROGRAM

WIDTH = 80


def walk() -> Iterator[tuple[str, Any]]:
    """Each command that does something, by its words."""
    for name in COMMANDS:
        yield from _below((name,), load(name))


def _below(words: tuple[str, ...], command: Any) -> Iterator[tuple[str, Any]]:
    for name, each in getattr(command, "commands", {}).items():
        yield from _below((*words, name), each)
    if not hasattr(command, "commands"):
        yield " ".join(words), command


ALL = dict(walk())
CHANCE = random.Random(int(os.environ["CAIRN_CHAOS_SEED"]))  # noqa: S311 - a test's choice, to be repeated
DRAWN = CHANCE.choice(list(ALL))


@pytest.mark.parametrize("words", [*ALL, *(name for name in COMMANDS if name not in ALL), ""])
def test_help_is_whole_and_fits_80_columns(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    result = cairn(*words.split(), "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    shown = result.stdout
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert "Usage: cairn" in shown
    if words:
        assert f"Example: cairn {words}" in " ".join(shown.split())
    if words in ALL:
        assert ALL[words].help.strip()


@pytest.mark.parametrize("words", ["", "instance", DRAWN])
def test_help_of_the_program_is_what_is_shown_here(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the test above speaks of what a process of its own shows."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    command = [*PROGRAM, *words.split(), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert shown == cairn(*words.split(), "--help").stdout


@pytest.mark.parametrize("words", ALL)
def test_no_option_stands_for_two_things_and_all_are_explained(words: str) -> None:
    options = [name for param in ALL[words].params for name in (*param.opts, *param.secondary_opts)]
    assert len(options) == len(set(options)), options
    assert not [param.name for param in ALL[words].params if not getattr(param, "help", None)]


@pytest.mark.parametrize("words", ALL)
def test_options_that_every_such_command_has(words: str) -> None:
    options = {name for param in ALL[words].params for name in param.opts}
    assert "--no-color" in options
    local = COMMANDS[words.split(maxsplit=1)[0]].local
    assert ({"--context", "-c", "--api-url", "--debug"} <= options) is not local
    if words.rsplit(maxsplit=1)[-1] in VIEWS:
        assert "--output" in options
        assert ("--watch" in options) is not local
    if "--timeout" in options and words not in ("instance exec", "session exec", "cron create", "cron update"):
        assert "--wait" in options or words == "workflow wait"


def test_what_changes_something_by_a_workflow_can_be_waited_for() -> None:
    for words in ("instance launch", "instance start", "instance stop", "instance rm", "host drain", "workflow cancel"):
        options = {name for param in ALL[words].params for name in (*param.opts, *param.secondary_opts)}
        assert {"--wait", "--no-wait", "--timeout", "--output"} <= options, words


#: What the fake API answers to lists, each with more rows than a pipe holds.
MADE = {"id": INSTANCE, "created_at": "2026-01-01T00:00:00Z"}
AUDITED = {**MADE, "at": MADE["created_at"], "actor": "key:laptop", "action": "instances:create", "code": None}
AUDITED |= {"outcome": "allowed", "resource_type": "instance", "resource_id": INSTANCE, "address": "::1"}
AUDITED |= {"operation": "POST /v1/instances"}
GROUPED = {**MADE, "status": "active", "paused": False, "image": "x" * 100, "revision": 1}
ROWS = {
    "ssh-key list": ("/ssh-keys", {**MADE, "type": "ssh-ed25519", "fingerprint": f"SHA256:{'x' * 43}"}),
    "preference list": ("/preferences", {"key": "editor", "value": "x" * 100, "updated_at": MADE["created_at"]}),
    "instance list": ("/instances", instance(labels={"x": "y" * 100})),
    "host list": ("/hosts", host()),
    "workflow list": ("/workflows", workflow(error={"code": "x", "message": "z" * 100})),
    "image list": ("/images", image()),
    "lb list": (
        "/lb",
        {**MADE, "status": "active", "mode": "http", "tls": None, "port": 80, "algorithm": "round-robin"}
        | {"targets": 2, "targets_up": 1, "host": "x" * 60},
    ),
    "type list": ("/instance-types", {"name": "", "vcpus": 0.5, "memory_mb": 128, "disk_gb": 4}),
    "webhook list": ("/webhooks", hook()),
    "cron list": ("/cron/jobs", cron_job()),
    "group list": ("/autoscaling/groups", GROUPED | {"ready_count": 1, "desired_count": 2}),
    "deployment list": ("/containers/deployments", GROUPED | {"ready_replicas": 1, "replicas": 2}),
    "project list": ("/projects", {**MADE, "unix_name": "x" * 32, "active": True, "deleting": False}),
    "role list": ("/rbac/roles", {"built_in": False, "permissions": ["instances:read"] * 30}),
    "key list": (
        "/auth/keys",
        {**MADE, "project_id": INSTANCE, "scopes": ["x" * 30] * 3, "last_used_at": None}
        | {"expires_at": None, "revoked_at": None},
    ),
    "user list": ("/users", {**MADE, "email": f"{'x' * 60}@example.org", "is_admin": False, "active": True}),
    "secret list": (
        "/secrets",
        {**MADE, "description": "x" * 100, "current_version": 1, "updated_at": MADE["created_at"]},
    ),
    "audit list": ("/audit", AUDITED),
    "agent list": (
        "/agents",
        {**MADE, "type": "custom", "model": "x" * 60, "is_default": True},
    ),
    "workspace list": (
        "/workspaces",
        {**MADE, "status": "ready", "ref": "x" * 60, "commit": "0" * 40, "size_bytes": 2048, "host": "rack-1"},
    ),
    "cache list": (
        "/cache-volumes",
        {**MADE, "status": "ready", "path": f"/{'x' * 100}", "hosts": ["rack-1"], "cleared_at": MADE["created_at"]},
    ),
    "session list": (
        "/sessions",
        {**MADE, "status": "running", "commit": "0" * 40, "network": {"mode": "none"}, "host": "x" * 60},
    ),
    "pool list": (
        "/pools",
        {**MADE, "status": "active", "ready": 1, "wanted": 2, "claimed": 3, "image": "x" * 100}
        | {"instance_type": "basic-1", "network": {"mode": "open"}},
    ),
    "credential list": (
        "/credentials",
        {**MADE, "type": "token", "host": "x" * 60, "username": "git", "rotated_at": MADE["created_at"]},
    ),
    "service-account list": ("/service-accounts", {**MADE, "description": "x" * 100}),
}
#: Lists that do not come from the API.
OFFLINE = ("context list", "faults list")
#: A list without pages: test_watching, test_workflows.
STREAMED = ("event list",)


def test_every_list_is_tried_below() -> None:
    assert {words for words in ALL if words.endswith(" list")} == {*ROWS, *OFFLINE, *STREAMED}


def scripted(api: FakeApi, words: str, many: int) -> None:
    path, row = ROWS[words]
    api.on(f"GET {path}", Answer(200, [{**row, "name": f"thing-{n}"} for n in range(many)]))


#: Each is a process. One notation of each list is tried each time, all of them with CAIRN_CHAOS=all.
NOTATIONS = ("table", "json", "yaml")
LEFT = [
    (words, output)
    for words in ROWS
    for output in (NOTATIONS if os.environ.get("CAIRN_CHAOS") == "all" else [CHANCE.choice(NOTATIONS)])
]


@pytest.mark.parametrize(("words", "output"), LEFT)
def test_a_reader_that_leaves_ends_a_list_quietly(
    api: FakeApi, words: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # with it, Python itself drops the error
    scripted(api, words, 3000)
    # Instance types are few, and come in one page.
    many = ["--limit", "3000"] if any("--limit" in param.opts for param in ALL[words].params) else []
    command = [*PROGRAM, *words.split(), *many, "-o", output]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
        assert writer.stdout
        assert writer.stderr
        writer.stdout.readline()
        writer.stdout.close()
        assert writer.wait(20) == Exit.BROKEN_PIPE
        assert writer.stderr.read() == b""


@pytest.mark.parametrize("words", ROWS)
def test_lists_are_the_same_data_in_every_notation(api: FakeApi, words: str) -> None:
    scripted(api, words, 3)
    rows = json.loads(cairn(*words.split(), "-o", "json").stdout)
    assert [row["name"] for row in rows] == ["thing-0", "thing-1", "thing-2"]
    assert yaml.safe_load(cairn(*words.split(), "-o", "yaml").stdout) == rows
    assert len(cairn(*words.split()).stdout.splitlines()) == 4


@pytest.mark.parametrize("words", OFFLINE)
def test_lists_of_this_machine_have_every_notation(words: str) -> None:
    rows = json.loads(cairn(*words.split(), "-o", "json").stdout)
    assert isinstance(rows, list)
    assert yaml.safe_load(cairn(*words.split(), "-o", "yaml").stdout) == rows


def test_text_that_looks_like_something_else_stays_text_in_yaml(api: FakeApi) -> None:
    odd = instance(labels={"a": "yes", "b": "1e3", "c": "2026-01-01", "d": "null", "e": "ä: [x]\n- y"})
    api.on(f"GET /instances/{INSTANCE}", Answer(200, odd))
    assert yaml.safe_load(cairn("instance", "show", INSTANCE, "-o", "yaml").stdout) == odd


# Each exit code of the table has something that ends with it; 130 and 141 are of test_program and above.
def test_exit_codes_are_those_of_the_table(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = workflow("failed", error={"code": "image_not_found", "message": "no such image", "step": "image.ensure"})
    taken = {"code": "name_taken", "message": "there is one"}
    api.on("GET /instances", Answer(200, [instance()]))
    api.on(f"GET /instances/{INSTANCE}", Answer(200, instance()))
    api.on(f"POST /instances/{INSTANCE}/stop", accepted(instance()))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, failed), Answer(200, workflow("running")))
    api.on("POST /instances", Answer(409, error=taken))
    cut = {"exit_code": 0, "stdout": "out", "stderr": "", "truncated": True}
    late = {"code": "command_timeout", "message": "the command was ended after 30 s"}
    api.on(f"POST /instances/{INSTANCE}/exec", Answer(504, error=late), Answer(200, cut))
    ends = {
        Exit.OK: cairn("instance", "stop", "web", "--no-wait"),
        Exit.FAILED: cairn("instance", "stop", "web"),
        Exit.USAGE: cairn("instance", "stop"),
        Exit.NOT_FOUND: cairn("instance", "stop", "nothing"),
        Exit.REFUSED: cairn("instance", "launch", "web"),
        Exit.TIMED_OUT: cairn("instance", "stop", "web", "--timeout", "0.2"),
        Exit.COMMAND_TIMED_OUT: cairn("instance", "exec", "web", "--", "sleep", "99"),
        Exit.OUTPUT_CUT: cairn("instance", "exec", "web", "--", "cat", "large"),
        Exit.UNREACHABLE: cairn("instance", "list", "--api-url", "http://127.0.0.1:9/v1"),
    }
    for exit, result in ends.items():
        assert result.exit_code == exit, result.stderr
        if exit not in (Exit.OK, Exit.USAGE, Exit.OUTPUT_CUT):
            assert "error: " in result.stderr
            assert "hint: " in result.stderr, exit
    assert set(ends) | {Exit.INTERRUPTED, Exit.BROKEN_PIPE} == set(Exit) == set(MEANINGS)


def test_the_table_of_exit_codes_is_shown_and_documented(request: pytest.FixtureRequest) -> None:
    shown = cairn("--help").stdout
    documented = (request.config.rootpath / "docs" / "cli.md").read_text()
    for code, meaning in MEANINGS.items():
        assert f"{code.value}  {meaning}" in " ".join(shown.split(" ")) or f"{code.value}  {meaning}" in shown
        assert f"| {code.value} | {meaning.replace('|', chr(92) + '|')} |" in documented


def test_every_error_of_the_platform_has_a_hint() -> None:
    from cli.errors import of_answer
    from cli.hints import BY_REQUEST
    from model import errors

    def below(family: type[errors.CairnError]) -> Iterator[type[errors.CairnError]]:
        yield family
        for each in family.__subclasses__():
            yield from below(each)

    codes = {each.code for each in below(errors.CairnError) if each.__module__ == errors.__name__}
    without = {code for code in codes if of_answer(409, {"code": code, "message": "m"}).hint is None}
    assert without == set(BY_REQUEST), "of these each request has its own, or none"


def test_every_command_is_documented(request: pytest.FixtureRequest) -> None:
    documented = (request.config.rootpath / "docs" / "cli.md").read_text()
    assert not [words for words in ALL if f"\n### cairn {words}\n" not in documented]


def test_options_of_all_commands_may_stand_before_and_after_them(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.on("GET /instances", Answer(200, []))
    monkeypatch.delenv("CAIRN_API_URL")
    for arguments in (["--api-url", api.url, "instance", "list"], ["instance", "list", "--api-url", api.url]):
        assert cairn(*arguments).exit_code == 0, arguments
    assert cairn("instance", "list").exit_code == Exit.UNREACHABLE, "what one run was given is forgotten by the next"
