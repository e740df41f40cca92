"""Every link, anchor, file and test that a page names is there; every page is reached from the README."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
#: A part of another page, from which a program writes that one.
PARTS = {"docs/benchmarks.notes.md"}
FOLDERS = "api|workflows|activities|drivers|model|worker|cli|migrations|tests|bench|docs"


def listed(*patterns: str) -> list[str]:
    """Files of the repository, new ones among them, ignored ones not."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [name for name in found if (ROOT / name).exists()]


PAGES = listed("*.md")


@cache
def tokens(page: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text())


def inline(page: str) -> list[Token]:
    return [child for token in tokens(page) for child in token.children or []]


def links(page: str) -> list[str]:
    found = [child.attrs.get("href") or child.attrs.get("src") for child in inline(page)]
    return [str(one) for one in found if one]


@cache
def anchors(page: str) -> set[str]:
    """As GitHub makes them of headings: lower case, without punctuation, blanks as dashes; again with a number."""
    seen: dict[str, int] = {}
    made = set()
    for token, after in zip(tokens(page), tokens(page)[1:], strict=False):
        if token.type != "heading_open":
            continue
        words = "".join(child.content for child in after.children or [])
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        made.add(slug if slug not in seen else f"{slug}-{seen[slug]}")
        seen[slug] = seen.get(slug, 0) + 1
    return made


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            name = str(target.resolve().relative_to(ROOT))
            assert anchor in anchors(name), f"{page}: {link} (there are {sorted(anchors(name))})"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page: str) -> None:
    """In code: paths of the repository. A page about something to be made may name what is to be there."""
    if page in ("CONTRIBUTING.md", "docs/adding-a-driver.md"):
        return
    for child in inline(page):
        if child.type != "code_inline":
            continue
        for path in re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]+\.(?:py|md|json|toml|yaml)\b", child.content):
            assert (ROOT / path).exists(), f"{page}: {path}"


@cache
def known() -> set[str]:
    return {name for path in listed("tests/*.py") for name in re.findall(r"def (test_\w+)", (ROOT / path).read_text())}


def test_tests_that_pages_lean_on_are_there() -> None:
    named = {
        (page, name)
        for page in PAGES
        for child in inline(page)
        if child.type == "code_inline"
        for name in re.findall(r"\b(test_\w+)(?!\w|\.py)", child.content)
    }
    assert len(named) > 40
    assert {(page, name) for page, name in named if name not in known()} == set()


def test_every_page_is_reached_from_the_readme() -> None:
    seen, todo = {"README.md"}, ["README.md"]
    while todo:
        page = todo.pop()
        for link in links(page):
            path = (ROOT / page).parent / link.partition("#")[0]
            if path.suffix == ".md" and path.exists():
                name = str(path.resolve().relative_to(ROOT))
                if name not in seen:
                    seen.add(name)
                    todo.append(name)
    assert {page for page in PAGES if page.startswith("docs/") or "/" not in page} - seen - PARTS == set()


def test_what_is_generated_is_what_the_program_says() -> None:
    import os
    import sys

    environ = {name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")}
    command = [sys.executable, str(ROOT / ".ci" / "reference.py"), "--check"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"run 'make docs': {done.stdout}{done.stderr}"
