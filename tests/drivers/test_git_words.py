"""What git says, read; with files that say what git might."""

from __future__ import annotations

import pytest

from drivers import git_words

HEAD = "diff --git a/{0} b/{0}\nindex 1..2 100644\n--- a/{0}\n+++ b/{0}\n@@ -1 +1 @@\n"


@pytest.mark.parametrize("name", ["x", "src/a b/c.txt", "b/b/b"])
@pytest.mark.parametrize(
    "before", ["", "+see diff --git a/q b/innocent.py\n", "+++ b/innocent.py\n", " diff --git a/q b/innocent.py\n"]
)
def test_the_file_that_a_byte_of_a_patch_belongs_to(name: str, before: str) -> None:
    patch = (HEAD.format("first") + "+1\n" + HEAD.format(name) + before).encode() + b"+f\xfcr\n"
    assert git_words.file_at(patch, patch.index(b"\xfc")) == name


def test_the_file_of_a_byte_that_goes() -> None:
    patch = b"diff --git a/x b/x\ndeleted file mode 100644\nindex 1..0\n--- a/x\n+++ /dev/null\n@@ -1 +0,0 @@\n-\xfc\n"
    assert git_words.file_at(patch, patch.index(b"\xfc")) == "x"
    quoted = HEAD.format("X").replace("a/X", '"a/f\\303\\274r"').replace("b/X", '"b/f\\303\\274r"').encode()
    assert git_words.file_at(quoted, len(quoted)) == "f\\303\\274r"


def test_the_largest_file_that_is_no_text() -> None:
    stat = " README   |   2 +-\n logo.png | Bin 0 -> 70 bytes\n old => new | Bin 90 -> 20 bytes\n 3 files changed\n"
    assert git_words.largest_binary(stat) == (90, "old => new")
    assert git_words.largest_binary("") == (0, "")


@pytest.mark.parametrize(
    ("said", "name"),
    [("a b", "a b"), (r'"a\"b\\n"', 'a"b\\n'), (r'"a\nb\001"', "a\nb\x01"), ("für", "für"), (r"a\n", r"a\n")],
)
def test_names_with_what_ends_lines(said: str, name: str) -> None:
    assert git_words.unquoted(said) == name
