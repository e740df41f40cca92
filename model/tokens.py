"""Access tokens of users who have logged in: JSON Web Tokens (RFC 7519), HMAC-SHA256.

Their key is derived from a master key and the week, and both stand in the ``kid``: so it changes by itself, and is the
same in every API process, with nothing to hand around. A token says who and which session; what that may do is
looked up at every request.
"""

from __future__ import annotations

import time
from functools import lru_cache
from uuid import UUID

import jwt

from model.errors import Unauthenticated
from model.keyring import Keyring

ACCESS_SECONDS = 900
#: One that was signed in the last second of a week is taken in the next.
_WEEK_SECONDS = 7 * 24 * 3600
_ALGORITHM = "HS256"
_ISSUER = "cairn"
#: Head, claims, signature.
_PARTS = 3


class Tokens:
    """Signs and reads them, for one installation: the tokens of another are not taken."""

    def __init__(self, keyring: Keyring, installation: str) -> None:
        self._keyring = keyring
        self._audience = installation
        self._key = lru_cache(maxsize=16)(self._derive)

    def sign(self, user_id: UUID, session_id: UUID) -> str:
        """Valid for ``ACCESS_SECONDS``."""
        now = time.time()
        kid = f"{self._keyring.newest}.{int(now) // _WEEK_SECONDS}"
        claims = {
            "iss": _ISSUER,
            "aud": self._audience,
            "sub": str(user_id),
            "sid": str(session_id),
            "iat": int(now),
            "exp": int(now) + ACCESS_SECONDS,
        }
        return jwt.encode(claims, self._key(kid), _ALGORITHM, headers={"kid": kid})

    def session_of(self, token: str) -> UUID:
        """Raises Unauthenticated."""
        try:
            kid = str(jwt.get_unverified_header(token).get("kid", ""))
            name, _, week = kid.rpartition(".")
            now = int(time.time()) // _WEEK_SECONDS
            # Of the next week, too: the clock of who signed it may be ahead of this one.
            if name not in self._keyring or week not in (str(now), str(now - 1), str(now + 1)):
                raise Unauthenticated("the access token was signed with a key that is not used any more; log in again")
            claims = jwt.decode(
                token,
                self._key(kid),
                [_ALGORITHM],
                audience=self._audience,
                issuer=_ISSUER,
                # When it was signed says nothing here, and need not be over by this clock.
                options={"require": ["iss", "aud", "sub", "sid", "iat", "exp"], "verify_iat": False},
            )
            return UUID(claims["sid"])
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the access token has expired: refresh it, or log in again") from None
        except (jwt.PyJWTError, ValueError, AttributeError, TypeError):
            raise Unauthenticated("the access token is not valid") from None

    def _derive(self, kid: str) -> bytes:
        name, _, week = kid.rpartition(".")
        return self._keyring.derive(name, f"access tokens {week}")


def is_token(shown: str) -> bool:
    """Whether it has the form of one; API keys have no dots."""
    return len(shown.split(".")) == _PARTS
