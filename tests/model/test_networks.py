"""What an allow-list is for, and what it is not: names, never addresses, however they are written."""

from __future__ import annotations

import string
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model.instances import MachineSpec
from model.networks import MOST_ALLOWED, OPEN, Network, permits, server_name

PLAIN = {"id": uuid4(), "project_id": uuid4(), "generation": 1, "name": "web", "image": "a", "vcpus": 1, "memory_mb": 1}
LABELS = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8)
NAMES = st.builds(lambda labels, top: ".".join([*labels, top]), st.lists(LABELS, max_size=3), st.just("example"))


def allow(*entries: str) -> list[str]:
    return Network(mode="allow-list", allow=list(entries)).allow


@pytest.mark.parametrize(
    ("entry", "host", "port"),
    [
        ("pypi.org", "pypi.org", 443),
        ("pypi.org", "pypi.org", 80),
        ("PyPI.org", "pypi.ORG.", 443),
        ("*.debian.org", "deb.debian.org", 80),
        ("*.debian.org", "a.b.debian.org", 443),
        ("example.com:8443", "example.com", 8443),
        ("*.example.com:22", "git.example.com", 22),
        ("xn--bcher-kva.example", "xn--bcher-kva.example", 443),
        ("registry", "registry", 443),
    ],
)
def test_what_is_permitted(entry: str, host: str, port: int) -> None:
    assert permits(allow(entry), host, port)


@pytest.mark.parametrize(
    ("entry", "host", "port"),
    [
        ("pypi.org", "pypi.org", 8080),
        ("pypi.org", "evil-pypi.org", 443),
        ("pypi.org", "pypi.org.evil.example", 443),
        ("pypi.org", "files.pypi.org", 443),
        ("*.debian.org", "debian.org", 443),
        ("*.debian.org", "evildebian.org", 443),
        ("*.debian.org", ".debian.org", 443),
        ("*.debian.org", "a..debian.org", 443),
        ("*.debian.org", "*.debian.org", 443),
        ("example.com:8443", "example.com", 443),
        ("example.com", "example.com@evil.example", 443),
        ("example.com", "example.com\x00.evil.example", 443),
        ("example.com", "example.com..", 443),
        ("example.com", "93.184.216.34", 443),
        ("example.com", "[2606:2800:220:1:248:1893:25c8:1946]", 443),
        ("example.com", "", 443),
    ],
)
def test_what_is_not(entry: str, host: str, port: int) -> None:
    assert not permits(allow(entry), host, port)


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "127.1", "1.2.3.0x", "::1", "a.b.3", "0X7F1"])
def test_what_a_system_could_take_for_an_address_is_no_name(host: str) -> None:
    assert server_name(host) is None
    with pytest.raises(ValidationError):
        allow(host)


@pytest.mark.parametrize(
    "entry",
    [
        *(
            "",
            "*",
            "*.",
            "*.*",
            "a.*.b",
            "*a.b",
            "https://a.b",
            "a.b/c",
            "a b",
            "a.b:",
            "a.b:0",
            "a.b:65536",
            "a.b:080",
        ),
        *(
            "-a.b",
            "a-.b",
            "a..b",
            ".a",
            "ä.example",
            "a.b\n",
            "a@b.c",
            "[::1]",
            "a.b:*",
            f"{'a' * 64}.b",
            "a." * 130 + "b",
        ),
    ],
)
def test_entries_that_are_refused(entry: str) -> None:
    with pytest.raises(ValidationError):
        allow(entry)


@given(NAMES, st.integers(1, 65535))
def test_an_entry_with_a_port_is_for_that_name_and_port_alone(name: str, port: int) -> None:
    entries = allow(f"{name}:{port}")
    assert permits(entries, name.upper(), port)
    assert not permits(entries, name, port % 65535 + 1)
    assert not permits(entries, f"a.{name}", port) and not permits(entries, f"a{name}", port)


@given(NAMES, LABELS)
def test_a_star_is_for_what_is_below_a_name_and_ends_at_its_dot(name: str, label: str) -> None:
    entries = allow(f"*.{name}")
    assert permits(entries, f"{label}.{name}", 443)
    assert not permits(entries, name, 443) and not permits(entries, f"{label}{name}x", 443)
    assert not permits(entries, f"{label}.{name}.{label}x", 443)


@given(st.text(max_size=40), st.integers(-1, 70000))
def test_nothing_of_any_form_gets_past_a_list_of_other_names(host: str, port: int) -> None:
    assert permits(["only.example"], host, port) == (
        host.removesuffix(".").lower() == "only.example" and port in (80, 443)
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "closed"},
        {"mode": "allow-list"},
        {"mode": "allow-list", "allow": []},
        {"mode": "none", "allow": ["a.b"]},
        {"allow": ["a.b"]},
        {"mode": "allow-list", "allow": [f"a{n}.b" for n in range(MOST_ALLOWED + 1)]},
        {"mode": "open", "more": 1},
    ],
    ids=str,
)
def test_classes_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Network.model_validate(wrong)


def test_an_agent_of_an_older_version_is_told_of_a_network_only_where_there_is_something_to_tell() -> None:
    assert "network" not in MachineSpec.model_validate(PLAIN).model_dump(mode="json")
    spec = MachineSpec.model_validate(PLAIN | {"network": {"mode": "none"}})
    assert spec.model_dump(mode="json")["network"] == {"mode": "none", "allow": []}
    assert MachineSpec.model_validate_json(spec.model_dump_json()) == spec


def test_who_needs_what_of_an_agent_and_is_given_what() -> None:
    limited = Network(mode="allow-list", allow=["A.example", "a.example", "b.example:81"])
    assert limited.allow == ["a.example", "b.example:81"]
    assert [OPEN.needs, Network(mode="none").needs, limited.needs] == [[], ["network.none"], ["network.allow-list"]]
    assert OPEN.variables == Network(mode="none").variables == {}
    assert limited.variables["https_proxy"] == "http://127.0.0.1:18480"
    assert str(limited) == "allow-list: a.example, b.example:81"
