"""An image with HAProxy, made of the distribution's package: for machines that reach no registry."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

from model.haproxy import HOME
from worker import busybox, program_image
from worker.busybox import add
from worker.data_folder import StackError
from worker.program_image import ProgramImage

IMAGE = "cairn/haproxy:latest"
PACKAGE, PROGRAM = "haproxy", "usr/sbin/haproxy"
#: As in the official image, and like there it is that user who runs it.
USER = 99
CHANGES = [f'CMD ["{PROGRAM}","-v"]', f"USER {USER}:{USER}", f"WORKDIR {HOME}", f"ENV PATH=/usr/sbin:/bin HOME={HOME}"]


def root_archive(scratch: Path) -> bytes:
    """Its root file system as a tar archive: the program, the libraries that it needs, and a static busybox."""
    box = scratch / "busybox"
    box.mkdir()
    program, libraries = find(scratch)
    packed = io.BytesIO(busybox.root_archive(busybox.find(box)))
    with tarfile.open(fileobj=packed, mode="a") as archive:
        for folder in ("usr", "usr/sbin", "lib", "lib64", "var/lib"):
            add(archive, folder, tarfile.DIRTYPE, 0o755)
        add(archive, HOME.removeprefix("/"), tarfile.DIRTYPE, 0o755, owner=USER)
        add(archive, PROGRAM, tarfile.REGTYPE, 0o755, program.read_bytes())
        for name, library in libraries.items():
            add(archive, program_image.place_of(name), tarfile.REGTYPE, 0o755, library.read_bytes())
    return packed.getvalue()


def find(scratch: Path) -> tuple[Path, dict[str, Path]]:
    """The program, this machine's or else the distribution's, unpacked into ``scratch`` and not installed; and its
    libraries by their names."""
    installed = shutil.which(PACKAGE, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if installed:
        return Path(installed), program_image.libraries(Path(installed), None)
    root = program_image.unpacked(scratch, [PACKAGE])
    if root is not None:
        return root / PROGRAM, program_image.libraries(root / PROGRAM, root)
    raise StackError(
        f"the image {IMAGE} is made of the distribution's {PACKAGE}, which is not here: install that package; or let "
        "CAIRN_LB_IMAGE name an image of a registry, such as haproxy:3.0-alpine"
    )


image = ProgramImage(IMAGE, root_archive, CHANGES, "Load balancers use the registry's image")
