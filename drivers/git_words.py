"""What git is told, and what it says: settings that are the same for every repository, its progress, its last words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal
from urllib.parse import quote

from model.git_urls import GitUrl
from model.sessions import FileChange
from model.workspaces import GitLogin

#: Where a sandbox finds what is in no image and no argument: settings, and the values of a credential.
FOLDER = "/run/cairn"
ENVIRONMENT = {
    "HOME": "/tmp",  # noqa: S108 - of a container of its own
    "GIT_CONFIG_GLOBAL": f"{FOLDER}/gitconfig",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_LFS_SKIP_SMUDGE": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_AUTHOR_NAME": "Cairn",
    "GIT_AUTHOR_EMAIL": "cairn@localhost",
    "GIT_COMMITTER_NAME": "Cairn",
    "GIT_COMMITTER_EMAIL": "cairn@localhost",
    # What is copied twice and is the same is the same commit.
    "GIT_AUTHOR_DATE": "@0 +0000",
    "GIT_COMMITTER_DATE": "@0 +0000",
    "LC_ALL": "C",
}
#: No program of a repository runs, no other protocol is spoken, no other server asked. A pack is kept as it came.
_SETTINGS = """\
[protocol]
	allow = never
	version = 2
[core]
	hooksPath = /dev/null
	fsmonitor = false
	protectHFS = true
	protectNTFS = true
	askPass = false
	bigFileThreshold = 64m
[pack]
	windowMemory = 128m
	threads = 1
[gc]
	auto = 0
[maintenance]
	auto = false
[fetch]
	unpackLimit = 1
	recurseSubmodules = false
[transfer]
	unpackLimit = 1
[submodule]
	recurse = false
[init]
	templateDir =
	defaultBranch = workspace
[safe]
	directory = *
[credential]
	helper =
[http]
	followRedirects = false
	# A server that puts much together says little meanwhile.
	lowSpeedLimit = 1
	lowSpeedTime = 300
"""
#: Git asks it; it says what is in the file, and learns nothing.
_HELPER = f'test "$1" = get && cat {FOLDER}/login\nexit 0\n'
_PROGRESS = re.compile(
    r"(?:remote: )?((?:Enumerating|Counting|Compressing|Receiving|Resolving|Updating|Checking out|Filtering) [a-z]+):"
    r" +([0-9]{1,3})% \([0-9]+/[0-9]+\)(?:, ([0-9.]+ [KMGT]?i?B))?"
)
#: Of a failure, characters.
MOST_WORDS = 600
_STATUSES: dict[str, Literal["added", "modified", "deleted", "renamed"]] = {
    "A": "added",
    "D": "deleted",
    "R": "renamed",
}
_ESCAPES = dict(zip('abtnvfr"\\', '\a\b\t\n\v\f\r"\\', strict=True))
_ESCAPED = re.compile(r'\\([abtnvfr"\\]|[0-7]{3})')
_BINARY = re.compile(r"^ (.+?) \| +Bin ([0-9]+) -> ([0-9]+) bytes$", re.MULTILINE)
#: Of a change, before its first hunk: what it is called now, and was.
_NAMES = [re.compile(rf'^{sign} "?{side}/(.*?)"?\t?$', re.MULTILINE) for sign, side in ((r"\+\+\+", "b"), ("---", "a"))]
_HASH = re.compile(r"[0-9a-f]{40}")


def files_for(
    url: GitUrl | None, login: GitLogin | None, authorities: bytes | None, proxied: str | None
) -> dict[str, bytes]:
    """What ``FOLDER`` holds, by name. ``proxied``: ``address port`` of the proxy through which all goes."""
    settings, files = _SETTINGS, dict[str, bytes]()
    if url is not None:
        settings += f'[protocol "{url.scheme}"]\n\tallow = always\n'
    if url is not None and url.scheme == "ssh":
        settings += f'[core]\n\tsshCommand = "ssh -F {FOLDER}/ssh_config"\n'
        files["ssh_config"] = _ssh_config(proxied).encode()
    if authorities is not None:
        settings += f"[http]\n\tsslCAInfo = {FOLDER}/ca.pem\n"
        files["ca.pem"] = authorities
    if login is not None and login.type == "https" and url is not None:
        # For this server alone, whatever else is asked.
        server = f"https://{url.host}:{url.port}" if url.port != 443 else f"https://{url.host}"  # noqa: PLR2004 - https
        settings += f'[credential "{server}"]\n\thelper = "!sh {FOLDER}/helper"\n'
        files["helper"] = _HELPER.encode()
        files["login"] = f"username={login.username}\npassword={login.secret}\n".encode()
    elif login is not None:
        files["key"] = login.secret.encode()
        files["known_hosts"] = (login.known_hosts or "").encode()
    return {"gitconfig": settings.encode(), **files}


def _ssh_config(proxied: str | None) -> str:
    lines = [
        "Host *",
        f"IdentityFile {FOLDER}/key",
        f"UserKnownHostsFile {FOLDER}/known_hosts",
        "GlobalKnownHostsFile /dev/null",
        "IdentitiesOnly yes",
        "BatchMode yes",
        "StrictHostKeyChecking yes",
        "ConnectTimeout 20",
        "ServerAliveInterval 30",
    ]
    if proxied is not None:
        # Lines before its own that a server sends are passed over (RFC 4253, 4.2): the proxy's answer is some.
        asked = r"printf 'CONNECT %h:%p HTTP/1.1\r\nHost: %h:%p\r\n\r\n'"
        lines.append(f'ProxyCommand sh -c "{asked.replace("%h:%p", "%%h:%%p")}; exec cat" | nc {proxied}')
    return "\n  ".join(lines) + "\n"


def told(line: str) -> str | None:
    """The progress that a line of git's tells, in our words: what a server makes of it is shown to nobody."""
    found = _PROGRESS.match(line)
    if found is None:
        return None
    return f"{found[1].lower()} {found[2]}%" + (f", {found[3]}" if found[3] else "")


