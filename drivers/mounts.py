"""Mounts of this machine: who sees them, who may make them, and their end. After proc_pid_mountinfo(5)."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import time
from pathlib import Path

#: To keep files of all users that sandboxes have: CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER.
_OF_FILES = 1 << 0 | 1 << 1 | 1 << 3
_DETACH, _NOFOLLOW = 2, 8
MOMENT_SECONDS = 1.0
_libc = ctypes.CDLL(None, use_errno=True)
_OCTAL = re.compile(r"\\([0-7]{3})")


def may_keep_files() -> bool:
    """Whether this process can write and delete what belongs to anybody."""
    status = Path("/proc/self/status").read_text()
    held = int(status.partition("CapEff:")[2].split(maxsplit=1)[0], 16)
    return held & _OF_FILES == _OF_FILES


def seen_by_engine(folder: Path) -> bool:
    """Whether an engine of this machine sees what this process mounts below the folder: it has the machine's own view
    of file systems, or one from which mounts are handed on to that."""
    kinds = {tag.partition(":")[0] for tag in _tags_of(folder.resolve())}
    if kinds & {"shared", "master"}:
        # A unit of systemd's with a view of its own gets the machine's mounts, and hands none on.
        return "master" not in kinds
    try:
        return os.stat("/proc/1/ns/mnt").st_ino == os.stat("/proc/self/ns/mnt").st_ino
    except PermissionError:  # who may not look at it is in no container that shows all processes
        return True


def _tags_of(folder: Path) -> list[str]:
    """How the mount that the folder is on hands on what is mounted there."""
    tags: list[str] = []
    longest = -1
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.partition(" - ")[0].split()
        point = Path(_plain(fields[4]))
        # Of two at one place, the later one is to be seen.
        if folder.is_relative_to(point) and len(point.parts) >= longest:
            longest, tags = len(point.parts), fields[6:]
    return tags


def is_held(upper: Path, moment: float = MOMENT_SECONDS) -> bool:
    """Whether an overlay whose changes go there is still mounted for some process, such as a sandbox that runs, for
    longer than a moment: a container that begins has all mounts of the host before it has its own, and one that has
    ended has them until its last process is gone."""
    until = time.monotonic() + moment
    while held := _is_seen(upper):
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    return held


def _is_seen(upper: Path) -> bool:
    """Those processes that this one may not look at are passed over."""
    # The folders above it may be escaped in many ways; these two are of this session alone.
    wanted = re.compile(rf"upperdir=\S*/{re.escape(upper.parent.name)}/{re.escape(upper.name)}\b")
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                if wanted.search((process / "mountinfo").read_text(errors="replace")):
                    return True
            except OSError:  # it has ended, or is not ours to see
                continue
    return False


def unmount(point: Path) -> None:
    """All that is mounted there; success where nothing is. Also what is in use goes, as soon as that ends. Raises
    OSError."""
    while _libc.umount2(os.fsencode(point), _DETACH | _NOFOLLOW) == 0:
        pass
    number = ctypes.get_errno()
    # Who may not mount has not; a folder that is mounted on itself looks like none.
    if number not in (errno.EINVAL, errno.ENOENT) and (number != errno.EPERM or os.path.ismount(point)):
        raise OSError(number, os.strerror(number), str(point))


def unmount_below(folder: Path) -> None:
    """All that is mounted below it. Raises OSError."""
    folder = folder.resolve()
    points = [Path(_plain(line.split()[4])) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed(points):  # the later ones may lie on the earlier
        if point != folder and point.is_relative_to(folder):
            unmount(point)


def _plain(said: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), said)
