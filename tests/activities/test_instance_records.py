"""Place, claim and settle on a real database."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from activities.instances import PlaceRequest
from activities.runs import RunEnded
from model.errors import NoCapacity, NotReady, PortTaken, Superseded
from tests.activities.conftest import Platform

AUTO = {"host_port": None, "container_port": 80, "protocol": "tcp"}
FREE = {"vcpus": 0, "memory_mb": 0, "ports": 0}
NONE, USED, RESERVED = (0, 0, 0, 0, 0, 0), (1, 1, 512, 0, 0, 0), (0, 0, 0, 1, 1, 512)


def fixed(port: int, protocol: str = "tcp") -> dict[str, Any]:
    return {"host_port": port, "container_port": 80, "protocol": protocol}


def test_place_claims_and_holds(platform: Platform) -> None:
    order = platform.launch(ports=[AUTO])
    placement = platform.place(order)
    instance, row = platform.instance(order), platform.workflow(order)
    assert instance["status"] == "provisioning"
    assert instance["host_id"] == platform.db.hosts[placement.host or ""]
    assert instance["generation"] == placement.spec.generation == 1
    assert placement.spec.ports[0].host_port == instance["ports"][0]["host_port"] in range(20000, 21000)
    assert (row["state"], row["run_id"]) == ("running", "run-1")
    assert row["started_at"] is not None
    assert platform.held() == {"vcpus": 1, "memory_mb": 512, "ports": 1}
    assert platform.counted() == RESERVED
    assert platform.events(order) == ["instance.provisioning"]


def test_place_repeated_is_the_same_placement(platform: Platform) -> None:
    order = platform.launch(ports=[AUTO, fixed(8080, "udp")])
    first = platform.place(order)
    version = platform.instance(order)["version"]
    for _ in range(3):
        assert platform.place(order) == first
    assert platform.held() == {"vcpus": 1, "memory_mb": 512, "ports": 2}
    assert platform.instance(order)["version"] == version
    assert platform.events(order) == ["instance.provisioning"]


def test_avoided_port_is_replaced_under_a_new_generation(platform: Platform) -> None:
    order = platform.launch(ports=[AUTO])
    first = platform.place(order)
    taken = first.spec.ports[0].host_port or 0
    second = platform.place(order, avoid=[taken])
    assert second.spec.ports[0].host_port not in (None, taken)
    assert second.spec.generation == 2
    assert platform.held() == {"vcpus": 1, "memory_mb": 512, "ports": 1}
    assert platform.place(order, avoid=[taken]) == second


def test_port_avoided_on_one_protocol_only_costs_nothing_else(platform: Platform) -> None:
    order = platform.launch(ports=[AUTO, AUTO | {"protocol": "udp", "container_port": 53}])
    ports = platform.place(order).spec.ports
    assert {port.protocol for port in ports} == {"tcp", "udp"}
    assert all(port.host_port for port in ports)


def test_twenty_at_once_hold_distinct_ports_and_add_up(platform: Platform) -> None:
    orders = [platform.launch(f"web-{n}", ports=[AUTO, AUTO | {"container_port": 81}]) for n in range(20)]
    with ThreadPoolExecutor(20) as threads:
        placements = list(threads.map(platform.place, orders))
    ports = [(p.host, port.host_port) for p in placements for port in p.spec.ports]
    assert len(set(ports)) == 40
    assert platform.held() == {"vcpus": 20, "memory_mb": 20 * 512, "ports": 40}


def test_placements_spread_by_free_share(platform: Platform) -> None:
    platform.place(platform.launch("large", memory_mb=4096, wanted_host="one"))
    hosts = [platform.place(platform.launch(f"web-{n}", memory_mb=1024)).host for n in range(6)]
    assert hosts[:4] == ["two"] * 4
    assert set(hosts[4:]) == {"one", "two"}


def test_one_order_placed_many_times_at_once_holds_once(platform: Platform) -> None:
    order = platform.launch(ports=[AUTO])
    with ThreadPoolExecutor(10) as threads:
        placements = list(threads.map(lambda _: platform.place(order), range(10)))
    assert all(placement == placements[0] for placement in placements)
    assert platform.held() == {"vcpus": 1, "memory_mb": 512, "ports": 1}


def test_explicit_port_goes_to_the_host_that_has_it_free(platform: Platform) -> None:
    orders = [platform.launch(f"web-{n}", ports=[fixed(8080)]) for n in range(3)]
    hosts = {platform.place(order).host for order in orders[:2]}
    assert hosts == {"one", "two"}
    with pytest.raises(PortTaken) as refused:
        platform.place(orders[2])
    assert refused.value.details["port"] == 8080
    assert platform.instance(orders[2])["host_id"] is None
    assert platform.held()["ports"] == 2
    # The failed placement claimed nothing either: its transaction is gone as a whole.
    assert platform.workflow(orders[2])["state"] == "accepted"


def test_explicit_port_is_honoured_whatever_its_number(platform: Platform) -> None:
    inside = platform.launch("inside", ports=[fixed(20000)], wanted_host="one")
    assert platform.place(inside).spec.ports[0].host_port == 20000
    others = [platform.launch(f"auto-{n}", ports=[AUTO], wanted_host="one") for n in range(5)]
    assert 20000 not in {platform.place(order).spec.ports[0].host_port for order in others}
    assert platform.place(platform.launch("low", ports=[fixed(1)])).spec.ports[0].host_port == 1


def test_port_range_is_used_to_its_end_and_again(platform: Platform) -> None:
    platform.records._capacity = platform.records._capacity.model_copy(update={"port_range": (20000, 20002)})
    orders = [platform.launch(f"web-{n}", ports=[AUTO], wanted_host="one") for n in range(5)]
    assert [platform.place(order).spec.ports[0].host_port for order in orders[:3]] == [20000, 20001, 20002]
    with pytest.raises(NoCapacity):
        platform.place(orders[3])
    platform.settle(orders[1], "failed", "instance_exited")
    assert platform.place(orders[3]).spec.ports[0].host_port == 20001


def test_no_host_that_is_eligible(platform: Platform) -> None:
    for columns in ({"wanted_host": "nowhere"}, {"backend": "simulated"}, {"memory_mb": 70000}, {"vcpus": 257}):
        with pytest.raises(NoCapacity):
            platform.place(platform.launch(str(columns), **columns))
    platform.db.rows("UPDATE hosts SET state = 'cordoned' WHERE name = 'one'")
    assert {platform.place(platform.launch(f"w{n}")).host for n in range(3)} == {"two"}


@pytest.mark.parametrize("mode", ["none", "allow-list"])
def test_only_an_agent_that_can_is_given_an_instance_that_does_not_reach_everything(
    platform: Platform, mode: str
) -> None:
    network = {"mode": mode, "allow": ["a.example"] if mode == "allow-list" else []}
    with pytest.raises(NoCapacity, match=f"network.{mode}"):
        platform.place(platform.launch("nowhere", network=Jsonb(network)))
    platform.db.rows(f"UPDATE hosts SET capabilities = '[\"network.{mode}\", \"more\"]' WHERE name = 'two'")
    for number in range(3):
        placement = platform.place(platform.launch(f"w{number}", network=Jsonb(network)))
        assert (placement.host, placement.spec.network.model_dump()) == ("two", network)
    assert platform.place(platform.launch("open")).host == "one", "which has more room by now"


def test_memory_is_the_limit_to_the_last_mebibyte(platform: Platform) -> None:
    orders = [platform.launch(f"web-{n}", memory_mb=16384, wanted_host="one") for n in range(5)]
    with ThreadPoolExecutor(5) as threads:

        def attempt(order: Any) -> str:
            try:
                platform.place(order)
                return "placed"
            except NoCapacity:
                return "full"

        assert sorted(threads.map(attempt, orders)) == ["full"] + ["placed"] * 4
    assert platform.held()["memory_mb"] == 65536


def test_completed_launch(platform: Platform) -> None:
    order = platform.running(ports=[AUTO])
    instance, row = platform.instance(order), platform.workflow(order)
    assert (instance["status"], instance["container_id"], instance["private_ip"]) == ("running", "e-1", "10.0.0.9")
    assert (row["state"], row["error"]) == ("completed", None)
    assert row["finished_at"] >= row["started_at"]
    assert [step["name"] for step in row["steps"]] == ["instance.start"]
    assert platform.counted() == USED
    assert platform.held()["ports"] == 1
    assert platform.events(order) == ["instance.provisioning", "instance.running", "workflow.completed"]


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
def test_launch_that_ends_otherwise_holds_nothing(platform: Platform, outcome: Any) -> None:
    order = platform.launch(ports=[AUTO, fixed(8080, "udp")])
    platform.place(order)
    platform.settle(order, outcome, "instance_exited")
    instance, row = platform.instance(order), platform.workflow(order)
    assert (instance["status"], instance["host_id"], instance["container_id"]) == ("error", None, None)
    assert instance["error"] == row["error"]
    assert row["error"] == {
        "code": "instance_exited",
        "message": "instance_exited",
        "step": "instance.start",
        "attempt": 3,
    }
    assert row["state"] == outcome
    assert platform.held() == FREE
    assert platform.counted() == NONE
    assert platform.events(order) == ["instance.provisioning", "instance.error", f"workflow.{outcome}"]
    # Its ports are as the user asked for them, for the next look.
    assert [port["host_port"] for port in instance["ports"]] == [None, 8080]


def test_launch_that_was_never_placed_ends_too(platform: Platform) -> None:
    order = platform.launch(ports=[AUTO])
    platform.settle(order, "failed", "no_capacity")
    assert platform.instance(order)["status"] == "error"
    assert (platform.held(), platform.counted()) == (FREE, NONE)


def test_settle_repeated_or_contradicted_happens_once(platform: Platform) -> None:
    order = platform.running()
    before = platform.instance(order), platform.workflow(order), platform.events(order), platform.counted()
    platform.settle(order, "completed")
    platform.settle(order, "failed", "run_terminated")
    assert (platform.instance(order), platform.workflow(order), platform.events(order), platform.counted()) == before


def test_settled_by_many_at_once_counts_once(platform: Platform) -> None:
    order = platform.launch(ports=[AUTO])
    platform.place(order)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: platform.settle(order, "failed", "x"), range(8)))
    assert (platform.held(), platform.counted()) == (FREE, NONE)
    assert platform.events(order).count("workflow.failed") == 1


@pytest.mark.parametrize(
    ("kind", "outcome", "status"),
    [
        ("StopInstance", "completed", "stopped"),
        ("StopInstance", "failed", "running"),
        ("StopInstance", "cancelled", "running"),
        ("StartInstance", "completed", "running"),
        ("StartInstance", "failed", "stopped"),
        ("StartInstance", "cancelled", "stopped"),
        ("DeprovisionInstance", "completed", "deleted"),
        ("DeprovisionInstance", "failed", "error"),
        ("DeprovisionInstance", "cancelled", "running"),
    ],
)
def test_where_each_verb_leads(platform: Platform, kind: str, outcome: Any, status: str) -> None:
    launch = platform.running(ports=[AUTO])
    if kind == "StartInstance":
        stop = platform.change(launch, "StopInstance")
        platform.claim(stop)
        platform.settle(stop, "completed")
        assert platform.instance(launch)["private_ip"] is None
    order = platform.change(launch, kind)
    assert platform.claim(order).spec.generation == 1
    platform.settle(order, outcome, None if outcome == "completed" else "engine_refused")
    instance = platform.instance(order)
    assert instance["status"] == status
    assert (instance["error"] is None) == (outcome == "completed")
    gone = status == "deleted"
    assert (instance["deleted_at"] is not None) == gone
    # Whatever is not gone keeps its place, its ports and its part of the quota.
    assert platform.held() == (FREE if gone else {"vcpus": 1, "memory_mb": 512, "ports": 1})
    assert platform.counted() == (NONE if gone else USED)
    assert platform.events(order) == [f"instance.{status}", f"workflow.{outcome}"]


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
@pytest.mark.parametrize("undone", [True, False])
@pytest.mark.parametrize("kind", ["StopInstance", "MoveInstance", "HealInstance"])
def test_change_that_could_not_be_taken_back_leads_to_the_state_before(
    platform: Platform, kind: str, outcome: Any, undone: bool
) -> None:
    """From there it can be tried again, and what its host's loss leads to goes by it."""
    order = platform.change(platform.running(ports=[AUTO]), kind)
    platform.claim(order)
    platform.settle(order, outcome, "cancelled", undone=undone)
    assert platform.instance(order)["status"] == "running"
    assert platform.held() == {"vcpus": 1, "memory_mb": 512, "ports": 1}


