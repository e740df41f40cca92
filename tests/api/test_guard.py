"""Which names the API goes by, which pages may use it, whose word counts for an address; what answers tell browsers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any

import pytest
import pytest_asyncio
import websockets
from starlette.datastructures import Headers
from websockets.asyncio.client import connect as open_socket

from api.addresses import address_of, bucket_of, came_by_https
from api.guard import _check_origin
from model.errors import Forbidden
from model.settings import Settings
from tests.api.conftest import Api, no_temporal, served
from tests.services import Database

PAGE = "https://app.example.org"
TRUSTED = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


@pytest_asyncio.fixture
async def guarded(database: Database) -> AsyncIterator[Api]:
    """An API that goes by two names, is used by one page, and has a proxy on this machine."""
    given: dict[str, Any] = {
        "allowed_hosts": "127.0.0.1,cairn.example.org,*.cairn.test",
        "cors_origins": PAGE,
        "trusted_proxies": "127.0.0.0/8",
    }
    async with served(database, await no_temporal(), **given) as api:
        yield api


async def test_names_pages_and_headers(guarded: Api) -> None:
    get = guarded.http.get
    for name in ("cairn.example.org", "CAIRN.example.org:8443", "a.cairn.test", "cairn.example.org."):
        assert (await get("/v1/instances", headers={"Host": name})).status_code == 200, name
    for name in ("evil.example.org", "cairn.test", "xcairn.test", "cairn.example.org.evil.org", "[::1]"):
        refused = await get("/v1/instances", headers={"Host": name})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "malformed"), name
    for path in ("/health/live", "/metrics"):
        assert (await get(path, headers={"Host": "10.0.0.7:8080"})).status_code == 200

    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    preflight = await guarded.http.options("/v1/instances", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert "access-control-allow-credentials" not in preflight.headers
    assert (await get("/v1/instances", headers={"Origin": PAGE})).headers["access-control-allow-origin"] == PAGE
    for other in ("https://evil.example.org", "http://app.example.org", "null"):
        refused = await guarded.http.options("/v1/instances", headers=asked | {"Origin": other})
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers
        assert "access-control-allow-origin" not in (await get("/v1/instances", headers={"Origin": other})).headers

    plain = await get("/v1/instances")
    assert plain.headers["cache-control"] == "no-store"
    assert "strict-transport-security" not in plain.headers
    encrypted = await get("/v1/instances", headers={"X-Forwarded-Proto": "https"})
    assert encrypted.headers["strict-transport-security"] == "max-age=31536000"
    for path in ("/v1/instances", "/v1/nowhere", "/nowhere", "/health/live", "/openapi.json", "/docs"):
        headers = (await get(path)).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert ("cdn.jsdelivr.net" in headers["content-security-policy"]) == (path == "/docs")


async def test_websockets_are_opened_by_pages_that_may(guarded: Api) -> None:
    url = guarded.url.replace("http", "ws") + "/v1/ws/events"
    key = {"X-API-Key": guarded.db.api_key}
    own = guarded.url
    for headers in (key, key | {"Origin": PAGE}, key | {"Origin": own}):
        async with open_socket(url, additional_headers=headers):
            pass
    for page in ("https://evil.example.org", "null", own.replace("127.0.0.1", "127.0.0.2"), own[:-1] + "x"):
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with open_socket(url, additional_headers=key | {"Origin": page}):
                pass
        assert refused.value.response.status_code == 403, page
        assert b'"forbidden"' in refused.value.response.body


async def test_by_itself_no_page_of_another_origin_may_anything(shared_api: Api) -> None:
    answer = await shared_api.http.get("/v1/instances", headers={"Origin": PAGE, "X-Forwarded-Proto": "https"})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert "strict-transport-security" not in answer.headers


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        *(("http://x.org", "x.org"), ("https://x.org", "x.org"), ("https://x.org", "x.org:443")),
        *(("http://x.org:8080", "x.org:8080"), ("http://[::1]:8080", "[::1]:8080"), ("https://X.org", "x.ORG")),
    ],
)
def test_the_same_origin_may_open_websockets(origin: str, host: str) -> None:
    _check_origin(Headers({"origin": origin, "host": host}), ())


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        *(("http://y.org", "x.org"), ("http://x.org:8081", "x.org:8080"), ("ftp://x.org", "x.org"), ("", "")),
        *(("http://x.org@y.org", "x.org"), ("http://x.org:port", "x.org"), ("file://", "")),
    ],
)
def test_no_other_may(origin: str, host: str) -> None:
    with pytest.raises(Forbidden):
        _check_origin(Headers({"origin": origin, "host": host}), ())


@pytest.mark.parametrize("said", ["*", "app.example.org", "https://app.example.org/", "ftp://app.example.org"])
def test_origins_are_origins(said: str) -> None:
    with pytest.raises(ValueError, match="scheme://host"):
        Settings(cors_origins=said)


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),  # no proxy of ours: whatever it says
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "1.2.3.4, 198.51.100.1", "198.51.100.1"),  # what the client itself wrote is left of it
        ("10.0.0.1", "198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "1.2.3.4, nonsense, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        ("fd00::1", "[2001:db8::7]:4711", "2001:db8::7"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
    ],
)
def test_a_proxy_that_is_trusted_says_who_asks(peer: str, forwarded: str | None, address: str) -> None:
    headers = [] if forwarded is None else [(b"x-forwarded-for", forwarded.encode())]
    assert address_of({"type": "http", "client": (peer, 1), "headers": headers}, TRUSTED) == address
    said = {"type": "http", "client": (peer, 1), "headers": [(b"x-forwarded-proto", b"https")]}
    assert came_by_https(said, TRUSTED) == (peer != "203.0.113.9")
    assert address_of({"type": "http", "client": None, "headers": headers}, TRUSTED) == ""


def test_two_header_lines_are_one_list() -> None:
    headers = [(b"x-forwarded-for", b"1.2.3.4"), (b"x-forwarded-for", b"198.51.100.1")]
    assert address_of({"type": "http", "client": ("10.0.0.1", 1), "headers": headers}, TRUSTED) == "198.51.100.1"


def test_addresses_of_one_network_of_ipv6_are_counted_as_one() -> None:
    assert bucket_of("2001:db8:1:2:3::4") == bucket_of("2001:db8:1:2::9") == "2001:db8:1:2::/64"
    assert bucket_of("203.0.113.9") == "203.0.113.9"
