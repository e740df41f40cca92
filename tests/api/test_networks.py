"""What an instance reaches, as it is asked for, kept and placed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import BODY, Api

LIMITED = {"mode": "allow-list", "allow": ["pypi.org", "*.debian.org", "example.com:8443"]}
CHECK = {"type": "http", "port": 80}


def able(api: Api, *capabilities: str) -> None:
    said = ", ".join(f'"{one}"' for one in capabilities)
    api.db.rows(f"UPDATE hosts SET capabilities = '[{said}]'")


async def test_it_is_shown_and_kept_for_the_engine(api: Api) -> None:
    able(api, "network.none", "network.allow-list")
    open_to_all = {"mode": "open", "allow": []}
    assert (await api.launch("a"))["data"]["network"] == open_to_all
    assert (await api.launch("b", network=None))["data"]["network"] == open_to_all
    assert (await api.launch("c", network={"mode": "none"}))["data"]["network"] == {"mode": "none", "allow": []}
    made = (await api.launch("d", network=LIMITED | {"allow": ["PyPI.org", *LIMITED["allow"]]}))["data"]
    assert made["network"] == LIMITED
    shown = (await api.http.get(f"/v1/instances/{made['id']}")).json()["data"]
    assert shown["network"] == LIMITED


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"network": {"mode": "shut"}}, "network.mode"),
        ({"network": {"mode": "allow-list"}}, "network"),
        ({"network": {"mode": "allow-list", "allow": ["10.0.0.1"]}}, "network.allow.0"),
        ({"network": {"mode": "allow-list", "allow": ["a.b", "http://a.b"]}}, "network.allow.1"),
        ({"network": {"mode": "allow-list", "allow": [f"a{n}.b" for n in range(101)]}}, "network.allow"),
        ({"network": {"mode": "none"}, "ports": "80"}, "ports"),
        ({"network": LIMITED, "ports": "80"}, "ports"),
        ({"network": {"mode": "none"}, "health_check": CHECK}, "health_check"),
        ({"network": LIMITED, "health_check": {"type": "tcp", "port": 80}}, "health_check"),
    ],
    ids=str,
)
async def test_what_makes_no_sense_is_422_and_says_what(shared_api: Api, body: dict[str, Any], field: str) -> None:
    refused = await shared_api.http.post("/v1/instances", json=BODY | body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (422, "validation_failed")
    said = error["details"]["fields"][0]
    assert said["field"].endswith(field) or said["message"].find(f"{field}:") >= 0, said


async def test_checks_that_run_inside_go_with_every_network(api: Api) -> None:
    able(api, "network.none")
    made = await api.launch(network={"mode": "none"}, health_check={"type": "exec", "command": ["true"]})
    assert made["data"]["health_check"]["type"] == "exec"


async def test_only_hosts_whose_agent_can_do_it_are_taken(api: Api) -> None:
    """Also for `none`: an agent that does not know of it would make an instance that reaches everything."""
    for network, needs in ((LIMITED, "network.allow-list"), ({"mode": "none"}, "network.none")):
        able(api, *{"network.allow-list", "network.none"} - {needs})
        for more in ({}, {"host": "one"}):
            refused = await api.http.post("/v1/instances", json=BODY | {"network": network} | more)
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "no_capacity")
            assert needs in refused.json()["error"]["message"]
    assert api.db.counts()["instances"] == 0


async def test_members_of_groups_have_one_too(api: Api) -> None:
    able(api, "network.none", "network.allow-list")
    body = {"name": "web", "image": BODY["image"], "max_instances": 2, "network": LIMITED}
    made = await api.http.post("/v1/autoscaling/groups", json=body)
    assert made.status_code == 202, made.text
    group = made.json()["data"]
    assert group["network"] == LIMITED
    kept = api.db.rows("SELECT template FROM group_configurations")[0]["template"]
    assert kept["network"] == LIMITED
    refused = await api.http.post("/v1/autoscaling/groups", json=body | {"name": "b", "ports": "80"})
    assert refused.status_code == 422
    # What was configured before there were classes of networks says none.
    api.db.rows("UPDATE group_configurations SET asked = asked - 'network', template = template - 'network'")
    shown = (await api.http.get(f"/v1/autoscaling/groups/{group['id']}")).json()["data"]
    assert shown["network"] == {"mode": "open", "allow": []}