def test_failed_delete_can_be_repeated(platform: Platform) -> None:
    launch = platform.running(ports=[AUTO])
    first = platform.change(launch, "DeprovisionInstance")
    platform.claim(first)
    platform.settle(first, "failed", "engine_unavailable")
    second = platform.change(launch, "DeprovisionInstance")
    assert platform.claim(second).host is not None
    platform.settle(second, "completed")
    assert platform.instance(launch)["status"] == "deleted"
    assert (platform.held(), platform.counted()) == (FREE, NONE)


def test_delete_waits_for_the_launch_in_the_way_then_decides(platform: Platform) -> None:
    launch = platform.launch(ports=[AUTO])
    platform.place(launch)
    delete = platform.change(launch, "DeprovisionInstance")
    with pytest.raises(NotReady):
        platform.claim(delete, "run-2")
    assert platform.workflow(delete)["state"] == "running" or platform.workflow(delete)["state"] == "accepted"
    with pytest.raises(Superseded):
        platform.place(launch)
    platform.settle(launch, "cancelled", "cancelled")
    assert platform.instance(launch)["status"] == "deleting", "the delete owns the state"
    assert (platform.held(), platform.counted()) == (FREE, NONE)
    assert platform.claim(delete, "run-2").host is None
    platform.settle(delete, "completed")
    assert platform.instance(launch)["status"] == "deleted"
    assert platform.counted() == NONE


