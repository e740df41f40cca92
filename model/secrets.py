"""Random secrets, and what is stored of them."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64encode
from uuid import UUID

_INVITATION = re.compile(r"cairn_invite_([0-9a-f]{32})_[A-Za-z0-9_-]{43}")


def new_key() -> str:
    return f"cairn_{secrets.token_urlsafe(32)}"


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
