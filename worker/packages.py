"""The distribution's packages, by apt-get: only one at a time of this machine's processes asks for them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from drivers.locks import alone, of_machine

#: For one command, and how long it waits for others that have the package manager's own lock.
SECONDS, LOCK_SECONDS = 600, 300


def can_install() -> bool:
    """Whether this is a system with apt-get, and we may."""
    return not os.geteuid() and shutil.which("apt-get") is not None


def apt_get(*words: str, folder: Path | None = None, start: bool = True) -> None:
    """Run it, in ``folder``. Raises CalledProcessError, with what it said, and TimeoutExpired.

    ``start``: services that are installed may start, where the system does so.
    """
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"} | ({} if start else {"RUNLEVEL": "1"})
    # Its own lock of lists of packages waits for nobody.
    with alone(of_machine("apt-get"), lambda: False):
        subprocess.run(
            ["apt-get", "-q", "-o", f"DPkg::Lock::Timeout={LOCK_SECONDS}", *words],
            env=environ,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )


def install(*packages: str, start: bool = True) -> None:
    """Install what of these is not there, as root. Raises as ``apt_get`` does."""
    apt_get("update")
    apt_get("install", "-y", "--no-install-recommends", "--", *packages, start=start)