def test_launch_that_completes_beside_a_delete_leaves_the_delete_its_place(platform: Platform) -> None:
    launch = platform.launch(ports=[AUTO])
    platform.place(launch)
    delete = platform.change(launch, "DeprovisionInstance")
    platform.settle(launch, "completed")
    assert platform.instance(launch)["status"] == "deleting"
    assert platform.claim(delete, "run-2").host is not None
    platform.settle(delete, "completed")
    assert (platform.held(), platform.counted()) == (FREE, NONE)


def test_forced_delete_waits_ten_seconds_at_most(platform: Platform) -> None:
    launch = platform.launch()
    platform.place(launch)
    delete = platform.change(launch, "DeprovisionInstance", force=True)
    with pytest.raises(NotReady):
        platform.claim(delete, "run-2")
    platform.waited = dt.timedelta(seconds=11)
    assert platform.claim(delete, "run-2").host is not None


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
def test_run_of_an_ended_row_ends(platform: Platform, state: Any) -> None:
    order = platform.launch()
    platform.settle(order, state, None if state == "completed" else "x")
    with pytest.raises(RunEnded):
        platform.place(order)
    with pytest.raises(RunEnded):
        platform.claim(order)
    assert platform.held() == FREE


def test_row_belongs_to_the_run_that_claimed_it(platform: Platform) -> None:
    order = platform.launch()
    platform.place(order, run_id="run-1")
    with pytest.raises(RunEnded):
        platform.place(order, run_id="run-2")
    platform.place(order, run_id="run-1")


def test_activity_sees_no_other_projects_quota(platform: Platform) -> None:
    platform.db.project("other", instances=5)
    order = platform.running()
    rows = platform.db.rows("SELECT project_id, instances_used FROM quotas")
    assert {row["instances_used"] for row in rows if row["project_id"] != order.project_id} == {0}


def test_place_request_is_frozen(platform: Platform) -> None:
    request = PlaceRequest(order=platform.launch())
    with pytest.raises(ValueError, match="frozen"):
        request.avoid_ports = [1]  # type: ignore[misc]
