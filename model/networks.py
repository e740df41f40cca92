"""What an instance reaches: everything, nothing, or named servers through a proxy of its agent's. Pure rules."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from model.base import Frozen

Mode = Literal["open", "none", "allow-list"]
MOST_ALLOWED = 100
#: Where the proxy listens, in the instance's own network, which has nothing but a loopback.
PROXY_ADDRESS, PROXY_PORT = "127.0.0.1", 18480
#: Of an entry that names none: http and https.
USUAL_PORTS = frozenset({80, 443})
MOST_NAME, MOST_PORT = 253, 65535

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_ENTRY = re.compile(rf"(\*\.)?({_LABEL}(?:\.{_LABEL})*)\.?(?::([1-9][0-9]{{0,4}}))?")
#: Of an entry, as documents show it.
ENTRY_PATTERN = f"^{_ENTRY.pattern}$"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
#: What ends so is an address, however it is written (https://url.spec.whatwg.org/#ends-in-a-number-checker).
_NUMBER = re.compile(r"(?:[0-9]+|0[xX][0-9a-fA-F]*)")


def _entry(value: str) -> str:
    found = _ENTRY.fullmatch(value)
    if not found or len(found[2]) > MOST_NAME:
        raise ValueError(
            "expected NAME, *.NAME, NAME:PORT or *.NAME:PORT, such as pypi.org or *.debian.org:443 "
            "(names of other alphabets as xn--…)"
        )
    if _NUMBER.fullmatch(found[2].rpartition(".")[2]):
        raise ValueError("expected the name of a server, not an address")
    if found[3] and int(found[3]) > MOST_PORT:
        raise ValueError(f"{found[3]} is not a port: 1 to {MOST_PORT}")
    port = f":{found[3]}" if found[3] else ""
    return f"{found[1] or ''}{found[2].lower()}{port}"


#: ``name``, ``*.name`` (all names below it, not itself), each with ``:port`` or without; lower case.
Entry = Annotated[str, Field(max_length=263, json_schema_extra={"pattern": ENTRY_PATTERN}), AfterValidator(_entry)]


def _each_once(entries: list[str]) -> list[str]:
    return list(dict.fromkeys(entries))


class Network(Frozen):
    """The network class of an instance."""

    mode: Mode = "open"
    #: Of mode `allow-list`: what may be reached by http and https through the proxy.
    allow: Annotated[list[Entry], Field(max_length=MOST_ALLOWED), AfterValidator(_each_once)] = []

    @model_validator(mode="after")
    def _is_whole(self) -> Network:
        if self.mode == "allow-list" and not self.allow:
            raise ValueError("allow: name at least one server, or take the mode none")
        if self.mode != "allow-list" and self.allow:
            raise ValueError(f"allow: is for the mode allow-list, and the mode is {self.mode}")
        return self

    @property
    def needs(self) -> list[str]:
        """What the agent of its host has to be capable of."""
        return [] if self.mode == "open" else [capability(self.mode)]

    @property
    def variables(self) -> dict[str, str]:
        """From which its programs know the proxy. Nothing, where there is none."""
        if self.mode != "allow-list":
            return {}
        proxy = f"http://{PROXY_ADDRESS}:{PROXY_PORT}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
        return dict.fromkeys(names, proxy) | dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")

    def __str__(self) -> str:
        """For people: ``allow-list: pypi.org, *.debian.org``."""
        return f"{self.mode}: {', '.join(self.allow)}" if self.allow else self.mode


OPEN = Network()


def capability(mode: Mode) -> str:
    """As agents say it and hosts show it."""
    return f"network.{mode}"


def server_name(host: str) -> str | None:
    """A name as entries have it; None: an address in whatever form, or no name at all."""
    name = host.removesuffix(".").lower()
    if len(name) > MOST_NAME or not _NAME.fullmatch(name) or _NUMBER.fullmatch(name.rpartition(".")[2]):
        return None
    return name


def permits(allow: Iterable[str], host: str, port: int) -> bool:
    """Whether an entry is for the server ``host`` (a name, never an address) and the port."""
    name = server_name(host)
    if name is None:
        return False
    for entry in allow:
        allowed, _, of_port = entry.partition(":")
        if port not in ({int(of_port)} if of_port else USUAL_PORTS):
            continue
        if name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:])):
            return True
    return False
