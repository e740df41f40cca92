"""The tour in docs/api.md: every command of it, one after the other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.stack import Stack

TOUR = Path(__file__).parents[2] / "docs" / "api.md"


def test_every_command_of_the_tour_does_what_it_says(stack: Stack, tmp_path: Path) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```$", TOUR.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) > 10
    (tmp_path / ".cairn").symlink_to(stack.data)
    script = "\n".join(["set -euo pipefail", *blocks])
    done = subprocess.run(["bash", "-xc", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    said = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, said
    assert '"status":"running"' in done.stdout, said
    assert re.search(r'"exit_code":3\b', done.stdout), said
