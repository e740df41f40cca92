"""What is a URL of a repository, and what git or a shell would take for something else."""

from __future__ import annotations

import pytest

from model.errors import UrlRefused
from model.git_urls import GitUrl, check_ref, parse

HOSTILE = [
    "ext::sh -c touch% /tmp/evil",
    "file:///etc",
    "/srv/repositories/shop.git",
    "../shop.git",
    "git@example.org:team/shop.git",
    "git://example.org/shop.git",
    "http://example.org/shop.git",
    "-oProxyCommand=touch /tmp/evil",
    "ssh://-oProxyCommand=touch@example.org/shop.git",
    "ssh://-oProxyCommand=evil/shop.git",
    "https://-evil.example.org/shop.git",
    "https://user:password@example.org/shop.git",
    "https://token@example.org/shop.git",
    "https://example.org@169.254.169.254/shop.git",
    "https://169.254.169.254/latest/meta-data",
    "https://2130706433/shop.git",
    "https://0x7f.1/shop.git",
    "https://[::1]/shop.git",
    "https://example.org/../../etc/passwd",
    "https://example.org/a/%2e%2e/b.git",
    "https://example.org/team/--upload-pack=evil",
    "https://example.org/shop.git\nhttps://evil.example",
    "https://example.org/shop.git\x00",
    "https://example.org/shop.git?x=1",
    "https://example.org/shop.git#x",
    "https://example.org/",
    "https:///shop.git",
    "https://example.org:0/shop.git",
    "https://example.org:99999/shop.git",
    "https://exämple.org/shop.git",
    "https://example.org\\@evil.example/shop.git",
    "HTTPS://example.org/shop.git",
    f"https://example.org/{'a' * 2000}.git",
]


@pytest.mark.parametrize("url", HOSTILE)
def test_hostile_url_is_refused(url: str) -> None:
    with pytest.raises(UrlRefused):
        parse(url)


def test_usual_urls_are_taken_apart() -> None:
    assert parse("https://git.example.org/team/shop.git") == GitUrl(
        "https", "git.example.org", 443, None, "/team/shop.git"
    )
    assert parse("https://localhost:8443/a").port == 8443
    assert parse("ssh://git@git.example.org:2222/team/shop.git") == GitUrl(
        "ssh", "git.example.org", 2222, "git", "/team/shop.git"
    )


@pytest.mark.parametrize(
    "ref", ["-x", "--upload-pack=x", "a..b", "a b", "a~1", "a^{}", "a:b", "x.lock", "a//b", "@{u}", ""]
)
def test_what_is_no_ref_is_refused(ref: str) -> None:
    with pytest.raises(ValueError, match="expected the name"):
        check_ref(ref)


@pytest.mark.parametrize("ref", ["main", "release/1.2", "v1.0.0", "feature/a_b-c", "c" * 40])
def test_usual_refs_pass(ref: str) -> None:
    assert check_ref(ref) == ref
