"""A root file system of one program: what the base image is made of."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path

from worker.data_folder import StackError
from worker.packages import apt_get

PACKAGE = "busybox-static"
FETCH_SECONDS = 300
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "www/index.html": "<!doctype html>\n<title>Cairn</title>\n<p>This instance was launched by Cairn.</p>\n",
}
FOLDERS = {"bin": 0o755, "etc": 0o755, "www": 0o755, "root": 0o700, "tmp": 0o1777, "var": 0o755, "run": 0o755}
_PT_INTERP = 3


def find(scratch: Path) -> Path:
    """A static busybox: this machine's, else the distribution's, unpacked into ``scratch`` and not installed."""
    for name in ("busybox-static", "busybox"):
        found = shutil.which(name)
        if found and is_static(Path(found)):
            return Path(found)
    if shutil.which("apt-get") and shutil.which("dpkg"):
        download = ("download", PACKAGE)
        for commands in ([download], [("update",), download]):
            if all(got(scratch, *words) for words in commands) and (unpacked := _unpack(scratch)):
                return unpacked
    raise StackError(
        "the base image is made of a static busybox, and none is here: install the package busybox-static "
        "of your distribution; or give an image of your own the name cairn/base:latest ('docker tag')"
    )


def got(folder: Path, *words: str) -> bool:
    """Whether apt-get did in ``folder`` what it was told."""
    try:
        apt_get(*words, folder=folder)
    except subprocess.SubprocessError:
        return False
    return True


def _unpack(folder: Path) -> Path | None:
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", "--", str(package), str(folder / "root")], check=True, timeout=FETCH_SECONDS)
    return next((path for path in folder.glob("root/**/bin/busybox") if is_static(path)), None)


def is_static(program: Path) -> bool:
    """Whether a 64-bit little-endian ELF program needs no loader, hence no libraries."""
    data = program.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        return False
    (table,) = struct.unpack_from("<Q", data, 0x20)
    size, count = struct.unpack_from("<HH", data, 0x36)
    kinds = {struct.unpack_from("<I", data, table + n * size)[0] for n in range(count)}
    return _PT_INTERP not in kinds


def root_archive(busybox: Path) -> bytes:
    """The root file system as a tar archive: the program, its applets as links to it, a page to serve."""
    listed = subprocess.run([str(busybox), "--list"], check=True, capture_output=True, text=True, timeout=30)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, mode in FOLDERS.items():
            add(archive, name, tarfile.DIRTYPE, mode)
        add(archive, "bin/busybox", tarfile.REGTYPE, 0o755, busybox.read_bytes())
        for applet in sorted(set(listed.stdout.split()) - {"busybox"}):
            add(archive, f"bin/{applet}", tarfile.SYMTYPE, 0o777, link="busybox")
        for name, text in FILES.items():
            add(archive, name, tarfile.REGTYPE, 0o644, text.encode())
    return buffer.getvalue()


def add(
    archive: tarfile.TarFile,
    name: str,
    kind: bytes,
    mode: int,
    data: bytes = b"",
    link: str = "",
    owner: int = 0,
) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(data), link
    entry.uid = entry.gid = owner
    archive.addfile(entry, io.BytesIO(data))
