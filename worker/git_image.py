"""An image with git and ssh, made of the distribution's packages: for machines that reach no registry."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

from worker import busybox, program_image
from worker.busybox import add
from worker.data_folder import StackError
from worker.program_image import ProgramImage

IMAGE = "cairn/git:latest"
PACKAGES = ("git", "openssh-client", "ca-certificates")
CORE, GIT, SSH = "usr/lib/git-core", "usr/bin/git", "usr/bin/ssh"
#: Programs and scripts of git's own that it looks for beside itself; without the others it can do all that is needed.
NEEDED = ("git-remote-http", "git-submodule", "git-sh-setup", "git-sh-i18n", "git-sh-i18n--envsubst")
AUTHORITIES = "etc/ssl/certs/ca-certificates.crt"
CHANGES = ['CMD ["git","--version"]', "ENV PATH=/usr/bin:/bin", "USER 65534:65534"]


def root_archive(scratch: Path) -> bytes:
    """Its root file system as a tar archive: git, ssh, the libraries that they need, and a static busybox."""
    box = scratch / "busybox"
    box.mkdir()
    root, unpacked = find(scratch)
    programs = {GIT: root / GIT, SSH: root / SSH} | {f"{CORE}/{name}": root / CORE / name for name in NEEDED}
    libraries: dict[str, Path] = {}
    for program in programs.values():
        if program.read_bytes()[:4] == b"\x7fELF":
            libraries |= program_image.libraries(program, root if unpacked else None)
    packed = io.BytesIO(busybox.root_archive(busybox.find(box)))
    with tarfile.open(fileobj=packed, mode="a") as archive:
        for folder in ("usr", "usr/bin", "usr/lib", CORE, "lib", "lib64", "etc/ssl", "etc/ssl/certs"):
            add(archive, folder, tarfile.DIRTYPE, 0o755)
        for name, program in programs.items():
            add(archive, name, tarfile.REGTYPE, 0o755, program.read_bytes())
        add(archive, f"{CORE}/git", tarfile.SYMTYPE, 0o777, link="../../bin/git")
        add(archive, f"{CORE}/git-remote-https", tarfile.SYMTYPE, 0o777, link="git-remote-http")
        for name, library in libraries.items():
            add(archive, program_image.place_of(name), tarfile.REGTYPE, 0o755, library.read_bytes())
        add(archive, AUTHORITIES, tarfile.REGTYPE, 0o644, _authorities(root))
    return packed.getvalue()


def find(scratch: Path) -> tuple[Path, bool]:
    """The folder below which the programs are: this machine's root; or that of the distribution's packages, unpacked
    into ``scratch`` and not installed (then True)."""
    needed = (GIT, SSH, f"{CORE}/git-remote-http")
    if shutil.which("git") and all(os.access(Path("/") / name, os.X_OK) for name in needed):
        return Path("/"), False
    root = program_image.unpacked(scratch, PACKAGES)
    if root is not None:
        return root, True
    raise StackError(
        f"the image {IMAGE} is made of the distribution's {' and '.join(PACKAGES[:2])}, which are not here: install "
        "these packages; or let CAIRN_GIT_IMAGE name an image of a registry, such as alpine/git:2.49.1"
    )


def _authorities(root: Path) -> bytes:
    """Those that this machine trusts; else those of the package, one after the other."""
    for known in (root / AUTHORITIES, Path("/") / AUTHORITIES):
        if known.is_file():
            return known.read_bytes()
    return b"".join(sorted(file.read_bytes() for file in root.glob("usr/share/ca-certificates/**/*.crt")))


image = ProgramImage(IMAGE, root_archive, CHANGES, "Workspaces use the registry's image")
