"""Values open where they belong, with the key that they were encrypted under, and nowhere else."""

from __future__ import annotations

from base64 import b64encode
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from model.base import new_id
from model.envelope import Encrypted, EnvelopeBroken, decrypt, encrypt, new_data_key, of_secret, unwrap, wrap
from model.keyring import Keyring, KeyUnknown

MASTER = bytes(range(32))
KEYRING = Keyring(f"one:{b64encode(MASTER).decode()} two:{b64encode(bytes(32)).decode()}")
PROJECT, KEY_ID = UUID(int=1), UUID(int=2)


def test_structure_is_aes_256_gcm_under_a_key_that_is_derived_from_the_master_key() -> None:
    """Put together here with nothing of ours, so that another program can open what lies in the database."""
    key = new_data_key()
    wrapped = wrap(KEYRING, "one", key, project_id=PROJECT, key_id=KEY_ID)
    wrapping = HKDF(SHA256(), 32, salt=None, info=b"cairn data keys").derive(MASTER)
    told = b"cairn data key 00000000-0000-0000-0000-000000000001 00000000-0000-0000-0000-000000000002"
    assert len(wrapped) == 12 + 32 + 16
    assert AESGCM(wrapping).decrypt(wrapped[:12], wrapped[12:], told) == key
    made = encrypt(key, b"value", of_secret(PROJECT, "db", 3))
    told = b"cairn secret 00000000-0000-0000-0000-000000000001 db 3"
    assert (len(made.nonce), len(made.ciphertext)) == (12, 5 + 16)
    assert AESGCM(key).decrypt(made.nonce, made.ciphertext, told) == b"value"
    assert decrypt(key, made, told) == b"value"


def test_same_value_never_looks_the_same() -> None:
    key = new_data_key()
    made = [encrypt(key, b"value", b"") for _ in range(100)]
    assert len({one.nonce for one in made}) == len({one.ciphertext for one in made}) == 100


@pytest.mark.parametrize(
    "what",
    [of_secret(new_id(), "db", 1), of_secret(PROJECT, "other", 1), of_secret(PROJECT, "db", 2), b""],
    ids=["another project's", "another name", "another version", "nothing"],
)
def test_value_opens_nowhere_else(what: bytes) -> None:
    key = new_data_key()
    made = encrypt(key, b"value", of_secret(PROJECT, "db", 1))
    with pytest.raises(EnvelopeBroken) as broken:
        decrypt(key, made, what)
    assert "value" not in str(broken.value)


def test_each_changed_bit_and_another_key_are_noticed() -> None:
    key, what = new_data_key(), of_secret(PROJECT, "db", 1)
    nonce, ciphertext = encrypt(key, b"value", what)
    for place in range(len(ciphertext)):
        changed = ciphertext[:place] + bytes([ciphertext[place] ^ 1]) + ciphertext[place + 1 :]
        with pytest.raises(EnvelopeBroken):
            decrypt(key, Encrypted(nonce, changed), what)
    for broken in (Encrypted(nonce, ciphertext[:-1]), Encrypted(bytes(12), ciphertext), Encrypted(b"", b"")):
        with pytest.raises(EnvelopeBroken):
            decrypt(key, broken, what)
    with pytest.raises(EnvelopeBroken):
        decrypt(new_data_key(), Encrypted(nonce, ciphertext), what)


def test_data_key_opens_only_as_the_one_that_it_is() -> None:
    key = new_data_key()
    wrapped = wrap(KEYRING, "one", key, project_id=PROJECT, key_id=KEY_ID)
    assert unwrap(KEYRING, "one", wrapped, project_id=PROJECT, key_id=KEY_ID) == key
    for master, project, id in (("two", PROJECT, KEY_ID), ("one", KEY_ID, KEY_ID), ("one", PROJECT, PROJECT)):
        with pytest.raises(EnvelopeBroken):
            unwrap(KEYRING, master, wrapped, project_id=project, key_id=id)
    with pytest.raises(KeyUnknown, match="'three' is not among CAIRN_MASTER_KEYS"):
        unwrap(KEYRING, "three", wrapped, project_id=PROJECT, key_id=KEY_ID)
