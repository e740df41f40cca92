"""The cells of a restore: a platform whose database has just lost a row, as an older one would have."""

from __future__ import annotations

from tests import invariants
from tests.chaos.cells import Cell
from tests.stack import Json, Stack, wait_for


def run(stack: Stack, cell: Cell) -> None:
    """What is decided is done once, whatever dies meanwhile; then the platform works as before."""
    unknown, gone = stack.running(), stack.running()
    host = next(h for h in stack.list("/hosts") if h["name"] == gone["host"])
    before = len(stack.hits(cell.point))

    def decide(plan: str, path: str) -> None:
        """The fault is there from when its plan begins."""
        if cell.plan == plan:
            stack.fault(cell.point, cell.what)
        stack.completed(stack.accept("POST", f"/operations/restore/{path}", {}))

    if cell.plan == "survey":
        stack.fault(cell.point, cell.what)
    # First this: a machine whose row is unknown is removed where nothing was restored.
    stack.sql("INSERT INTO restores (id, backup_at, epoch) SELECT gen_random_uuid(), now(), epoch FROM installation")
    try:
        _forget_row(stack, unknown)
        stack.sql("UPDATE hosts SET reconciled = NULL WHERE id = %s", host["id"])
        found = _differences(stack, unknown["id"])
        assert found["kind"] == "machine_without_row"
        verb = "discard" if cell.plan == "discard" else "adopt"
        decide(verb, f"{unknown['id']}/{verb}")
        if cell.plan == "forget":
            machine = next(m for m in stack.simulated_machines() if m["labels"]["io.cairn.id"] == gone["id"])
            stack.remove_simulated(machine)
            assert _differences(stack, gone["id"])["kind"] == "row_without_machine"
            decide("forget", f"{gone['id']}/forget")
        wait_for("nothing is undecided", lambda: not _undecided(stack), 60)
        decide("finish", "finish")
        stack.wait_for_hit(cell.point, before)
        invariants.settle(stack)
        there = invariants.machines(stack)
        assert (unknown["id"] in there) == (cell.plan != "discard")
        assert (gone["id"] in there) == (cell.plan != "forget")
    finally:
        stack.plant()
        stack.sql("DELETE FROM restores")


def _differences(stack: Stack, id: str) -> Json:
    """What is said of it, once it is."""

    def found() -> Json | None:
        listed = stack.get("/operations/restore")["differences"]
        return next((one for one in listed if one["id"] == id), None)

    return wait_for("the difference is found", found, 30)


def _undecided(stack: Stack) -> list[Json]:
    """Once all was looked at, after whatever died."""
    view = stack.get("/operations/restore")
    return [one for one in view["differences"] if one["blocks"]] if view["looked_at"] else [view]


def _forget_row(stack: Stack, instance: Json) -> None:
    """As if the database were older than the instance."""
    stack.sql("DELETE FROM host_ports WHERE instance_id = %s", instance["id"])
    stack.sql(
        "UPDATE hosts h SET allocated_vcpus = allocated_vcpus - i.vcpus,"
        " allocated_memory_mb = allocated_memory_mb - i.memory_mb FROM instances i"
        " WHERE h.id = i.host_id AND i.id = %s",
        instance["id"],
    )
    stack.sql(
        "UPDATE quotas q SET instances_used = instances_used - 1, vcpus_used = vcpus_used - i.vcpus,"
        " memory_mb_used = memory_mb_used - i.memory_mb FROM instances i"
        " WHERE q.project_id = i.project_id AND i.id = %s",
        instance["id"],
    )
    for table, column in (("events", "resource_id"), ("instances", "id"), ("workflows", "resource_id")):
        stack.sql(f"DELETE FROM {table} WHERE {column} = %s", instance["id"])
