"""The bill of materials of what the program runs with, as CycloneDX 1.5 JSON: ``make sbom``.

uv writes it from the lock, with the address and SHA-256 of every file. What uv makes up anew each time, the time
and the serial number, is taken out and made from the content: the same lock gives the same bytes, anywhere.
``--all`` adds what is for development only.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import lock

UV = [str(Path(sys.executable).with_name("uv")), "export", "--frozen", "--offline", "--all-extras", "--quiet"]
FORMAT = ["--format", "cyclonedx1.5", "--preview-features", "sbom-export"]


def bill(everything: bool) -> str:
    """Its JSON. Raises CalledProcessError."""
    groups = "--all-groups" if everything else "--no-default-groups"
    made = subprocess.run([*UV, *FORMAT, groups], cwd=lock.ROOT, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(made.stdout)
    found.pop("serialNumber", None)
    found["metadata"].pop("timestamp", None)
    # A name-based UUID (RFC 9562) of the content.
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(found, sort_keys=True))
    found["serialNumber"] = f"urn:uuid:{serial}"
    if epoch := os.environ.get("SOURCE_DATE_EPOCH"):  # https://reproducible-builds.org/specs/source-date-epoch/
        found["metadata"]["timestamp"] = dt.datetime.fromtimestamp(int(epoch), dt.UTC).isoformat()
    return json.dumps(found, indent=2, sort_keys=True) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="with what is for development only")
    parser.add_argument("--output", type=Path, help="a file (default: standard output)")
    given = parser.parse_args()
    text = bill(given.all)
    if given.output is None:
        sys.stdout.write(text)
    else:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(text)
        print(given.output)


if __name__ == "__main__":
    main()
