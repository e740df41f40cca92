"""Passwords: which may be used, and what is kept of them.

Argon2id with the parameters that RFC 9106, section 4, recommends second (64 MiB, three passes), as argon2-cffi has
them; about 60 ms of one core for each.
"""

from __future__ import annotations

from functools import cache

import argon2

LEAST, MOST = 8, 1024
_hasher = argon2.PasswordHasher()


def hashed(password: str) -> str:
    """What is kept of it. Takes its time: not for an event loop."""
    return _hasher.hash(password)


def matches(password: str, kept: str | None) -> bool:
    """Whether ``kept`` is of this password. As long where nothing is kept: time does not tell a user from a
    stranger."""
    try:
        return _hasher.verify(kept or _of_nobody(), password) and kept is not None
    except argon2.exceptions.VerifyMismatchError:
        return False


def is_outdated(kept: str) -> bool:
    """Whether it was made with other parameters than today's."""
    return _hasher.check_needs_rehash(kept)


def problem_of(password: str, *known: str) -> str | None:
    """Why it cannot be somebody's whose e-mail address and names are ``known``; None where it can."""
    if not LEAST <= len(password) <= MOST:
        return f"expected {LEAST} to {MOST} characters"
    lower = password.lower()
    if lower in _common() or any(lower in (word.lower(), word.partition("@")[0].lower()) for word in known):
        return "this is among the passwords that are tried first; choose another"
    return None


@cache
def _of_nobody() -> str:
    return _hasher.hash("")


@cache
def _common() -> frozenset[str]:
    from zxcvbn.frequency_lists import FREQUENCY_LISTS  # 2 MB, and seldom needed

    return frozenset(FREQUENCY_LISTS["passwords"])
