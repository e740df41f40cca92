"""Which registry a reference means, and whether engines are sent there."""

from __future__ import annotations

import time
from ipaddress import ip_network

import pytest

from drivers import registries
from drivers.docker_pull import refusal
from drivers.images import full_name, is_ours
from drivers.registries import Place
from model.errors import EngineUnavailable, ImageNotFound, RegistryBusy, UrlRefused
from tests.drivers.conftest import LOOPBACK
from tests.registry import Registry

ID = "0199b3f0-0000-7000-8000-000000000001"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("nginx", Place(None, "library/nginx", "latest")),
        ("docker.io/team/web:1", Place(None, "team/web", "1")),
        ("index.docker.io/nginx", Place(None, "library/nginx", "latest")),
        ("localhost/web", Place("localhost", "web", "latest")),
        ("METADATA/web", Place("METADATA", "web", "latest")),
        ("r.example:5000/a/b@sha256:1", Place("r.example:5000", "a/b", "sha256:1")),
    ],
)
def test_place(reference: str, expected: Place) -> None:
    assert registries.place(reference) == expected


@pytest.mark.parametrize("host", ["127.0.0.1:5000", "localhost:80", "2130706433:80", "0x7f.1:80", "10.1.2.3"])
def test_registries_inside_are_refused(host: str) -> None:
    with pytest.raises(UrlRefused):
        registries.check(f"{host}/web", [])


async def test_addresses_are_refused_at_once_and_names_are_left_to_the_host() -> None:
    for host in ("127.0.0.1:5000", "2130706433:80", "10.1.2.3"):
        with pytest.raises(UrlRefused):
            await registries.check_address(f"{host}/web", [])
    for reference in ("nginx", "team/web", "r.example/web", "localhost:80/web"):
        await registries.check_address(reference, [])
    await registries.check_address("10.1.2.3:5000/web", [ip_network("10.0.0.0/8")])


def test_names_as_engines_list_them() -> None:
    assert full_name("nginx") == full_name("docker.io/library/nginx:latest") == "nginx:latest"
    assert full_name("127.0.0.1:5000/web") == "127.0.0.1:5000/web:latest"
    assert full_name("index.docker.io/team/web@sha256:1") == full_name("team/web:1@sha256:1") == "team/web@sha256:1"
    for prefix in ("", "docker.io/", "index.docker.io/"):
        assert is_ours(f"{prefix}cairn/{ID}:0123456789ab")
        assert is_ours(f"{prefix}cairn/{ID}")
    assert not is_ours("cairn/base:latest")
    assert not is_ours(f"r.example/cairn/{ID}")


@pytest.mark.parametrize("said", ["\u00b2", "\u0661", "-1", "1.5", "", "soon"])
def test_time_to_wait_that_is_none(said: str) -> None:
    assert registries.seconds(said) is None


def test_time_to_wait_is_asked_of_a_registry_that_may_be_asked() -> None:
    registry = Registry()
    try:
        registry.busy_until, registry.retry_after = time.monotonic() + 60, 7
        assert registries.retry_after(f"{registry.host}/web:1", LOOPBACK) == 7
        assert registries.retry_after(f"{registry.host}/web:1", []) is None
    finally:
        registry.close()


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        ("manifest for r.example/web:1 not found: manifest unknown", ImageNotFound),
        ("pull access denied, repository does not exist", ImageNotFound),
        ("received unexpected HTTP status: 500 Internal Server Error", EngineUnavailable),
        ("Get https://r.example/v2/: net/http: TLS handshake timeout", EngineUnavailable),
        ("toomanyrequests: slow down", RegistryBusy),
        ("error parsing HTTP 404 response body: invalid character 'p': \"secret\"", ImageNotFound),
    ],
)
def test_what_an_engine_says_is_told_in_our_words(failure: str, kind: type[Exception]) -> None:
    error = refusal("r.invalid/web:1", f"{failure} secret", [])
    assert type(error) is kind
    assert "secret" not in str(error)
    assert "r.invalid/web:1" in str(error)


def test_a_host_that_is_not_known_is_named() -> None:
    failure = "Get https://r.invalid:5000/v2/: dial tcp: lookup r.invalid on 10.0.0.2:53: no such host"
    assert "its host r.invalid:5000 is not known" in str(refusal("r.invalid:5000/web:1", failure, []))
