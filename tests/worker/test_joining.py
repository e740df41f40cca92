"""How a machine joins: what is kept when, and what a crash or a lost answer leaves."""

from __future__ import annotations

import os
import stat
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.base import new_id
from model.secrets import digest
from worker import identity, joining
from worker.identity import Identity
from worker.joining import JoinError, Wanted

FACTS: dict[str, Any] = {"capacity": {"cpus": 2, "memory_mb": 1024}, "labels": {}, "versions": {}}
FIRST = "one"
URL = "http://127.0.0.1:1/v1"


class Refused(Exception):
    """What the platform says no with."""


class Platform:
    """Answers as the API does. ``fails``: raised after the request was written down, as a lost answer is."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.fails: BaseException | None = None
        self.look: Callable[[], None] = lambda: None

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(body)
        self.look()
        if self.fails:
            raise self.fails
        return {
            "id": str(new_id()),
            "name": body["name"],
            "installation": str(new_id()),
            "temporal_address": "127.0.0.1:7233",
            "temporal_namespace": "fleet",
            "ticket_keys": ["PEM"],
        }


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return identity.path_of(tmp_path / "data", "rack-1")


def join(path: Path, platform: Platform, token: str | None = FIRST, **more: Any) -> Identity:
    wanted = Wanted(name="rack-1", api_url=more.pop("api_url", URL), token=token, **more)
    return joining.join(path, wanted, FACTS, platform.ask, Refused)


def test_keys_are_kept_before_they_are_told(path: Path, platform: Platform) -> None:
    def look() -> None:
        kept = identity.read(path)
        assert kept is not None
        assert kept.membership is None
        assert b64encode(kept.keys.public_key).decode() == platform.asked[0]["public_key"]
        assert kept.keys.fingerprint.hex() == platform.asked[0]["fingerprint"]
        assert digest(kept.next_credential or "").hex() == platform.asked[0]["credential_digest"]

    platform.look = look
    joined = join(path, platform)
    assert joined == identity.read(path)
    assert joined.membership is not None
    assert digest(joined.membership.credential).hex() == platform.asked[0]["credential_digest"]
    assert joined.next_credential is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in path.parents[:2]] == [0o700, 0o700]
    assert "one" not in path.read_text(), "the token itself is kept nowhere"


def test_a_lost_answer_is_asked_for_again_with_the_same_keys(path: Path, platform: Platform) -> None:
    platform.fails = ConnectionError()
    with pytest.raises(ConnectionError):
        join(path, platform)
    platform.fails = None
    join(path, platform)
    first, second = platform.asked
    assert first == second


def test_a_host_that_has_joined_asks_nothing(path: Path, platform: Platform) -> None:
    joined = join(path, platform)
    assert join(path, platform, token="one") == joined
    assert join(path, platform, token=None, api_url=None) == joined
    assert join(path, platform, token="one", rotate=True) == joined, "the token was used for this already"
    assert len(platform.asked) == 1


def test_a_host_that_has_not_joined_needs_a_token_and_an_address(path: Path, platform: Platform) -> None:
    with pytest.raises(JoinError, match="--token"):
        join(path, platform, token=None)
    with pytest.raises(JoinError, match="--url"):
        join(path, platform, api_url=None)
    assert not path.exists()


def test_another_token_gives_another_credential_to_the_same_keys(path: Path, platform: Platform) -> None:
    before = join(path, platform)
    after = join(path, platform, token="two")
    assert after.keys == before.keys
    assert after.membership is not None
    assert before.membership is not None
    assert after.membership.credential != before.membership.credential
    assert join(path, platform, token="one") == after, "an older token in a unit file changes nothing"


def test_rotation_takes_effect_at_once_or_not_at_all(path: Path, platform: Platform) -> None:
    before = join(path, platform)
    platform.fails = ConnectionError()
    with pytest.raises(ConnectionError):
        join(path, platform, token="two", rotate=True)
    kept = identity.read(path)
    assert kept is not None
    assert (kept.keys, kept.membership) == (before.keys, before.membership)
    assert join(path, platform, token=None) == kept, "it goes on as it was"
    platform.fails = None
    after = join(path, platform, token="two")
    assert platform.asked[1]["public_key"] == platform.asked[2]["public_key"]
    assert after.keys == kept.next_keys
    assert after.keys != before.keys
    assert after.next_keys is None


def test_a_refused_rotation_leaves_everything_as_it_was(path: Path, platform: Platform) -> None:
    before = join(path, platform)
    platform.fails = Refused()
    with pytest.raises(Refused):
        join(path, platform, token="two", rotate=True)
    assert identity.read(path) == before
    platform.fails = ConnectionError()
    with pytest.raises(ConnectionError):
        join(path, platform, token="three", rotate=True)
    asked = identity.read(path)
    platform.fails = Refused()
    with pytest.raises(Refused):
        join(path, platform, token="four", rotate=True)
    assert identity.read(path) == asked, "the platform may have taken these"


def test_two_at_once_make_one_pair_of_keys(path: Path, platform: Platform) -> None:
    platform.look = lambda: time.sleep(0.05)
    threads = [threading.Thread(target=join, args=(path, platform)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(platform.asked) == 1


def test_options_and_a_new_address_are_remembered(path: Path, platform: Platform) -> None:
    join(path, platform, options={"CAIRN_DOCKER_HOST": "unix:///a", "CAIRN_AGENT_PORT": "7000"})
    kept = join(path, platform, token=None, api_url="https://b/v1", options={"CAIRN_DOCKER_HOST": "unix:///b"})
    assert kept.options == {"CAIRN_DOCKER_HOST": "unix:///b", "CAIRN_AGENT_PORT": "7000"}
    assert kept.membership is not None
    assert kept.membership.api_url == "https://b/v1"
    assert identity.read(path) == kept


def test_where_temporal_is_now_is_remembered_with_all_else(path: Path, platform: Platform) -> None:
    joining.remember_temporal(path, "nowhere:1")
    assert identity.read(path) is None
    before = join(path, platform)
    joining.remember_temporal(path, "elsewhere:7233")
    after = identity.read(path)
    assert after is not None
    assert after.membership is not None
    assert before.membership is not None
    assert after.membership == before.membership.model_copy(update={"temporal_address": "elsewhere:7233"})
    assert after.keys == before.keys


def test_an_agent_gets_its_options_and_no_key_of_the_platform(path: Path, platform: Platform) -> None:
    kept = join(path, platform, options={"CAIRN_TEMPORAL_ADDRESS": "temporal:7233"})
    keys = ("CAIRN_API_KEY", "CAIRN_JOIN_TOKEN", "CAIRN_DATABASE_URL", "CAIRN_TICKET_KEY", "cairn_ticket_key_other")
    more = ("CAIRN_MASTER_KEYS", "CAIRN_MASTER_KEYS_FILE", "CAIRN_OWNER_PASSWORD_FILE", "CAIRN_SMTP_URL")
    environ = dict.fromkeys((*keys, *more), "k") | {"CAIRN_LOG_LEVEL": "debug", "CAIRN_METRICS_TOKEN": "its own"}
    assert joining.agent_environ(path, kept, environ) == {
        "CAIRN_LOG_LEVEL": "debug",
        "CAIRN_METRICS_TOKEN": "its own",
        "CAIRN_TEMPORAL_ADDRESS": "temporal:7233",
        "CAIRN_TEMPORAL_NAMESPACE": "fleet",
        "CAIRN_AGENT_IDENTITY": str(path),
    }


def test_one_agent_per_identity(path: Path, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = join(path, platform)
    started: list[str] = []
    monkeypatch.setattr(os, "execve", lambda program, _argv, _environ: started.append(program.name))
    joining.run_agent(path, kept, {})
    with pytest.raises(JoinError, match="runs already"):
        joining.run_agent(path, kept, {})
    assert started == ["cairn-agent"]
    other = identity.path_of(path.parents[1], "rack-2")
    other.parent.mkdir(exist_ok=True)
    joining.run_agent(other, kept, {})
    assert len(started) == 2


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-a", "a b", "a" * 64, "embedded", "sim-7", "é"])
def test_a_name_that_no_host_may_have(name: str) -> None:
    with pytest.raises(JoinError):
        joining.checked_name(name)


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://a:8080", "http://a:8080/v1"),
        ("http://a:8080/", "http://a:8080/v1"),
        ("https://a/v1/", "https://a/v1"),
        ("https://a/cairn", "https://a/cairn/v1"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
    ],
)
def test_an_address_with_or_without_v1(url: str, root: str) -> None:
    assert joining.api_root(url) == root


@pytest.mark.parametrize("url", ["", "a:8080", "ftp://a", "http://", "http://a?x=1", "http://[::1", "http://a:x"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(JoinError):
        joining.api_root(url)
