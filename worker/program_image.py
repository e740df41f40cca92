"""Images of one program each, made of the distribution's packages: for machines that reach no registry."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import docker
import docker.errors

from worker.busybox import FETCH_SECONDS, got
from worker.data_folder import StackError
from worker.engine import Report

_LIBRARY = re.compile(r"^\s*(?:(?P<name>\S+) => )?(?P<path>/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)


@dataclass(frozen=True)
class ProgramImage:
    """One of them. ``root_archive`` makes its root file system, a tar archive, in a folder that it may fill."""

    reference: str
    root_archive: Callable[[Path], bytes]
    #: Its configuration, as lines of a Dockerfile.
    changes: Sequence[str]
    #: What is done where it cannot be made.
    without: str
    of: str = "the distribution's packages"

    def is_there(self, url: str) -> bool:
        client = docker.DockerClient(base_url=url, timeout=60)
        try:
            client.images.get(self.reference)
        except docker.errors.ImageNotFound:
            return False
        finally:
            client.close()
        return True

    def ensure(self, url: str, report: Report) -> None:
        """Make it on the engine, without any registry; nothing happens when it is there.

        Raises StackError that says what to do.
        """
        if self.is_there(url):
            return
        with TemporaryDirectory(prefix="cairn-") as scratch:
            archive = self.root_archive(Path(scratch))
        report(f"Making the image {self.reference} ({len(archive) >> 20} MiB) of {self.of}.")
        client = docker.DockerClient(base_url=url, timeout=120)
        try:
            name, _, tag = self.reference.partition(":")
            client.api.import_image_from_data(archive, repository=name, tag=tag, changes=list(self.changes))
            client.images.get(self.reference)
        except docker.errors.DockerException as error:
            raise StackError(f"the engine at {url} did not take the image {self.reference}: {error}") from error
        finally:
            client.close()

    def offer(self, url: str, report: Report) -> bool:
        """The same, where it can be done; whether the image is there. All else works without."""
        try:
            self.ensure(url, report)
        except (StackError, docker.errors.DockerException, subprocess.SubprocessError, OSError) as error:
            report(f"{self.without}, as none can be made here: {error}")
            return False
        return True


def unpacked(scratch: Path, packages: Sequence[str]) -> Path | None:
    """The distribution's packages with what they depend on, unpacked and not installed; None: there are none here."""
    if not all(shutil.which(program) for program in ("apt-get", "apt-cache", "dpkg")):
        return None
    root = scratch / "root"
    for words in ((), ("update",)):
        if (not words or got(scratch, *words)) and _download(scratch, packages):
            for package in scratch.glob("*.deb"):
                unpack = ["dpkg", "-x", "--", str(package), str(root)]
                subprocess.run(unpack, check=True, capture_output=True, timeout=FETCH_SECONDS)
            return root
    return None


def _download(scratch: Path, packages: Sequence[str]) -> bool:
    asked = ["apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks"]
    asked += ["--no-replaces", "--no-enhances", *packages]
    listed = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    names = sorted({line for line in listed.stdout.splitlines() if re.fullmatch(r"lib[a-z0-9.+-]+|gcc-\S+-base", line)})
    return got(scratch, "download", *packages, *names) and all(any(scratch.glob(f"{one}_*.deb")) for one in packages)


def libraries(program: Path, root: Path | None) -> dict[str, Path]:
    """What it is linked with, by name; a loader by its path. ``root``: they are there."""
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


def place_of(library: str) -> str:
    """Where an image has it: a loader is asked for by its path, all others by their names."""
    return library.removeprefix("/") if library.startswith("/") else f"lib/{library}"
