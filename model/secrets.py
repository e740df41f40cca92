"""Random secrets, and what is stored of them."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import zlib
from base64 import urlsafe_b64encode
from uuid import UUID

_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
#: Characters for 128, 256 and 32 bits.
_ID, _SECRET, _CHECKSUM = 22, 43, 6
#: Those of ``new_key``, in the length of which a new one is no different when cut off just there.
_OLD = 43
_NEW = re.compile(rf"[0-9A-Za-z]{{{_ID}}}_")
_INVITATION = re.compile(r"cairn_invite_([0-9a-f]{32})_[A-Za-z0-9_-]{43}")


def new_key() -> str:
    """Of an installation, before it has a row."""
    return f"cairn_{secrets.token_urlsafe(32)}"


def api_key_of(key_id: UUID, secret: bytes) -> str:
    """``cairn_<id>_<secret><checksum>``, each in base 62. What looks like one and is not whole is known as such
    (``is_damaged``) without asking anybody; the id leads from a key that was found somewhere to its row."""
    body = f"{_base62(key_id.int, _ID)}_{_base62(int.from_bytes(secret), _SECRET)}"
    return f"cairn_{body}{_checksum(body)}"


def is_damaged(key: str) -> bool:
    """Whether it begins as ``api_key_of`` makes them, and is none. Older keys have other lengths or letters."""
    body = key.removeprefix("cairn_")
    if body == key or not _NEW.match(body) or len(body) == _OLD:
        return False
    return len(body) != _ID + 1 + _SECRET + _CHECKSUM or _checksum(body[:-_CHECKSUM]) != body[-_CHECKSUM:]


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECKSUM)


def _base62(number: int, width: int) -> str:
    found = ""
    while number:
        number, digit = divmod(number, len(_DIGITS))
        found = _DIGITS[digit] + found
    return found.rjust(width, "0")


def new_credential() -> str:
    """With which the agent of hosts shows who it is."""
    return f"cairn_host_{secrets.token_urlsafe(32)}"


def new_join_token() -> str:
    return f"cairn_join_{secrets.token_urlsafe(32)}"


def join_token_of(token_id: UUID, key: str) -> str:
    """The token of this id that somebody with the key can make again, and nobody else: HMAC-SHA256 (RFC 2104)."""
    made = hmac.digest(key.encode(), b"cairn join token " + token_id.bytes, "sha256")
    return f"cairn_join_{urlsafe_b64encode(made).decode().rstrip('=')}"


def new_invitation(project_id: UUID) -> str:
    """With which somebody becomes a member of the project that it names."""
    return f"cairn_invite_{project_id.hex}_{secrets.token_urlsafe(32)}"


def project_of_invitation(token: str) -> UUID | None:
    """None where it is no such token."""
    found = _INVITATION.fullmatch(token)
    return UUID(found[1]) if found else None


def digest(secret: str) -> bytes:
    """SHA-256. All of these have 256 random bits, so a fast hash gives nothing away."""
    return hashlib.sha256(secret.encode()).digest()


def new_webhook_secret() -> str:
    """With which events are signed."""
    return f"cairn_hook_{secrets.token_urlsafe(32)}"
