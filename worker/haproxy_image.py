"""An image with HAProxy, made of the distribution's package: for machines that reach no registry."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import docker
import docker.errors

from model.haproxy import HOME
from worker import busybox
from worker.busybox import FETCH_SECONDS, add, got
from worker.data_folder import StackError
from worker.engine import Report

IMAGE = "cairn/haproxy:latest"
PACKAGE, PROGRAM = "haproxy", "usr/sbin/haproxy"
#: As in the official image, and like there it is that user who runs it.
USER = 99
CHANGES = [f'CMD ["{PROGRAM}","-v"]', f"USER {USER}:{USER}", f"WORKDIR {HOME}", f"ENV PATH=/usr/sbin:/bin HOME={HOME}"]
_LIBRARY = re.compile(r"^\s*(?:(?P<name>\S+) => )?(?P<path>/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)


def has_image(url: str) -> bool:
    client = docker.DockerClient(base_url=url, timeout=60)
    try:
        client.images.get(IMAGE)
    except docker.errors.ImageNotFound:
        return False
    finally:
        client.close()
    return True


def ensure(url: str, report: Report) -> None:
    """Make ``cairn/haproxy:latest`` on the engine, without any registry; nothing happens when it is there.

    Raises StackError that says what to do.
    """
    if has_image(url):
        return
    with tempfile.TemporaryDirectory(prefix="cairn-") as scratch:
        archive = root_archive(Path(scratch))
    report(f"Making the image {IMAGE} ({len(archive) >> 20} MiB) from the distribution's {PACKAGE}.")
    client = docker.DockerClient(base_url=url, timeout=120)
    try:
        name, _, tag = IMAGE.partition(":")
        client.api.import_image_from_data(archive, repository=name, tag=tag, changes=CHANGES)
        client.images.get(IMAGE)
    except docker.errors.DockerException as error:
        raise StackError(f"the engine at {url} did not take the image {IMAGE}: {error}") from error
    finally:
        client.close()


def offer(url: str, report: Report) -> bool:
    """The same, where it can be done; whether the image is there. Everything but load balancers works without."""
    try:
        ensure(url, report)
    except (StackError, docker.errors.DockerException, subprocess.SubprocessError, OSError) as error:
        report(f"Load balancers use the registry's image, as none can be made here: {error}")
        return False
    return True


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
            # A loader is asked for by its path, all others by their names.
            where = name.removeprefix("/") if name.startswith("/") else f"lib/{name}"
            add(archive, where, tarfile.REGTYPE, 0o755, library.read_bytes())
    return packed.getvalue()


def find(scratch: Path) -> tuple[Path, dict[str, Path]]:
    """The program, this machine's or else the distribution's, unpacked into ``scratch`` and not installed; and its
    libraries by their names."""
    installed = shutil.which(PACKAGE, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if installed:
        return Path(installed), _libraries(Path(installed), None)
    if shutil.which("apt-get") and shutil.which("apt-cache") and shutil.which("dpkg"):
        root = scratch / "root"
        for words in ((), ("update",)):
            if (not words or got(scratch, *words)) and _download(scratch):
                for package in scratch.glob("*.deb"):
                    unpack = ["dpkg", "-x", "--", str(package), str(root)]
                    subprocess.run(unpack, check=True, capture_output=True, timeout=FETCH_SECONDS)
                return root / PROGRAM, _libraries(root / PROGRAM, root)
    raise StackError(
        f"the image {IMAGE} is made of the distribution's {PACKAGE}, which is not here: install that package; or let "
        "CAIRN_LB_IMAGE name an image of a registry, such as haproxy:3.0-alpine"
    )


def _download(scratch: Path) -> bool:
    """The package, and what it depends on."""
    asked = ["apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks"]
    asked += ["--no-replaces", "--no-enhances", PACKAGE]
    listed = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    names = sorted({line for line in listed.stdout.splitlines() if re.fullmatch(r"lib[a-z0-9.+-]+|gcc-\S+-base", line)})
    return got(scratch, "download", PACKAGE, *names) and any(scratch.glob(f"{PACKAGE}_*.deb"))


def _libraries(program: Path, root: Path | None) -> dict[str, Path]:
    """By name; a loader by its path. ``root``: they are there."""
    environ = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    if root is not None:
        folders = {path.parent for path in root.glob("**/*.so*")}
        environ["LD_LIBRARY_PATH"] = ":".join(sorted(map(str, folders)))
    listed = subprocess.run(
        ["ldd", str(program)], env=environ, capture_output=True, text=True, check=True, timeout=FETCH_SECONDS
    )
    found = {line["name"] or line["path"]: Path(line["path"]) for line in _LIBRARY.finditer(listed.stdout)}
    if not found or "not found" in listed.stdout:
        raise StackError(f"{program} lacks libraries:\n{listed.stdout[-1000:]}")
    return found
