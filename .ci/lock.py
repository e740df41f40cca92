"""What the lock names."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROJECT = "cairn-platform"


def packages() -> dict[str, Any]:
    """All packages of ``uv.lock`` but the project, by name."""
    found = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    return {one["name"]: one for one in found if one["name"] != PROJECT}


def normalised(name: str) -> str:
    """As the lock writes it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
