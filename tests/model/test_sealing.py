"""Values sealed for one host."""

from __future__ import annotations

from base64 import b64decode, b64encode

import pytest

from model.sealing import SealBroken, new_private_key, public_key, seal, unseal

KEY = new_private_key()
SECRET = b"s3cret \x00 value"


def test_only_the_key_that_it_was_sealed_for_opens_it() -> None:
    sealed = seal(SECRET, purpose="env:web:K", key=public_key(KEY))
    assert unseal(sealed, purpose="env:web:K", private_key=KEY) == SECRET
    with pytest.raises(SealBroken):
        unseal(sealed, purpose="env:web:K", private_key=new_private_key())


def test_it_opens_for_its_own_purpose_only() -> None:
    sealed = seal(SECRET, purpose="env:web:K", key=public_key(KEY))
    for other in ("env:web:", "env:web:K2", "", "env:other:K"):
        with pytest.raises(SealBroken):
            unseal(sealed, purpose=other, private_key=KEY)


@pytest.mark.parametrize("position", [0, 31, 32, 48, -1])
def test_a_changed_byte_is_noticed(position: int) -> None:
    raw = bytearray(b64decode(seal(SECRET, purpose="p", key=public_key(KEY))))
    raw[position] ^= 1
    with pytest.raises(SealBroken):
        unseal(b64encode(bytes(raw)).decode(), purpose="p", private_key=KEY)


@pytest.mark.parametrize("broken", ["", "not base64 !", "AAAA"])
def test_what_was_never_sealed_is_refused(broken: str) -> None:
    with pytest.raises(SealBroken):
        unseal(broken, purpose="p", private_key=KEY)


def test_nothing_of_it_shows_and_no_two_are_alike() -> None:
    first, second = (b64decode(seal(SECRET, purpose="purpose", key=public_key(KEY))) for _ in range(2))
    assert first != second
    assert SECRET not in first
    assert b"purpose" not in first
    assert len(first) == len(SECRET) + len(b"purpose") + 2 + 48
    assert unseal(seal(b"", purpose="", key=public_key(KEY)), purpose="", private_key=KEY) == b""


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(32)], ids=len)
def test_what_is_no_key_seals_nothing(key: bytes) -> None:
    with pytest.raises(SealBroken):
        seal(SECRET, purpose="p", key=key)
