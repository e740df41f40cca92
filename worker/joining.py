"""How a machine becomes a host: its identity is made, told to a platform, and kept.

Written so that it may be killed at any point and be run again. Keys are kept before they are told: whether the
platform knew them already makes no difference then. Old keys stay in use until new ones have a membership.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from model.hosts import AgentHost, is_simulated_name
from model.secrets import digest, new_credential
from model.settings import secret_variables
from worker import data_folder, identity
from worker.identity import Identity, Keys, Membership

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
#: The embedded stack keeps the identity of its own agent under this name.
RESERVED = "embedded"
BACKEND = "docker"
#: Settings that open something of the platform, written in whatever case: an agent has a credential of its own. (Its
#: metrics are its own, too.)
KEYS_OF_PLATFORM = secret_variables() - {"CAIRN_METRICS_TOKEN"} | {"CAIRN_JOIN_TOKEN"}
#: Digests of used tokens that are kept, the newest ones.
MOST_TOKENS = 20

#: Sends the body of ``POST /v1/hosts/register``; the ``data`` of the answer.
Ask = Callable[[dict[str, Any]], dict[str, Any]]


class JoinError(Exception):
    """This machine cannot join, or run its agent; the message says what to do."""


@dataclass(frozen=True)
class Wanted:
    """What one run of ``cairn host join`` was given."""

    name: str
    #: Ends in /v1. None: where it joined before.
    api_url: str | None = None
    token: str | None = None
    rotate: bool = False
    #: The platform was restored, and does not know the host any more: it keeps its id.
    restored: bool = False
    #: Environment variables for the agent.
    options: Mapping[str, str] | None = None


def checked_name(name: str) -> str:
    """``name`` where a host may have it; it becomes part of a path. Raises JoinError."""
    if not NAME.fullmatch(name):
        raise JoinError(f"'{name}' cannot be a host's name: letters, digits, '.', '_' and '-', at most 63 of them")
    if name == RESERVED:
        raise JoinError(f"'{RESERVED}' is the agent of a platform on this machine: take another name")
    if is_simulated_name(name):
        raise JoinError(f"'{name}' is kept for a simulated host of the platform: take another name")
    return name


def api_root(url: str) -> str:
    """An API's address, with or without /v1, as agents keep it. Raises JoinError."""
    try:
        parts = urlsplit(url.strip())
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        raise JoinError(f"'{url}' is not an address of an API, such as https://cairn.example.org")
    root = url.strip().rstrip("/")
    return root if root.endswith("/v1") else f"{root}/v1"


def join(path: Path, wanted: Wanted, facts: Mapping[str, Any], ask: Ask, refused: type[Exception]) -> Identity:
    """Join with a token that is new to this host, or do nothing where it has joined already; what is kept now.

    ``facts``: capacity, labels and versions, as ``POST /v1/hosts/register`` takes them. Raises JoinError, and
    whatever ``ask`` raises; then the identity that was there before is there still, and works as it did. New keys
    that it was asked with are kept beside it, unless ``ask`` raised ``refused``: the platform certainly has not
    taken them.
    """
    with _alone(path):
        before = known = identity.read(path)
        told = dict(wanted.options or {})
        if wanted.token is None or (known and known.membership and _known_token(wanted.token) in known.tokens):
            return _as_it_is(path, known, wanted, told)
        if wanted.api_url is None:
            raise JoinError("give the address of the API: --url, or CAIRN_API_URL")
        known = known or Identity(keys=identity.new_keys(wanted.name))
        if wanted.rotate and known.membership and known.next_keys is None:
            known = known.model_copy(update={"next_keys": identity.new_keys(wanted.name)})
        credential = known.next_credential or new_credential()
        identity.write(path, known.model_copy(update={"next_credential": credential}))
        keys = known.next_keys or known.keys
        try:
            former = known.membership.hosts[0].id if wanted.restored and known.membership else None
            answer = ask(_request(wanted, keys, credential, facts) | ({"host_id": str(former)} if former else {}))
        except refused:
            if before is not None:
                identity.write(path, before)
            raise
        joined = Identity(
            keys=keys,
            membership=_membership(wanted.api_url, credential, answer),
            tokens=[*known.tokens, _known_token(wanted.token)][-MOST_TOKENS:],
            options=known.options | told,
        )
        identity.write(path, joined)
        return joined


def _as_it_is(path: Path, known: Identity | None, wanted: Wanted, told: dict[str, str]) -> Identity:
    if known is None or known.membership is None:
        raise JoinError(
            f"host '{wanted.name}' has not joined a platform: give a token of 'cairn host token' (--token, "
            "or CAIRN_JOIN_TOKEN)"
        )
    membership = known.membership
    if wanted.api_url:
        membership = membership.model_copy(update={"api_url": wanted.api_url})
    now = known.model_copy(update={"membership": membership, "options": known.options | told})
    if now != known:
        identity.write(path, now)
    return now


def remember_temporal(path: Path, address: str) -> None:
    """The platform has moved its Temporal server: what the agent goes by at its next start."""
    with _alone(path):
        known = identity.read(path)
        if known is not None and known.membership is not None:
            membership = known.membership.model_copy(update={"temporal_address": address})
            identity.write(path, known.model_copy(update={"membership": membership}))


def _request(wanted: Wanted, keys: Keys, credential: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **facts,
        "token": wanted.token,
        "name": wanted.name,
        "engines": [BACKEND],
        "public_key": b64encode(keys.public_key).decode(),
        "fingerprint": keys.fingerprint.hex(),
        "credential_digest": digest(credential).hex(),
    }


def _membership(api_url: str, credential: str, answer: Mapping[str, Any]) -> Membership:
    return Membership(
        api_url=api_url,
        installation=answer["installation"],
        temporal_address=answer["temporal_address"],
        temporal_namespace=answer["temporal_namespace"],
        credential=credential,
        hosts=[AgentHost(id=answer["id"], name=answer["name"], backend=BACKEND)],
        ticket_keys=answer["ticket_keys"],
    )


def _known_token(token: str) -> str:
    return digest(token).hex()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two that join as one host at once would each make keys of their own."""
    identity.make_folder(path)
    fd = os.open(path.with_suffix(".joining"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        data_folder.give(fd, path.parent)
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def run_agent(path: Path, known: Identity, environ: Mapping[str, str]) -> None:
    """Become the agent of this identity. Raises JoinError where one runs already; does not return otherwise.

    The lock is the agent's from then on, and free when it ends, however it ends.
    """
    program = Path(sys.executable).with_name("cairn-agent")
    if not program.exists():
        raise JoinError(f"{program} is missing: install the package whole")
    fd = os.open(path.with_suffix(".running"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise JoinError(f"an agent of host '{path.stem}' runs already, with the identity {path}") from None
    os.set_inheritable(fd, True)
    os.execve(program, [str(program)], agent_environ(path, known, environ))  # noqa: S606 - it has no shell


def agent_environ(path: Path, known: Identity, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of an agent: what it was given here or before; nothing that opens the platform."""
    own = {name for name in environ if name.upper().removesuffix("_FILE") in KEYS_OF_PLATFORM}
    kept = {name: value for name, value in environ.items() if name not in own}
    made = kept | known.options | {"CAIRN_AGENT_IDENTITY": str(path.absolute())}
    if known.membership is not None and "CAIRN_TEMPORAL_ADDRESS" in made:
        # An agent that is told one of the two takes neither from its membership.
        made.setdefault("CAIRN_TEMPORAL_NAMESPACE", known.membership.temporal_namespace)
    return made
