"""Which keys are public keys, and what is said of those that are not."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from model.ssh_keys import parse

_MADE = ed25519.Ed25519PrivateKey.generate()


def public(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


@pytest.mark.parametrize(
    "key",
    [
        _MADE,
        *(ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["ed25519", "p256", "p384", "p521", "rsa"],
)
def test_keys_of_every_type_with_and_without_a_comment(key: ed25519.Ed25519PrivateKey) -> None:
    text = public(key)
    found = parse(text)
    assert found == parse(f"  {text} \n\n")
    assert found.text == text
    assert parse(f"{text} me at  home").text == f"{text} me at  home"
    digest = hashlib.sha256(base64.b64decode(text.split()[1])).digest()
    assert found.fingerprint == "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
    assert found.type == text.split()[0]


def private(format: PrivateFormat) -> str:
    return _MADE.private_bytes(Encoding.PEM, format, NoEncryption()).decode()


@pytest.mark.parametrize(
    "text",
    [private(PrivateFormat.OpenSSH), private(PrivateFormat.PKCS8), "PuTTY-User-Key-File-3: ssh-ed25519\nsecret"],
    ids=["openssh", "pkcs8", "putty"],
)
def test_private_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="private key") as refused:
        parse(text)
    assert not any(line in str(refused.value) for line in text.splitlines())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "ssh-ed25519 ????",
        f"{public(_MADE)}\n{public(_MADE)}",
        public(_MADE)[:-20],
        f'command="reboot" {public(_MADE)}',
        public(_MADE).replace("ssh-ed25519 ", "ssh-rsa "),
        f"{public(_MADE)} \x1b[31mred",
        public(rsa.generate_private_key(65537, 1024)),  # noqa: S505 - to be refused
        "ssh-dss AAAA",
        "ssh-ed25519-cert-v01@openssh.com AAAA",
    ],
    ids=lambda text: str(len(text)),
)
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"key|RSA"):
        parse(text)
