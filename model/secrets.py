"""Random secrets, and what is stored of them."""

from __future__ import annotations

import hashlib
import secrets


def new_key() -> str:
    return f"cairn_{secrets.token_urlsafe(32)}"


def new_credential() -> str:
    """With which the agent of hosts shows who it is."""
    return f"cairn_host_{secrets.token_urlsafe(32)}"


def new_join_token() -> str:
    return f"cairn_join_{secrets.token_urlsafe(32)}"


def digest(secret: str) -> bytes:
    """SHA-256. All of these have 256 random bits, so a fast hash gives nothing away."""
    return hashlib.sha256(secret.encode()).digest()


def new_webhook_secret() -> str:
    """With which events are signed."""
    return f"cairn_hook_{secrets.token_urlsafe(32)}"
