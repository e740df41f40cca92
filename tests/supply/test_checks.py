"""What comes from others: its licences, its known vulnerabilities, its bill. And what the linter lets pass, and why."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

ROOT = Path(__file__).parents[2]
LOCKED = {one["name"]: one for one in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
OWN = "cairn-platform"
Json = dict[str, Any]


def run(script: str, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / script), *options]
    return subprocess.run(
        command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=100, check=False
    )


def bill(*options: str, **environ: str) -> str:
    done = run("sbom.py", *options, **environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def components(text: str) -> dict[str, Json]:
    return {one["name"]: one for one in json.loads(text)["components"]}


def needed_by(name: str, seen: set[str]) -> set[str]:
    """Its dependencies, theirs, and so on; of the project, all extras, and not what is for development."""
    one = LOCKED[name]
    optional = [each for extra in one.get("optional-dependencies", {}).values() for each in extra]
    for each in [*one.get("dependencies", []), *optional]:
        if each["name"] not in seen:
            seen.add(each["name"])
            needed_by(each["name"], seen)
    return seen


def test_bill_names_every_locked_package_with_its_version_and_hashes() -> None:
    found = components(bill("--all"))
    assert set(found) == set(LOCKED) - {OWN}
    for name, one in found.items():
        assert one["version"] == LOCKED[name]["version"]
        assert one["purl"].startswith(f"pkg:pypi/{name}@{one['version']}")
        sums = {each["content"] for where in one["externalReferences"] for each in where["hashes"]}
        files = [*LOCKED[name].get("wheels", []), *([LOCKED[name]["sdist"]] if "sdist" in LOCKED[name] else [])]
        assert sums == {file["hash"].removeprefix("sha256:") for file in files}


def test_bill_of_what_is_shipped_has_all_of_that_and_nothing_else() -> None:
    text = bill()
    assert set(components(text)) == needed_by(OWN, set())
    assert "pytest" not in components(text)
    document = json.loads(text)
    assert (document["bomFormat"], document["specVersion"], document["version"]) == ("CycloneDX", "1.5", 1)
    assert document["metadata"]["component"]["name"] == OWN
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", document["serialNumber"])
    known = {one["bom-ref"] for one in document["components"]} | {document["metadata"]["component"]["bom-ref"]}
    assert {one["ref"] for one in document["dependencies"]} == known
    assert {each for one in document["dependencies"] for each in one.get("dependsOn", [])} <= known


def test_the_same_lock_gives_the_same_bytes() -> None:
    assert bill() == bill()
    dated = [bill(SOURCE_DATE_EPOCH="1700000000") for _ in range(2)]
    assert dated[0] == dated[1]
    assert json.loads(dated[0])["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"


def test_all_licences_are_on_the_list() -> None:
    done = run("licences.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{len(LOCKED) - 1} locked packages" in done.stdout


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("MIT License", True),
        ("GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("GPL-3.0-only AND (Apache-2.0 OR MIT)", False),
        ("", False),
        ("UNKNOWN", False),
    ],
)
def test_what_a_licence_allows(expression: str, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))
    import licences

    assert licences.is_allowed(expression) is allowed


class Advisories(BaseHTTPRequestHandler):
    """The part of OSV's API that is asked: a batch of queries, then what each advisory says."""

    bad: ClassVar[set[str]] = set()
    asked: ClassVar[list[Json]] = []

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        self.asked.extend(queries)
        mark = {"vulns": [{"id": "TEST-1", "modified": "2026-01-01T00:00:00Z"}]}
        self._answer({"results": [mark if one["package"]["name"] in self.bad else {} for one in queries]})

    def do_GET(self) -> None:
        self._answer({"id": "TEST-1", "modified": "2026-01-01T00:00:00Z", "summary": "it leaks", "affected": []})

    def _answer(self, found: Json) -> None:
        data = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def advisories() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        Advisories.bad, Advisories.asked[:] = set(), []
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_audit_asks_about_every_locked_version(advisories: str) -> None:
    assert run("audit.py", "--service-url", advisories).returncode == 0
    asked = {(one["package"]["name"], one["version"]) for one in Advisories.asked}
    assert asked == {(name, one["version"]) for name, one in LOCKED.items() if name != OWN}


def test_audit_fails_where_something_is_known(advisories: str) -> None:
    Advisories.bad = {"aiohttp"}
    for options in ((), ("--offline-ok",)):
        done = run("audit.py", *options, "--service-url", advisories)
        assert done.returncode == 1
        assert "TEST-1" in done.stdout


def test_audit_that_could_not_ask_does_not_pass_for_one_that_did() -> None:
    nowhere = ("--service-url", "http://127.0.0.1:9/")
    done = run("audit.py", *nowhere)
    assert (done.returncode, "NOT AUDITED" in done.stderr) == (3, True)
    allowed = run("audit.py", "--offline-ok", *nowhere)
    assert (allowed.returncode, "NOT AUDITED" in allowed.stderr) == (0, True)


def python_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split()]


def test_whatever_the_linter_is_told_to_pass_over_says_why() -> None:
    for path in python_files():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if (found := re.search(r"#\s*noqa(.*)", line)) and "re.search" not in line:
                assert re.fullmatch(r": [A-Z]+\d+(, [A-Z]+\d+)* - .+", found[1]), f"{path}:{number}"
            if found := re.search(r"#\s*type: ignore(?!\[[a-z-]+(, ?[a-z-]+)*\])", line):
                assert "re.search" in line, f"{path}:{number}: no code"
    # The same of what is passed over everywhere: rules of security are, with a comment each.
    text = (ROOT / "pyproject.toml").read_text()
    assert '"S",' in text
    for line in re.findall(r'^\s+"S\d+",.*$', text, re.MULTILINE):
        assert "#" in line, line


def test_nobody_runs_a_shell() -> None:
    """Beyond what the linter sees: S602, S604 and S605 may not be passed over at all."""
    for path in python_files():
        assert not re.search(r"noqa:[^\n]*S60[245]", path.read_text()), path
        if "tests" not in path.relative_to(ROOT).parts:
            assert "shell=True" not in path.read_text(), path
