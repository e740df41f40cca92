"""What users' URLs may reach: judged where it is connected to, however it is spelled."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_network
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from drivers import lookups, outbound
from model.errors import UrlRefused
from model.settings import Settings
from tests.services import eventually

ONE, OTHER = "127.0.0.1", "127.0.0.2"
ALLOWED = [ip_network(f"{ONE}/32")]
TIMEOUT = aiohttp.ClientTimeout(total=5)


class Servers:
    """The same pages on two addresses, and which requests came."""

    def __init__(self) -> None:
        self.port = 0
        self.heard: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.elsewhere = ""

    async def answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        self.heard.append((request.transport.get_extra_info("sockname")[0], request.path))
        self.headers.append(dict(request.headers))
        if request.path == "/away":
            return web.Response(status=302, headers={"Location": self.elsewhere})
        if request.path.startswith("/hops/"):
            left = int(request.path.removeprefix("/hops/"))
            if left:
                return web.Response(status=307, headers={"Location": f"/hops/{left - 1}"})
        return web.Response(text="here", headers={"Set-Cookie": "a=b; Path=/"})


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    made = Servers()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, ONE, 0)
    await site.start()
    made.port = runner.addresses[0][1]
    await web.TCPSite(runner, OTHER, made.port).start()
    yield made
    await runner.cleanup()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let names have addresses, each time the next; gives the list of those asked for."""

    def say(answers: dict[str, list[list[str]]]) -> list[str]:
        real, asked = socket.getaddrinfo, list[str]()

        def look_up(host: Any, port: Any, *args: Any, **more: Any) -> Any:
            if host not in answers:
                return real(host, port, *args, **more)
            asked.append(host)
            found = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
            family = {True: socket.AF_INET6, False: socket.AF_INET}
            return [
                (family[":" in one], socket.SOCK_STREAM, 6, "", (one, port, 0, 0) if ":" in one else (one, port))
                for one in found
            ]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        return asked

    return say


async def get(url: str, allow: outbound.Networks = ALLOWED) -> str:
    async with outbound.session(allow, timeout=TIMEOUT) as client, client.get(url) as response:
        return await response.text()


REFUSED = [
    *("127.0.0.1", "127.1", "127.255.255.254", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001"),
    *("0", "0.0.0.1", "10.0.0.1", "10.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254"),
    *("100.64.0.1", "100.127.255.255", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    *(
        "192.0.2.1",
        "198.18.0.1",
        "203.0.113.7",
        "localhost",
        "LOCALHOST",
    ),
    # Of clouds: metadata, and what is public by its number alone; relays; what gateways translate.
    *("100.100.100.200", "192.0.0.192", "168.63.129.16", "192.88.99.1", "[::ffff:168.63.129.16]"),
    *("[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::a9fe:a9fe]", "[::ffff:0:127.0.0.1]", "[2002:a83f:8110::1]"),
    *("[fe80::1%251]", "[::1%25lo]", "0300.0250.1.1", "0xC0A80101", "3232235777", "192.168.257"),
    # What a browser or a resolver may take for the same: full-width and circled digits, an ideographic full stop.
    *("\uff11\uff12\uff17.0.0.1", "\u2460\u2461\u2466.0.0.1", "127\u30020\u30020\u30021"),
    *("[::]", "[::1]", "[0:0:0:0:0:0:0:1]", "[::127.0.0.1]", "[fe80::1]", "[fe80::1%25lo]", "[fec0::1]", "[fc00::1]"),
    *("[fd00:ec2::254]", "[ff02::1]", "[2001:db8::1]", "[3fff::1]", "[100::1]", "[2001::1]", "[4000::1]"),
    *("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:10.0.0.1]", "[::ffff:169.254.169.254]"),
    *("[2002:7f00:1::]", "[2002:a9fe:a9fe::1]", "[64:ff9b::7f00:1]", "[64:ff9b::10.0.0.1]", "[64:ff9b:1::7f00:1]"),
]


@pytest.mark.parametrize("host", REFUSED)
async def test_what_is_not_public_is_refused_in_every_spelling(host: str) -> None:
    with pytest.raises(UrlRefused):
        await outbound.check(f"http://{host}:81/", [])
    with pytest.raises(UrlRefused):
        await get(f"http://{host}:81/", [])


@pytest.mark.parametrize("host", ["localhost.", "127.0.0.1.", "0x7f.1."])
async def test_a_dot_behind_it_helps_nobody(servers: Servers, host: str) -> None:
    with pytest.raises(UrlRefused):
        await outbound.check(f"http://{host}:81/", [])
    with pytest.raises((UrlRefused, aiohttp.ClientError)):
        await get(f"http://{host}:{servers.port}/", [])
    assert servers.heard == []


PUBLIC = [
    "1.1.1.1",
    "93.184.216.34",
    "[2606:4700::1111]",
    "[::ffff:1.1.1.1]",
    "[2002:101:101::1]",
    "[64:ff9b::101:101]",
]


@pytest.mark.parametrize("host", PUBLIC)
async def test_what_is_public_passes(host: str) -> None:
    await outbound.check(f"https://{host}/x", [])


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "ws://example.com/", "//example.com/"),
        *("example.com", "", "http://", "http:///path", "http://[::1", "http://example.com:99999/", "http://127.1/"),
        "http://example.com/" + "a" * outbound.MOST_URL,
        *("http://example.com:25/", "https://example.com:22/", "http://example.com:6667/", "http://1.1.1.1:53/"),
        *(
            "http://jo:word@example.com/",
            "http://jo@example.com/",
            "http://1.1.1.1@127.0.0.1/",
            "http://:@example.com/",
        ),
    ],
)
async def test_what_is_no_url_of_http_is_refused(url: str) -> None:
    with pytest.raises(UrlRefused):
        await outbound.check(url, [])


