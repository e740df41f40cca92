"""Whether each locked package has a licence that this project may use: ``make licences``.

What a package says of its licence comes from its own metadata: the expression (PEP 639), else the classifiers, else
the one field that everybody fills in otherwise. Ends with 1 where a licence is not allowed, or nothing is said.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageMetadata, distributions

import lock

#: SPDX identifiers. All of them let Apache-2.0 software use the package as it is; the last two only that:
#: a changed copy of the package itself would have to be given on in source.
ALLOWED = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "PSF-2.0", "Zlib"),
    *("MPL-2.0", "LGPL-3.0-only"),
}
#: What is written where an identifier should be.
WRITTEN = {
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "BSD 2-Clause License": "BSD-2-Clause",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
#: Locked for other systems than this one, so that no metadata of theirs is here: read at their pages.
ELSEWHERE = {"colorama": "BSD-3-Clause", "pywin32": "PSF-2.0", "tzdata": "Apache-2.0"}


def licence(about: PackageMetadata) -> list[str]:
    """What may be chosen from (``OR``), each with all that applies (``AND``)."""
    if "License-Expression" in about:
        return [about["License-Expression"]]
    classifiers = [
        one.rsplit(" :: ", 1)[1]
        for one in about.get_all("Classifier") or []
        if one.startswith("License :: ") and not one.endswith(("OSI Approved", "DFSG approved"))
    ]
    said = about["License"].strip() if "License" in about else ""
    return [said] if said in ALLOWED | set(WRITTEN) else classifiers or [said]


def is_allowed(expression: str) -> bool:
    """Of an SPDX expression: whether one of the choices is made of allowed identifiers alone."""
    if _known(expression):
        return True
    flat = expression.replace("(", " ").replace(")", " ")
    if " AND " in flat and " OR " in flat:  # of what is nested, everything must do: it is stricter, and simple
        return all(_known(part) for part in re.split(r" AND | OR ", flat))
    if " AND " in flat:
        return all(_known(part) for part in flat.split(" AND "))
    return any(_known(part) for part in flat.split(" OR "))


def _known(name: str) -> bool:
    name = name.strip()
    return WRITTEN.get(name, name) in ALLOWED


def refused() -> dict[str, str]:
    """What is wrong with which package."""
    here = {lock.normalised(one.name): one.metadata for one in distributions()}
    found = {}
    for name in sorted(lock.packages()):
        if name not in here and name not in ELSEWHERE:
            found[name] = "is not installed here: write its licence into ELSEWHERE"
            continue
        said = [ELSEWHERE[name]] if name not in here else licence(here[name])
        if not all(is_allowed(one) for one in said):
            found[name] = f"has the licence {' and '.join(said) or '(none given)'}, which is not on the list"
    return found


def main() -> int:
    if wrong := refused():
        for name, why in wrong.items():
            print(f"{name} {why}", file=sys.stderr)
        return 1
    print(f"{len(lock.packages())} locked packages: all licences are on the list")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
