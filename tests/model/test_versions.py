from __future__ import annotations

import pytest

from model import versions
from model.errors import VersionRefused

OURS = versions.release(versions.platform())
assert OURS is not None
OURS_IS = f"{OURS[0]}.{OURS[1]}"


def test_the_release_before_is_the_one_before() -> None:
    """A new release says which one it follows."""
    assert OURS is not None
    if OURS[1]:
        assert (OURS[0], OURS[1] - 1) == versions.BEFORE
    else:
        assert versions.BEFORE[0] == OURS[0] - 1


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        (versions.platform(), "ok"),
        (f"{OURS_IS}.99", "ok"),
        (f"{OURS_IS}.0rc1", "ok"),
        ("{}.{}.7".format(*versions.BEFORE), "older"),
        ("0.0.9", "too_old"),
        (f"{OURS[0]}.{OURS[1] + 1}.0", "newer"),
        ("99.0", "newer"),
        ("", "unknown"),
        ("latest", "unknown"),
        (None, "unknown"),
    ],
)
def test_skew(agent: str | None, expected: str) -> None:
    assert versions.skew(agent) == expected
    if expected in ("ok", "older") or agent is None:
        versions.check(agent)
    else:
        with pytest.raises(VersionRefused, match=versions.platform()):
            versions.check(agent)