@pytest.mark.parametrize("url", ["ftp://1.1.1.1/", "file:///etc/passwd", "ws://1.1.1.1/"])
async def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises((UrlRefused, aiohttp.ClientError)):
        await get(url, [])


async def test_an_allowed_network_is_reached(servers: Servers) -> None:
    await outbound.check(f"http://{ONE}:{servers.port}/", ALLOWED)
    assert await get(f"http://{ONE}:{servers.port}/a") == "here"
    with pytest.raises(UrlRefused):
        await get(f"http://{OTHER}:{servers.port}/")
    assert servers.heard == [(ONE, "/a")]


@pytest.mark.parametrize("answer", [["10.0.0.1"], ["1.1.1.1", "127.0.0.2"], ["::1"], ["2606:4700::1111", "fd00::1"]])
async def test_a_name_with_one_private_address_is_refused(names: Any, answer: list[str]) -> None:
    names({"web.test": [answer]})
    with pytest.raises(UrlRefused, match=r"web\.test"):
        await outbound.check("http://web.test/", [])
    with pytest.raises(UrlRefused, match=r"web\.test"):
        await get("http://web.test/", [])


async def test_who_names_it_is_not_told_the_address(names: Any) -> None:
    names({"web.test": [["10.1.2.3"]]})
    with pytest.raises(UrlRefused) as refused:
        await outbound.check("http://web.test/", [])
    assert "10.1.2.3" not in refused.value.message


async def test_slow_names_of_one_owner_keep_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, asked = threading.Event(), list[str]()

    def look_up(host: Any, *_: Any, **__: Any) -> Any:
        asked.append(host)
        if host.startswith("slow"):
            answers.wait(10)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("1.1.1.1", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    slow = [asyncio.create_task(outbound.check(f"http://slow-{n}.test/", [], "mallory")) for n in range(40)]
    await asyncio.sleep(0.2)
    assert len(asked) == lookups.AT_ONCE
    for task in slow:  # whoever gives up leaves its lookup behind
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    again = asyncio.create_task(outbound.check("http://slow-again.test/", [], "mallory"))
    async with asyncio.timeout(2):
        await outbound.check("http://quick.test/", [], "alice")
    assert len(asked) == lookups.AT_ONCE + 1
    answers.set()
    async with asyncio.timeout(2):
        await again
    assert await eventually(lambda: not lookups._under_way)


async def test_a_name_that_is_not_known_passes_the_check(names: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    await outbound.check("http://nowhere.test/", [])
    with pytest.raises(aiohttp.ClientConnectorError):
        await get("http://nowhere.test/", [])


async def test_a_name_that_changes_after_the_check_is_refused_at_the_connection(servers: Servers, names: Any) -> None:
    names({"web.test": [[ONE], [OTHER]]})
    await outbound.check(f"http://web.test:{servers.port}/", ALLOWED)
    with pytest.raises(UrlRefused):
        await get(f"http://web.test:{servers.port}/")
    assert servers.heard == []


async def test_the_address_that_was_judged_is_the_one_connected_to(servers: Servers, names: Any) -> None:
    asked = names({"web.test": [[ONE], [OTHER]]})
    assert await get(f"http://web.test:{servers.port}/a") == "here"
    assert asked == ["web.test"]
    assert servers.heard == [(ONE, "/a")]


async def test_every_request_of_a_session_is_judged(servers: Servers, names: Any) -> None:
    names({"web.test": [[ONE], [OTHER]]})
    async with outbound.session(ALLOWED, timeout=TIMEOUT) as client:
        (await client.get(f"http://web.test:{servers.port}/", headers={"Connection": "close"})).close()
        with pytest.raises(UrlRefused):
            await client.get(f"http://web.test:{servers.port}/")


@pytest.mark.parametrize(
    "elsewhere",
    [
        *("http://{other}:{port}/", "//{other}:{port}/", "http://name.test:{port}/", "http://2130706434:{port}/"),
        *("http://{one}:25/", "http://jo:word@{one}:{port}/", "http://{one}@{other}:{port}/"),
        *("http://[::ffff:{other}]:{port}/", "ftp://{one}/", "file:///etc/passwd", "http://[::1"),
    ],
)
async def test_a_redirect_is_judged_like_the_first_url(servers: Servers, names: Any, elsewhere: str) -> None:
    names({"name.test": [[OTHER]]})
    servers.elsewhere = elsewhere.format(one=ONE, other=OTHER, port=servers.port)
    with pytest.raises(UrlRefused):
        await get(f"http://{ONE}:{servers.port}/away")
    assert servers.heard == [(ONE, "/away")]


async def test_three_redirects_and_no_more(servers: Servers) -> None:
    assert await get(f"http://{ONE}:{servers.port}/hops/3") == "here"
    with pytest.raises(UrlRefused, match="more than 3"):
        await get(f"http://{ONE}:{servers.port}/hops/4")


async def test_the_environment_names_no_proxy_and_cookies_are_not_kept(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setitem(os.environ, name, f"http://{OTHER}:{servers.port}")
    async with outbound.session(ALLOWED, timeout=TIMEOUT) as client:
        for _ in range(2):
            async with client.get(f"http://{ONE}:{servers.port}/") as response:
                assert response.status == 200
    assert [address for address, _ in servers.heard] == [ONE, ONE]
    assert "Cookie" not in servers.headers[1]
    assert servers.headers[0]["Accept-Encoding"] == "identity"


def test_the_setting_is_a_list_of_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().outbound_allow == ()
    monkeypatch.setenv("CAIRN_OUTBOUND_ALLOW", "127.0.0.0/8, fd00::/8")
    assert Settings().outbound_allow == (ip_network("127.0.0.0/8"), ip_network("fd00::/8"))
