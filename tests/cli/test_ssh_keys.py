"""Keys on the command line, and what a launch says of an instance's life."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.errors import Exit
from tests.cli.fake import WHEN, Answer, FakeApi, accepted, cairn, instance

ID = "0199b3f0-0000-7000-8000-0000000000aa"
PUBLIC = "ssh-ed25519 AAAA me"
KEY = {
    "id": ID,
    "name": "laptop",
    "type": "ssh-ed25519",
    "public_key": PUBLIC,
    "fingerprint": "SHA256:abc",
    "created_at": WHEN,
}


def test_add_sends_the_file(api: FakeApi, tmp_path: Path) -> None:
    file = tmp_path / "id.pub"
    file.write_text(f"{PUBLIC}\n")
    api.on("POST /ssh-keys", Answer(201, KEY))
    result = cairn("ssh-key", "add", "laptop", str(file))
    assert result.exit_code == 0
    assert "SHA256:abc" in result.stdout
    assert api.requests[0].body == {"name": "laptop", "public_key": PUBLIC}


@pytest.mark.parametrize("secret", ["-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2", "PuTTY-User-Key-File-3: hunter2"])
def test_private_key_leaves_this_machine_never(api: FakeApi, tmp_path: Path, secret: str) -> None:
    file = tmp_path / "id"
    file.write_text(secret)
    file.with_suffix(".pub").write_text(PUBLIC)
    result = cairn("ssh-key", "add", "laptop", str(file))
    assert result.exit_code == Exit.USAGE
    assert "private key" in result.stderr
    assert f"{file}.pub" in result.stderr
    assert "hunter2" not in result.output
    assert api.requests == []


def test_list_show_and_rm(api: FakeApi) -> None:
    api.on("GET /ssh-keys", Answer(200, [KEY]))
    api.on(f"DELETE /ssh-keys/{ID}", Answer(204, raw=b""))
    assert "SHA256:abc" in cairn("ssh-key", "list").stdout
    assert json.loads(cairn("ssh-key", "show", "laptop", "-o", "json").stdout) == KEY
    assert cairn("ssh-key", "rm", "laptop").exit_code == 0
    assert len(api.seen(f"DELETE /ssh-keys/{ID}")) == 1
    missing = cairn("ssh-key", "show", "desktop")
    assert (missing.exit_code, "cairn ssh-key list" in missing.stderr) == (Exit.NOT_FOUND, True)


def test_launch_with_all_of_it(api: FakeApi, tmp_path: Path) -> None:
    script = tmp_path / "init.sh"
    script.write_text("#!/bin/sh\necho\n")
    api.on("GET /ssh-keys", Answer(200, [KEY]))
    api.on("POST /instances", accepted(instance()))
    options = f"--ttl 8h --idle-stop 30m --restart on-failure:3 --user-data {script} --ssh-key laptop"
    options += " --health http:80/ready --health-interval 5s --health-timeout 2s --health-retries 4"
    result = cairn("instance", "launch", "web", "--no-wait", *options.split(), "--health-start-period", "1m")
    assert result.exit_code == 0, result.stderr
    assert api.seen("POST /instances")[0].body == {
        "name": "web",
        "image": "cairn/base:latest",
        "ttl_seconds": 28800,
        "idle_stop_seconds": 1800,
        "restart_policy": "on-failure:3",
        "user_data": "#!/bin/sh\necho\n",
        "ssh_key_id": ID,
        "health_check": {
            "type": "http",
            "port": 80,
            "path": "/ready",
            "interval_seconds": 5,
            "timeout_seconds": 2,
            "retries": 4,
            "start_period_seconds": 60,
        },
    }


@pytest.mark.parametrize(
    ("written", "check"),
    [
        ("tcp:5432", {"type": "tcp", "port": 5432}),
        ("http:80", {"type": "http", "port": 80}),
        ("exec:test -e '/a b'", {"type": "exec", "command": ["test", "-e", "/a b"]}),
    ],
)
def test_health_checks_as_they_are_written(api: FakeApi, written: str, check: dict[str, object]) -> None:
    api.on("POST /instances", accepted(instance()))
    cairn("instance", "launch", "web", "--no-wait", "--health", written)
    assert api.requests[0].body["health_check"] == check


@pytest.mark.parametrize(
    "options",
    [
        ["--ttl", "8"],
        ["--idle-stop", "0s"],
        ["--health", "ping"],
        ["--health", "http:²/x"],
        ["--health", "http"],
        ["--health", "tcp:80/ready"],
        ["--health", "exec:"],
        ["--health", "exec:'"],
        ["--health-retries", "3"],
        ["--user-data", "/nowhere/at/all"],
    ],
)
def test_nonsense_is_refused_before_anything_is_sent(api: FakeApi, options: list[str]) -> None:
    assert cairn("instance", "launch", "web", *options).exit_code == Exit.USAGE
    assert api.requests == []


def test_show_says_how_it_lives(api: FakeApi) -> None:
    check = {"type": "http", "port": 80, "path": "/ready", "interval_seconds": 5}
    more = {"health_check": check, "health": "unhealthy", "expires_at": WHEN, "restart_policy": "always"}
    api.on("GET /instances", Answer(200, [instance(**more, idle_stop_seconds=60, active_at=WHEN)]))
    shown = cairn("instance", "show", "web").stdout
    for expected in ("unhealthy", "http port 80/ready, every 5 s", WHEN, "always", "after 60s, last active"):
        assert expected in shown, shown
