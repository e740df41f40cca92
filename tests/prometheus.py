"""Prometheus's own tool from the distribution: it parses rules and expressions, and runs tests of rules."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from worker import packages

TOOL = "promtool"


def is_installed() -> bool:
    return shutil.which(TOOL) is not None


def install() -> None:
    """From the distribution, as root; raises where that is not possible. Its service does not start."""
    packages.install("prometheus", start=False)


def promtool(*words: str, folder: Path) -> str:
    """What it says; fails the test where it refuses."""
    ran = subprocess.run([TOOL, *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
