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


def test_a_repository_of_its_own() -> None:
    lines = [":000000 100644 0000 0000 A", "a", ":160000 160000 1111 0000 M", "sub", ""]
    assert git_words.new_repository("\0".join(lines)) == "sub"
    assert git_words.new_repository("\0".join([":160000 000000 1111 0000 D", "sub", ""])) is None
    assert git_words.new_repository("") is None
