"""Who a host agent is: its keys, its certificate, its credential, and where its platform is.

One file, for its owner alone. A host that joins keeps its keys from before it asks, so that it may ask again
where the answer was lost.
"""

from __future__ import annotations

import datetime as dt
import os
from base64 import b64decode, b64encode
from pathlib import Path
from uuid import UUID

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from model import sealing
from model.base import Frozen
from model.hosts import AgentHost
from model.settings import Settings
from worker import data_folder

#: The API knows the certificate by its fingerprint: its end would only be one more way to fail.
CERTIFICATE_LIFE = dt.timedelta(days=3650)


class Keys(Frozen):
    """What an agent makes for itself, once."""

    #: X25519, base64.
    private_key: str
    #: PEM.
    certificate: str
    certificate_key: str

    @property
    def public_key(self) -> bytes:
        return sealing.public_key(b64decode(self.private_key))

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the certificate, 32 bytes."""
        return x509.load_pem_x509_certificate(self.certificate.encode()).fingerprint(hashes.SHA256())


class Membership(Frozen):
    """What a platform told an agent that joined it."""

    api_url: str
    installation: UUID
    temporal_address: str
    temporal_namespace: str
    credential: str
    hosts: list[AgentHost]
    #: Public keys of tickets, PEM.
    ticket_keys: list[str]


def api_client(membership: Membership, seconds: float) -> httpx.AsyncClient:
    """For what an agent tells its API, with its credential, by no proxy. ``seconds``: for each part of an answer."""
    return httpx.AsyncClient(
        base_url=membership.api_url,
        headers={"Authorization": f"Bearer {membership.credential}"},
        timeout=seconds,
        trust_env=False,
    )


class Identity(Frozen):
    """The file of an agent. Without ``membership`` it has not joined yet."""

    keys: Keys
    membership: Membership | None = None
    #: What it is to join with next: they take the place of ``keys`` together with a new membership.
    next_keys: Keys | None = None
    #: The same, of the credential: what the platform is told its digest of.
    next_credential: str | None = None
    #: SHA-256 of the tokens that it joined with, in hexadecimal digits: they need not be asked about again.
    tokens: list[str] = []
    #: Environment variables of its agent, as they were given when it joined or later.
    options: dict[str, str] = {}


def new_keys(name: str) -> Keys:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"cairn agent {name}"[:64])])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Machines that join may have clocks that are late.
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + CERTIFICATE_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Keys(
        private_key=b64encode(sealing.new_private_key()).decode(),
        certificate=certificate.public_bytes(Encoding.PEM).decode(),
        certificate_key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    )


def path_of(folder: Path, name: str) -> Path:
    """Where the agent of a host keeps its identity."""
    return folder / "agents" / f"{name}.json"


def file_of(settings: Settings) -> Path:
    """Of this agent; ends the process where it has none."""
    if settings.agent_identity is None:
        raise SystemExit("CAIRN_AGENT_IDENTITY is not set: an agent is started with 'cairn host join'")
    return settings.agent_identity


def of_agent(settings: Settings) -> tuple[Keys, Membership]:
    """Who this agent is, and what it was told when it joined; ends the process where it has not."""
    known = read(file_of(settings))
    if known is None or known.membership is None:
        raise SystemExit(f"{settings.agent_identity}: this host has not joined a platform: run 'cairn host join'")
    return known.keys, known.membership


def read(path: Path) -> Identity | None:
    try:
        return Identity.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None


def make_folder(path: Path) -> None:
    """The folder of an identity, for its owner alone; so is the data folder, where it is made here."""
    path.parents[1].mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = not path.parent.exists()
    path.parent.mkdir(mode=0o700, exist_ok=True)
    os.chmod(path.parent, 0o700)
    if fresh:
        data_folder.give(path.parent, path.parents[1])


def write(path: Path, identity: Identity) -> None:
    make_folder(path)
    data_folder.write(path, identity.model_dump_json(indent=2) + "\n")


def capacity(settings: Settings) -> tuple[float, int]:
    """CPUs and memory (MiB) that this machine gives: measured, unless the settings say."""
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return settings.host_cpus or os.cpu_count() or 1, settings.host_memory_mb or memory_mb
