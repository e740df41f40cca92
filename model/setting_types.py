"""What a setting may be: how its text is read, and what is refused."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

TLS_OFF = "tls=off"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _parse_port_range(value: object) -> object:
    if isinstance(value, str):
        low, dash, high = value.partition("-")
        if not dash:
            raise ValueError("expected LOW-HIGH, for example 20000-29999")
        value = (int(low), int(high))
        if not 1 <= value[0] <= value[1]:
            raise ValueError("LOW-HIGH: LOW is at least 1, and HIGH at least LOW")
    return value


def _check_ticket_key(value: SecretStr) -> SecretStr:
    from model.tickets import check_signing_key  # what it needs is large, and most processes have no such key

    return SecretStr(check_signing_key(value.get_secret_value()))


def _check_master_keys(value: SecretStr) -> SecretStr:
    from model.keyring import Keyring  # as above

    Keyring(value.get_secret_value())
    return value


def smtp_server(url: str) -> SplitResult:
    """Raises ValueError where it names no server."""
    where = urlsplit(url)
    if where.scheme not in ("smtp", "smtps") or not where.hostname:
        raise ValueError("expected smtp://HOST:PORT or smtps://HOST:PORT")
    if where.query not in ("", TLS_OFF) or (where.query and where.scheme == "smtps"):
        raise ValueError(f"behind smtp://HOST:PORT only ?{TLS_OFF} may stand")
    if where.username and where.query and where.hostname not in LOOPBACK:
        raise ValueError("a password is not sent in clear: without ?tls=off")
    return where


def _check_smtp(value: SecretStr) -> SecretStr:
    smtp_server(value.get_secret_value())
    return value


def _check_rate(value: str) -> str:
    from model.rates import rate  # as above

    try:
        rate(value)
    except ValueError:
        raise ValueError("expected a rate such as 600/minute, or 0 for no limit") from None
    return value


def _parse_words(value: object) -> object:
    return tuple(one.strip().lower() for one in value.split(",") if one.strip()) if isinstance(value, str) else value


def _check_origins(value: tuple[str, ...]) -> tuple[str, ...]:
    for one in value:
        parts = urlsplit(one)
        if parts.scheme not in ("http", "https") or f"{parts.scheme}://{parts.netloc}" != one or not parts.netloc:
            raise ValueError(f"'{one}': expected scheme://host[:port], and nothing behind it")
    return value


def _parse_networks(value: object) -> object:
    return (
        tuple(ip_network(one.strip()) for one in value.split(",") if one.strip()) if isinstance(value, str) else value
    )


def _check_database_url(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().startswith(("postgresql://", "postgres://")):
        raise ValueError("expected postgresql://ROLE@HOST/DATABASE")
    return value


def _check_collector(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected an address such as http://collector:4318")
    return value


Port = Annotated[int, Field(ge=0, le=65535)]
PortRange = Annotated[tuple[Port, Port], NoDecode, BeforeValidator(_parse_port_range)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_parse_networks)]
Rate = Annotated[str, AfterValidator(_check_rate)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parse_words)]
Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parse_words), AfterValidator(_check_origins)]
SmtpUrl = Annotated[SecretStr, AfterValidator(_check_smtp)]
#: At most as many as the days below.
Seconds = Annotated[float, Field(gt=0, le=36500 * 86400)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_check_database_url)]
Collector = Annotated[str, AfterValidator(_check_collector)]
MasterKeys = Annotated[SecretStr, AfterValidator(_check_master_keys)]
TicketKey = Annotated[SecretStr, AfterValidator(_check_ticket_key)]
Days = Annotated[float, Field(gt=0, le=36500)]
