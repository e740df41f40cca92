"""Prometheus's own tool from the distribution: it parses rules and expressions, and runs tests of rules."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

TOOL = "promtool"


def is_installed() -> bool:
    return shutil.which(TOOL) is not None


def install() -> None:
    """From the distribution, as root; raises where that is not possible. Its service does not start."""
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", "prometheus"]):
        subprocess.run(["apt-get", "-q", *command], env=environ, stdin=subprocess.DEVNULL, check=True, timeout=400)


def promtool(*words: str, folder: Path) -> str:
    """What it says; fails the test where it refuses."""
    ran = subprocess.run([TOOL, *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
