"""Values that lie in the database encrypted: AES-256-GCM (NIST SP 800-38D) in an envelope.

Each project has data keys of its own, which encrypt its values, and lie themselves wrapped: encrypted under a key that
is derived from a master key. What a value is, and whose, is authenticated with it: in another project's row, under
another name or as another version it does not open.
"""

from __future__ import annotations

import secrets
from typing import NamedTuple
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from model.errors import CairnError
from model.keyring import KEY_BYTES, Keyring

NONCE_BYTES = 12
#: What the wrapping keys are derived for.
WRAPPING = "data keys"


class EnvelopeBroken(CairnError):
    """The value was changed, is another's, or was encrypted under another key."""

    code, status = "envelope_broken", 500


class Encrypted(NamedTuple):
    """``ciphertext``: 16 bytes, the tag, longer than the value."""

    nonce: bytes
    ciphertext: bytes


def of_secret(project_id: UUID, name: str, version: int) -> bytes:
    """What a version of a secret is. No name has a space."""
    return f"cairn secret {project_id} {name} {version}".encode()


def of_value(project_id: UUID, kind: str, owner: UUID | None) -> bytes:
    """What something sealed is that no secret is: ``webhook`` or ``user_data``, and whose."""
    return f"cairn {kind} {project_id} {owner}".encode()


def encrypt(key: bytes, value: bytes, what: bytes) -> Encrypted:
    """Under a data key. The nonce is random: one key is good for 2^32 values."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return Encrypted(nonce, AESGCM(key).encrypt(nonce, value, what))


def decrypt(key: bytes, encrypted: Encrypted, what: bytes) -> bytes:
    """Raises EnvelopeBroken."""
    try:
        return AESGCM(key).decrypt(encrypted.nonce, encrypted.ciphertext, what)
    except (InvalidTag, ValueError):
        raise EnvelopeBroken("a secret does not open: its row was changed, or is another's") from None


def new_data_key() -> bytes:
    return secrets.token_bytes(KEY_BYTES)


def wrap(keyring: Keyring, master_key: str, key: bytes, *, project_id: UUID, key_id: UUID) -> bytes:
    """A data key as it is stored: the nonce, and what is encrypted. Raises KeyUnknown."""
    return b"".join(encrypt(keyring.derive(master_key, WRAPPING), key, _of_key(project_id, key_id)))


def unwrap(keyring: Keyring, master_key: str, wrapped: bytes, *, project_id: UUID, key_id: UUID) -> bytes:
    """Raises KeyUnknown, EnvelopeBroken."""
    stored = Encrypted(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:])
    return decrypt(keyring.derive(master_key, WRAPPING), stored, _of_key(project_id, key_id))


def _of_key(project_id: UUID, key_id: UUID) -> bytes:
    return f"cairn data key {project_id} {key_id}".encode()
