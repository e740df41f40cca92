"""URLs of repositories, as far as one can judge them by looking: https and ssh, and nothing that git would take for
something else."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from model.errors import UrlRefused

MOST_URL, MOST_REF = 2000, 255
Scheme = Literal["https", "ssh"]
PORTS: dict[Scheme, int] = {"https": 443, "ssh": 22}
_SCHEMES: tuple[Scheme, ...] = ("https", "ssh")
#: A DNS name, of which every label is one (RFC 1123); underscores are none.
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*")
#: What ends so a system takes for an address: 127.1, 0x7f000001, 2130706433.
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~+@%-]+)+/?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: See git-check-ref-format; narrower.
_REF = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._/+#@=-]*[A-Za-z0-9_+#=-])?")


class GitUrl(NamedTuple):
    """A URL taken apart. ``user``: of ssh."""

    scheme: Scheme
    host: str
    port: int
    user: str | None
    path: str


def parse(url: str) -> GitUrl:
    """Raises UrlRefused, which says why."""
    if len(url) > MOST_URL:
        raise UrlRefused(f"the URL has more than {MOST_URL} characters")
    if not url.isascii() or not url.isprintable() or set(url) & set(' \\"<>^`{|}'):
        raise UrlRefused("the URL has characters that no URL has: spaces, control characters, or others than ASCII")
    scheme = next((one for one in _SCHEMES if url.startswith(f"{one}://")), None)
    if scheme is None:
        raise UrlRefused(
            "expected https://HOST/PATH or ssh://USER@HOST/PATH: no other scheme, no folder, and not git@HOST:PATH"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UrlRefused(f"not a URL: {error}") from None
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise UrlRefused("the URL of a repository has no query and no fragment")
    user = _user(scheme, parts.netloc, parts.username, parts.password)
    if port == 0:
        raise UrlRefused("port 0 is none")
    if not _PATH.fullmatch(parts.path):
        raise UrlRefused("the path of the URL names no repository: expected /OWNER/NAME or the like")
    words = parts.path.lower().replace("%2e", ".").replace("%2f", "/").split("/")
    if ".." in words or "." in words or any(word.startswith("-") for word in words) or "%00" in parts.path:
        raise UrlRefused("the path of the URL has a part that leads elsewhere: '..', '.', or one that begins with '-'")
    return GitUrl(scheme, _host(parts.hostname or ""), port or PORTS[scheme], user, parts.path)


def _user(scheme: Scheme, netloc: str, user: str | None, password: str | None) -> str | None:
    if password is not None or (scheme == "https" and "@" in netloc):
        raise UrlRefused(
            "the URL holds a name or password, which all who see the workspace would see: make a credential"
        )
    if user is not None and not _USER.fullmatch(user):
        raise UrlRefused("the user of the URL is none that a server of git has")
    return user


def _host(host: str) -> str:
    if _NAME.fullmatch(host) and not _NUMBER.fullmatch(host.rpartition(".")[2]):
        return host
    raise UrlRefused(f"'{host[:100]}' is not the name of a server: an address is none")


def check_host(host: str) -> str:
    """The name of a server, of a credential. Raises UrlRefused."""
    return _host(host.lower())


def check_ref(ref: str) -> str:
    """A branch, a tag, or a whole commit id. Raises ValueError."""
    wrong = ("..", "//", "@{", "/.", "./", ".lock/")
    if len(ref) > MOST_REF or not _REF.fullmatch(ref) or ref.endswith(".lock") or any(part in ref for part in wrong):
        raise ValueError("expected the name of a branch or a tag, or a commit's whole id")
    return ref


def is_commit(ref: str) -> bool:
    """Whether it is the whole id of one."""
    return _COMMIT.fullmatch(ref) is not None
