"""The ``cairn`` program."""

import sys

# httpx's own program, which its package brings along, takes longer to load than httpx itself; httpx goes
# without where it cannot be loaded.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
