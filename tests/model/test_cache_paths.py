"""Where a sandbox may see a cache."""

from __future__ import annotations

import pytest

from model.cache_volumes import check_path, nested

NOT_WRITTEN_SO = (
    *("", "/", "//", "root/.cache", "./a", "../a", "~/.cache/pip", "/cache/", "//cache", "/a//b", "/a/./b", "/a/../b"),
    *("/a/..", "/..", "/.", "/a\nb", "/a\x00b", "/a\x1bb", "/a\x7fb", "/a\u202eb", "/a\u00a0b", "/" + "x" * 255),
    "/" + "é" * 128,
)
OF_THE_SYSTEM = (
    *("/proc", "/proc/self", "/sys", "/sys/fs/cgroup", "/dev", "/dev/pts", "/run", "/run/secrets", "/run/secrets/pip"),
    *("/workspace", "/workspace/.cache", "/var/run", "/var/run/docker.sock", "/var/lock/a", "/etc", "/etc/ssl/certs"),
    *("/bin", "/bin/sh", "/lib", "/lib/x", "/lib64", "/lib64/ld-linux-x86-64.so.2", "/sbin", "/sbin/init", "/boot"),
)
WOULD_HIDE = (
    *("/usr", "/usr/bin", "/usr/lib", "/usr/local", "/usr/local/bin", "/usr/share", "/var", "/var/lib", "/var/cache"),
    *("/root", "/home", "/home/dev", "/tmp", "/opt", "/srv", "/mnt"),  # noqa: S108 - a sandbox's
)


@pytest.mark.parametrize("path", [*NOT_WRITTEN_SO, *OF_THE_SYSTEM, *WOULD_HIDE], ids=ascii)
def test_a_sandbox_needs_what_is_there(path: str) -> None:
    with pytest.raises(ValueError, match=r"expected|no cache can be in|would hide|cannot be printed|bytes"):
        check_path(path)


@pytest.mark.parametrize(
    "path",
    [
        *("/root/.cache/pip", "/root/.npm", "/home/dev/.cache", "/usr/local/cargo/registry", "/var/cache/apt"),
        *("/cache", "/go/pkg/mod", "/opt/caches", "/srv/pip", "/workspaces/a", "/devs", "/root/..cache", "/a b/c,d:e"),
        *("/usr/local/lib/node_modules", "/binary", "/" + "x" * 254),
    ],
)
def test_a_folder_of_its_own_may_be_a_cache(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        ({}, None),
        ({"a": "/a"}, None),
        ({"a": "/a", "b": "/a-b", "c": "/ab", "d": "/b/a"}, None),
        ({"x": "/a/b", "y": "/a"}, ("y", "x")),
        ({"x": "/a", "m": "/a-b", "y": "/a/b/c"}, ("x", "y")),
        ({"x": "/a", "y": "/a"}, ("x", "y")),
        ({"p": "/a", "q": "/a b/c", "r": "/a/z"}, ("p", "r")),
    ],
)
def test_which_are_in_each_other(paths: dict[str, str], found: tuple[str, str] | None) -> None:
    assert nested(paths) == found