def last_words(said: Iterable[str], login: GitLogin | None) -> str:
    """Of a git that failed: its last lines, without progress, and without what nobody is to see."""
    lines = [line.strip() for line in said if line.strip() and _PROGRESS.match(line) is None]
    text = " ".join("".join(c if c.isprintable() else " " for c in line) for line in lines[-4:])
    if login is not None:
        for secret in (login.secret.strip(), quote(login.secret.strip(), safe="")):
            text = text.replace(secret, "***")
    return text[-MOST_WORDS:]


def changed_files(statuses: str, lines: str) -> list[FileChange]:
    """Of ``diff --name-status -z`` and ``diff --numstat -z``; what was cut off in the middle of a file is left out."""
    counted, found = _counted(lines), []
    words = iter(statuses.split("\0")[:-1])
    for status in words:
        old = next(words, "") if status.startswith("R") else None
        path = next(words, "")
        if path:
            kind = _STATUSES.get(status[:1], "modified")
            added, deleted = counted.get(path, (None, None))
            found.append(FileChange(path=path, status=kind, old_path=old, additions=added, deletions=deleted))
    return found


def unquoted(name: str) -> str:
    """As git writes names with what ends lines or quotations in them (``core.quotePath`` off)."""
    if not name.startswith('"'):
        return name
    return _ESCAPED.sub(lambda found: _ESCAPES.get(found[1]) or chr(int(found[1], 8)), name[1:-1])


def largest_binary(stat: str) -> tuple[int, str]:
    """Of ``diff --stat``: the most bytes that a file which is no text has, or had, and that file."""
    sizes = [(int(size), found[1].strip()) for found in _BINARY.finditer(stat) for size in found.groups()[1:]]
    return max(sizes, default=(0, ""))


def file_at(patch: bytes, at: int) -> str:
    """Whose change a byte of a patch belongs to."""
    # What a file says begins with a blank, a plus or a minus.
    section = (b"\n" + patch[:at]).rpartition(b"\ndiff --git ")[2].decode(errors="replace")
    found = next(filter(None, (name.search(section) for name in _NAMES)), None)
    return found[1] if found else section.partition("\n")[0]


def _counted(lines: str) -> dict[str, tuple[int | None, int | None]]:
    """Lines that came and went, by path."""
    counted: dict[str, tuple[int | None, int | None]] = {}
    words = iter(lines.split("\0")[:-1])
    for line in words:
        added, deleted, path = [*line.split("\t", 2), "", ""][:3]
        if not path:  # it was renamed: both names follow
            next(words, "")
            path = next(words, "")
        # Of what is no text both are dashes.
        counted[path] = (int(added), int(deleted)) if added.isdecimal() and deleted.isdecimal() else (None, None)
    return counted


def found_refs(listed: str) -> tuple[str | None, dict[str, str]]:
    """Of ``ls-remote --symref``: which branch HEAD is, and what each ref is at."""
    head, refs = None, {}
    for line in listed.splitlines():
        what, _, name = line.partition("\t")
        if what.startswith("ref: ") and name == "HEAD":
            head = what.removeprefix("ref: ").strip()
        elif _HASH.fullmatch(what):
            refs[name] = what
    return head, refs
