"""SSH keys: public halves that users keep here, for the instances that they launch."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import NamedTuple
from uuid import UUID

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, Id, Now

LEAST_RSA_BITS = 2048
#: Characters, comment included: RSA of 16384 bits has some 2,800.
LONGEST = 8192
TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
#: What private keys begin with, whoever wrote them.
_PRIVATE = re.compile(r"PRIVATE KEY|PuTTY-User-Key-File", re.IGNORECASE)
_PARTS = 3


class PublicKey(NamedTuple):
    """``text``: type, key and comment, as in an authorized_keys file."""

    text: str
    type: str
    #: As ``ssh-keygen -l`` shows it: SHA256:…
    fingerprint: str


def is_private(text: str) -> bool:
    return bool(_PRIVATE.search(text))


def parse(text: str) -> PublicKey:
    """One public key, as OpenSSH writes it. Raises ValueError, which repeats nothing of the text."""
    if is_private(text):
        raise ValueError(
            "this is a private key: it was not stored, and should not be sent anywhere. Send its public half, "
            "which is in the file that ends in .pub; consider the private one as known"
        )
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) != 1 or any(not character.isprintable() for character in lines[0]):
        raise ValueError("expected one public key, on one line")
    type, *rest = lines[0].split(maxsplit=_PARTS - 1)
    if type not in TYPES or not rest:
        raise ValueError(f"expected a public key such as 'ssh-ed25519 AAAA… comment'; types: {', '.join(TYPES)}")
    try:
        blob = base64.b64decode(rest[0], validate=True)
        key = load_ssh_public_key(f"{type} {rest[0]}".encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"this is no {type} key: was it cut off, or broken into lines?") from None
    if isinstance(key, RSAPublicKey) and key.key_size < LEAST_RSA_BITS:
        raise ValueError(f"an RSA key has at least {LEAST_RSA_BITS} bits, this one has {key.key_size}")
    fingerprint = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return PublicKey(" ".join([type, *rest]).strip(), type, f"SHA256:{fingerprint}")


class SshKey(Base):
    """Never changed: another key is another row. Instances keep what they were launched with, in their own row."""

    __tablename__ = "ssh_keys"

    id: Mapped[Id]
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    type: Mapped[str]
    public_key: Mapped[str]
    fingerprint: Mapped[str]
    created_at: Mapped[Now]

    __table_args__ = (UniqueConstraint("project_id", "name"),)
