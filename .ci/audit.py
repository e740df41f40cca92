"""Known vulnerabilities of what is locked: ``make audit``.

uv asks the OSV database (https://osv.dev) about each locked version. Ends with 0 where there is nothing, 1 where there
is, and 3 where the database could not be asked: nothing is known then, and that is not the same as nothing found.
``--offline-ok`` ends with 0 there too, for machines that reach no network; it says so on standard error.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import lock

UV = [str(Path(sys.executable).with_name("uv")), "audit", "--frozen", "--preview-features", "audit-command"]
CLEAN, FOUND, UNKNOWN = 0, 1, 3
#: uv tries again by itself, with pauses.
SECONDS = 120


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--offline-ok", action="store_true", help="pass where the database cannot be asked")
    given, more = parser.parse_known_args()
    try:
        code = subprocess.run([*UV, *more], cwd=lock.ROOT, check=False, timeout=SECONDS).returncode
    except subprocess.TimeoutExpired:
        code = UNKNOWN
    if code in (CLEAN, FOUND):
        return code
    print("NOT AUDITED: the vulnerability database could not be asked (see above)", file=sys.stderr)
    return CLEAN if given.offline_ok else UNKNOWN


if __name__ == "__main__":
    raise SystemExit(main())
