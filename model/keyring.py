"""The master keys: from them come the keys that sign access tokens, and the one under which projects' data keys lie.

Written as words, the newest first: ``id:base64``, or the base64 alone, of which the id is the beginning of its SHA-256;
each key is 32 random bytes. The newest makes what is new, the others only open what they made. Every API and control
worker of an installation has the same; agents have none.
"""

from __future__ import annotations

import binascii
import hashlib
import re
import secrets
from base64 import b64decode, b64encode
from collections.abc import Iterator

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from model.errors import CairnError

KEY_BYTES = 32
_ID_DIGITS = 8
_WORD = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


class KeyUnknown(CairnError):
    """Something was made under a master key that this process does not have."""

    code, status = "key_unknown", 500


class Keyring:
    """Master keys by their ids, the newest first. ``text`` is in no message. Raises ValueError."""

    def __init__(self, text: str) -> None:
        self._keys: dict[str, bytes] = {}
        for word in text.replace(",", " ").split():
            name, colon, encoded = word.rpartition(":")
            try:
                key = b64decode(encoded, validate=True)
            except (ValueError, binascii.Error):
                key = b""
            if not colon:
                name = hashlib.sha256(key).hexdigest()[:_ID_DIGITS]
            if not _WORD.fullmatch(name) or len(key) != KEY_BYTES or name in self._keys:
                raise ValueError("expected keys of 32 bytes in base64, or id:key, the ids distinct")
            self._keys[name] = key
        if not self._keys:
            raise ValueError("expected at least one key")

    @property
    def newest(self) -> str:
        """The id of the key that makes what is new."""
        return next(iter(self._keys))

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    @property
    def ids(self) -> list[str]:
        """Of all keys, the newest first."""
        return list(self._keys)

    def __contains__(self, key_id: object) -> bool:
        return key_id in self._keys

    def derive(self, key_id: str, purpose: str) -> bytes:
        """32 bytes that are this key's for the purpose alone: HKDF-SHA256 (RFC 5869). Raises KeyUnknown."""
        if key_id not in self._keys:
            raise KeyUnknown(f"the master key '{key_id}' is not among CAIRN_MASTER_KEYS")
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=f"cairn {purpose}".encode()).derive(self._keys[key_id])


def new_master_key(name: str) -> str:
    """A word of a keyring."""
    return f"{name}:{b64encode(secrets.token_bytes(KEY_BYTES)).decode()}"
