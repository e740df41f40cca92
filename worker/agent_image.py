"""An image with the reference agent, and the Python that runs this program: for machines that reach no registry."""

from __future__ import annotations

import io
import os
import sys
import sysconfig
import tarfile
from pathlib import Path

import drivers.reference_agent
from worker import busybox, program_image
from worker.busybox import add
from worker.data_folder import StackError
from worker.program_image import ProgramImage

IMAGE = "cairn/agent:latest"
PROGRAM, AGENT = "usr/bin/python3", "usr/lib/cairn/agent.py"
CHANGES = [f'CMD ["/{PROGRAM}","/{AGENT}"]', "ENV PATH=/usr/bin:/bin PYTHONHOME=/usr PYTHONDONTWRITEBYTECODE=1"]
#: Of the standard library, what no agent needs.
LEFT_OUT = {
    *("site-packages", "__pycache__", "test", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "pydoc_data"),
    *("distutils", "config", "dist-packages"),
}
EXTENSIONS = "lib-dynload"


def root_archive(scratch: Path) -> bytes:
    """Its root file system as a tar archive: this Python with its standard library, the libraries that both need, the
    agent, and a static busybox."""
    program, library = Path(os.path.realpath(sys.executable)), Path(sysconfig.get_path("stdlib"))
    home = f"usr/lib/python{sys.version_info.major}.{sys.version_info.minor}"
    box = scratch / "busybox"
    box.mkdir()
    needed = program_image.libraries(program, None)
    packed = io.BytesIO(busybox.root_archive(busybox.find(box)))
    with tarfile.open(fileobj=packed, mode="a") as archive:
        for folder in ("usr", "usr/bin", "usr/lib", "usr/lib/cairn", "lib", "lib64", home):
            add(archive, folder, tarfile.DIRTYPE, 0o755)
        add(archive, PROGRAM, tarfile.REGTYPE, 0o755, program.read_bytes())
        add(archive, AGENT, tarfile.REGTYPE, 0o644, Path(drivers.reference_agent.__file__).read_bytes())
        for file in sorted(library.rglob("*.py")):
            inside = file.relative_to(library)
            if LEFT_OUT.isdisjoint(inside.parts) and not inside.parts[0].startswith("config-"):
                add(archive, f"{home}/{inside}", tarfile.REGTYPE, 0o644, file.read_bytes())
        for file in sorted((library / EXTENSIONS).glob("*.so")):
            try:
                needed |= program_image.libraries(file, None)
            except StackError:  # what it needs is not here either
                continue
            add(archive, f"{home}/{EXTENSIONS}/{file.name}", tarfile.REGTYPE, 0o755, file.read_bytes())
        for name, found in needed.items():
            add(archive, program_image.place_of(name), tarfile.REGTYPE, 0o755, found.read_bytes())
    return packed.getvalue()


image = ProgramImage(IMAGE, root_archive, CHANGES, "Sessions have no reference agent", of="the Python that runs this")
