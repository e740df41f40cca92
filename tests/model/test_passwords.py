"""What is kept of passwords, and what its comparison tells."""

from __future__ import annotations

import statistics
import time

import argon2
import pytest

from model import passwords
from model.passwords import hashed, matches, problem_of


@pytest.fixture(autouse=True)
def in_earnest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of the same process may have made it cheap."""
    monkeypatch.setattr(passwords, "_hasher", argon2.PasswordHasher())
    passwords._of_nobody.cache_clear()


def test_kept_is_argon2id_with_the_parameters_of_the_rfc() -> None:
    assert hashed("correct horse").startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert hashed("correct horse") != hashed("correct horse"), "salted"


def test_time_does_not_tell_whether_anything_is_kept() -> None:
    """The medians of the processor time differ by less than a third: the same work."""
    kept = hashed("correct horse")
    matches("", None)  # makes that of nobody
    took: dict[str | None, list[float]] = {kept: [], None: []}
    for _ in range(9):
        for one, found in took.items():
            began = time.process_time()
            assert not matches("wrong", one)
            found.append(time.process_time() - began)
    user, nobody = (statistics.median(found) for found in took.values())
    assert abs(user - nobody) < max(user, nobody) / 3


def test_common_passwords_and_ones_own_address_are_refused() -> None:
    assert problem_of("password1") and problem_of("Password1")
    assert problem_of("jo.doe.jones", "Jo.Doe.Jones@example.org")
    assert problem_of("1234567") and problem_of("x" * 1025)
    assert problem_of("correct horse battery staple", "jo@example.org", "Jo") is None
    assert matches("correct horse", hashed("correct horse"))
