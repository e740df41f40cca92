"""Tickets: what the API signs so that an agent opens one stream of one instance.

JSON Web Tokens (RFC 7519), signed with Ed25519 (RFC 8037). An agent knows only the public half.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Literal
from uuid import UUID

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from model.base import Frozen, new_id
from model.errors import Unauthenticated

#: From its signature to its use; a stream that it opened may last longer.
TICKET_SECONDS = 30
Verb = Literal["logs", "stats", "exec", "terminal", "read", "write", "files", "change", "call", "join", "forward"]
#: These only read what may be read again: their tickets may be used until they expire.
REPEATABLE: frozenset[Verb] = frozenset({"logs", "stats", "files"})
_ALGORITHM = "EdDSA"


class Ticket(Frozen):
    """One instance, or one session, and one verb."""

    instance: UUID
    verb: Verb
    #: Whose it is; None: the API is of the release before, and does not say.
    project: UUID | None = None


def new_signing_key() -> str:
    """A private key, PEM."""
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def check_signing_key(value: str) -> str:
    """The key, PEM, with its lines apart also where they were written as ``\\n``. Raises ValueError."""
    value = value.replace("\\n", "\n")
    try:
        if isinstance(load_pem_private_key(value.encode(), None), Ed25519PrivateKey):
            return value
    except (ValueError, TypeError, UnsupportedAlgorithm):
        pass
    raise ValueError("expected an Ed25519 private key in PEM, without a password: openssl genpkey -algorithm ed25519")


def verifying_key(signing_key: str) -> str:
    """Its public half, PEM."""
    key = load_pem_private_key(signing_key.encode(), None)
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def sign(ticket: Ticket, *, host: UUID, key: str, seconds: float = TICKET_SECONDS) -> str:
    """A ticket for the agent of ``host`` alone."""
    claims = {
        "aud": str(host),
        "sub": str(ticket.instance),
        "verb": ticket.verb,
        "exp": time.time() + seconds,
        "jti": str(new_id()),
        **({} if ticket.project is None else {"project": str(ticket.project)}),
    }
    return jwt.encode(claims, key, algorithm=_ALGORITHM)


class Gate:
    """Checks tickets of one agent. May be used by several threads."""

    def __init__(self, keys: list[str]) -> None:
        """``keys``: those that the API may sign with; more than one while it changes them."""
        self.keys = keys
        self._used: dict[str, float] = {}
        self._since = time.time()
        self._lock = threading.Lock()

    def learn(self, keys: list[str]) -> None:
        self.keys = keys

    def check(self, token: str, wanted: Ticket, host: UUID) -> Ticket:
        """Let one use in: the ticket that was signed. Raises Unauthenticated, in the same words whatever is wrong."""
        claims = self._read(token, host)
        if claims is None or claims["sub"] != str(wanted.instance) or claims.get("verb") != wanted.verb:
            raise Unauthenticated("the ticket does not open this")
        if wanted.verb not in REPEATABLE and not self._first_use(claims["jti"], claims["exp"]):
            raise Unauthenticated("the ticket does not open this")
        project = claims.get("project")
        return wanted if project is None else wanted.model_copy(update={"project": UUID(project)})

    def _read(self, token: str, host: UUID) -> dict[str, Any] | None:
        for key in self.keys:
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key,
                    algorithms=[_ALGORITHM],
                    audience=str(host),
                    options={"require": ["exp", "aud", "sub", "jti"]},
                )
            except jwt.InvalidTokenError:
                continue
            return claims
        return None

    def _first_use(self, jti: str, expires: float) -> bool:
        if expires - TICKET_SECONDS < self._since:
            return False  # an earlier life of the agent may have let it in
        with self._lock:
            now = time.time()
            for old in [used for used, until in self._used.items() if until < now]:
                del self._used[old]
            if jti in self._used:
                return False
            self._used[jti] = expires
            return True
