"""Values sealed for one host: only its agent can read them.

X25519 sealed boxes of libsodium (https://doc.libsodium.org/public-key_cryptography/sealed_boxes): anonymous, a
new ephemeral key for every value. What a value is for is sealed with it, so that one cannot be put in the place
of another.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from uuid import UUID

from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from model.errors import CairnError


class SealBroken(CairnError):
    """The value was sealed for another key or another purpose, or was changed."""

    code, status = "seal_broken", 422


def new_private_key() -> bytes:
    """32 bytes, X25519."""
    return bytes(PrivateKey.generate())


def public_key(private_key: bytes) -> bytes:
    return bytes(PrivateKey(private_key).public_key)


def of_user_data(instance_id: UUID) -> str:
    """The purpose of an instance's script."""
    return f"user_data:{instance_id}"


def of_secrets(instance_id: UUID, generation: int) -> str:
    """The purpose of what one placement of an instance is given."""
    return f"secrets:{instance_id}:{generation}"


def of_login(image_id: UUID) -> str:
    """The purpose of the login with which an image is pulled that is being imported."""
    return f"registry:{image_id}"


def of_git_login(workspace_id: UUID) -> str:
    """The purpose of the credential with which a workspace is fetched."""
    return f"git:{workspace_id}"


def seal(value: bytes, *, purpose: str, key: bytes) -> str:
    """``value`` for the holder of the private half of ``key``; base64, 48 bytes and the purpose longer.

    Raises SealBroken where ``key`` is none.
    """
    told = purpose.encode()
    plain = len(told).to_bytes(2, "big") + told + value
    try:
        return b64encode(SealedBox(PublicKey(key)).encrypt(plain)).decode()
    except CryptoError as error:
        raise SealBroken("the host has no key that values can be sealed for: let it join again") from error


def unseal(sealed: str, *, purpose: str, private_key: bytes) -> bytes:
    """Raises SealBroken."""
    try:
        plain = SealedBox(PrivateKey(private_key)).decrypt(b64decode(sealed, validate=True))
    except (CryptoError, ValueError) as error:
        raise SealBroken("the value was not sealed for this host, or was changed since") from error
    end = 2 + int.from_bytes(plain[:2], "big")
    if plain[2:end] != purpose.encode():
        raise SealBroken("the value was sealed for another purpose")
    return plain[end:]
