"""What is done in one cell of the matrix, and what must be so afterwards."""

from __future__ import annotations

import contextlib
import uuid
from typing import Any

import httpx

from tests import invariants
from tests.chaos import balancers, caches, chats, cron, groups, imports, projects, restores, sessions, users, workspaces
from tests.chaos.cells import (
    BALANCERS,
    CACHES,
    CHATS,
    CRON,
    IMPORTS,
    PROCESSES,
    RESTORES,
    SESSIONS,
    SYSTEM,
    WORKSPACES,
    Cell,
)
from tests.receiver import Receiver
from tests.stack import Json, Stack, wait_for

#: A cancel acts within this, whatever the step does meanwhile.
CANCEL_SECONDS = 10
#: Where each verb leads, and where it started from.
DONE = {
    **{"launch": "running", "start": "running", "stop": "stopped", "delete": "deleted", "undo": "error"},
    **{"restart": "running", "pause": "paused", "resume": "running"},
    **dict.fromkeys(("resize", "resize off", "resize anew"), "running"),
}
BEFORE = DONE | {"launch": "error", "start": "stopped", "stop": "running", "delete": "running"}
BEFORE |= {"pause": "running", "resume": "paused"}
IMAGES_DUE = {
    "images": "UPDATE hosts SET images_at = NULL",
    "blobs": "DELETE FROM pulses WHERE process = 'blobs'",
}
#: How the simulated engine resizes.
RESIZES = {"resize off": 1, "resize anew": 2}
SMALL, LARGE = "basic-1", "basic-2"
#: Scenarios that have a module of their own.
ELSEWHERE = {
    **dict.fromkeys(IMPORTS, imports.run),
    **dict.fromkeys(RESTORES, restores.run),
    **dict.fromkeys(CRON, cron.run),
    **dict.fromkeys(BALANCERS, balancers.run),
    **dict.fromkeys(SESSIONS, sessions.run),
    **dict.fromkeys(CHATS, chats.run),
    **dict.fromkeys(WORKSPACES, workspaces.run),
    **dict.fromkeys(CACHES, caches.run),
    **{"project": projects.run, "user": users.run, "group": groups.run},
}
IN_CLEAR = "SELECT id FROM instances WHERE user_data IS NOT NULL"
OLD_KEYS = f"SELECT id FROM data_keys WHERE master_key_id = 'before' UNION ALL {IN_CLEAR}"
#: What is seen to its end though it was called off.
TO_THE_END = ("instance.settle", "instance.switch")


def run(stack: Stack, cell: Cell) -> None:
    """One cell, on a stack at rest, which it leaves at rest. Fails where a promise is broken."""
    try:
        if cell.plan in SYSTEM:
            _system_work(stack, cell)
        elif cell.plan == "heal":
            _heal(stack, cell)
        elif cell.plan in ELSEWHERE:
            ELSEWHERE[cell.plan](stack, cell)
        elif cell.plan.startswith("drain"):
            _drain(stack, cell)
        elif cell.plan == "webhook":
            _webhook(stack, cell)
        elif cell.what == "cancel":
            _cancel(stack, cell)
        elif cell.what == "delete":
            _delete_meanwhile(stack, cell)
        elif cell.what in PROCESSES:
            _kill_process(stack, cell)
        else:
            _fault(stack, cell)
        invariants.settle(stack)
    finally:
        stack.plant()
        if cell.plan in RESIZES:
            stack.simulate(resize=0)
        stack.wait_for_api()
    stack.delete_all()
    invariants.settle(stack)


def begin(stack: Stack, cell: Cell, *faults: Json) -> Json:
    """Bring an instance to where the plan starts, plant the faults, and ask for the plan."""
    if cell.plan in ("launch", "undo"):
        stack.plant(*faults)
        return stack.launch(backend=cell.backend, env=_secret(stack))
    instance = stack.running(backend=cell.backend, env=_secret(stack))
    if first := {"start": "stop", "resume": "pause"}.get(cell.plan):
        stack.completed(stack.act(first, instance))
    if cell.plan in RESIZES:
        stack.simulate(resize=RESIZES[cell.plan])
    stack.plant(*faults)
    if cell.plan.startswith("resize"):
        body = {"instance_type": LARGE, "recreate": cell.plan == "resize anew"}
        return stack.act("resize", instance, body=body)
    return stack.act(cell.plan, instance)


def _secret(stack: Stack) -> Json:
    """An environment whose value an agent is to get, sealed, whatever dies meanwhile."""
    if not stack.list("/secrets", name="chaos"):
        answer = stack.request("POST", "/secrets", json={"name": "chaos", "value": "planted-Zr8Wq2LmX5"})
        assert answer.status_code in (httpx.codes.CREATED, httpx.codes.CONFLICT), answer.text
    return {"PLANTED": {"secret": "chaos"}}


def hold(stack: Stack, cell: Cell) -> Json:
    """The same, held at the cell's point."""
    before = len(stack.hits(cell.point))
    accepted = begin(stack, cell, _at(cell.point, "pause"))
    stack.wait_for_hit(cell.point, before)
    return accepted


def _at(point: str, action: str, **more: Any) -> Json:
    return {"point": point, "action": action, "times": 1, "seconds": 0} | more


def _fault(stack: Stack, cell: Cell) -> None:
    """A kill, an error or a lost answer changes nothing about how it ends."""
    before = len(stack.hits(cell.point))
    faults = [_at(cell.point, cell.what)]
    if cell.plan == "undo":
        paused = "instance.start.before"
        held = len(stack.hits(paused))
        accepted = begin(stack, cell, _at(paused, "pause"), *faults)
        stack.wait_for_hit(paused, held)
        assert stack.cancel(accepted).status_code == httpx.codes.ACCEPTED
    else:
        accepted = begin(stack, cell, *faults)
    stack.wait_for_hit(cell.point, before)
    row = stack.ended(accepted)
    assert row["state"] == ("cancelled" if cell.plan == "undo" else "completed"), row
    _expect_done(stack, cell, accepted)


def _kill_process(stack: Stack, cell: Cell) -> None:
    """A server dies while the step is held; everything is back by itself, and the plan completes."""
    accepted = hold(stack, cell)
    stack.kill(cell.what)
    stack.plant()
    row = stack.ended(accepted)
    assert row["state"] == "completed", row
    _expect_done(stack, cell, accepted)


def _cancel(stack: Stack, cell: Cell) -> None:
    """A cancel frees a held step by itself; what must be seen to its end (a delete, a settlement) is."""
    accepted = hold(stack, cell)
    answer = stack.cancel(accepted)
    if cell.point == "instance.settle.after_commit":
        assert answer.json()["error"]["code"] == "invalid_state", answer.text
    elif cell.point == "instance.settle.after_effect" and answer.status_code == httpx.codes.CONFLICT:
        # The held transaction was ended by the server, and its second attempt came before the cancel.
        assert answer.json()["error"]["details"]["state"] == "completed", answer.text
    else:
        assert answer.status_code == httpx.codes.ACCEPTED, answer.text
    # A delete whose claim is not committed is still only a row, and can be called off.
    claimed = cell.point not in ("instance.claim.before", "instance.claim.after_effect")
    to_the_end = (cell.plan == "delete" and claimed) or cell.activity in TO_THE_END
    if to_the_end:
        stack.plant()
    row = stack.ended(accepted, CANCEL_SECONDS)
    if row["state"] == "cancelled":
        assert not to_the_end
        assert not any(step["undo"] and step["state"] != "completed" for step in row["steps"]), row["steps"]
        _expect(stack, accepted, BEFORE[cell.plan])
        _expect_size(stack, cell, accepted, SMALL)
    else:
        assert row["state"] == "completed", row
        assert to_the_end or cell.point.endswith("after_commit"), "the plan ran on after the cancel"
        _expect_done(stack, cell, accepted)


def _delete_meanwhile(stack: Stack, cell: Cell) -> None:
    """A delete takes the instance over, wherever the run in the way is."""
    accepted = hold(stack, cell)
    deleting = stack.act("delete", accepted)
    if cell.activity in TO_THE_END:
        stack.plant()
    stack.completed(deleting)
    assert stack.ended(accepted)["state"] in ("cancelled", "completed")
    _expect(stack, deleting, "deleted")


def _system_work(stack: Stack, cell: Cell) -> None:
    """What nobody asked for is interrupted, and done by a later pass; what users asked for goes on."""
    instance = stack.running()
    leftover = _plant_leftover(stack, instance) if cell.plan == "reconcile" else None
    before = len(stack.hits(cell.point))
    stack.fault(cell.point, cell.what)
    if cell.plan == "samples":
        _plant_old_samples(stack, instance)
    old = _plant_what_is_too_old(stack) if cell.plan == "purge" else None
    if cell.plan == "quotas":
        stack.sql("UPDATE quotas SET instances_used = instances_used + 7, memory_mb_reserved = 11")
    if cell.plan == "reencrypt":
        _plant_old_key(stack, instance)
    accepted = stack.launch()
    if cell.plan in IMAGES_DUE:
        _wait_for_image_work(stack, cell, before)
    stack.wait_for_hit(cell.point, before)
    stack.completed(accepted)
    if old is not None:
        wait_for("what is too old is gone", lambda: not any(_rows_of(stack, old)), 30)
        assert stack.instance(instance)["status"] == "running"
    if cell.plan == "samples":
        _expect_coarser(stack, instance)
    if cell.plan == "audit":
        wait_for("all of the audit log is linked, once", lambda: _is_sealed(stack), 30)
    if cell.plan == "reencrypt":
        wait_for("nothing lies under the old key", lambda: not stack.sql(OLD_KEYS), 45)
    if cell.plan == "quotas":
        told = "events WHERE type = 'project.quota_corrected'"
        wait_for("the counts are corrected, and that is told", lambda: stack.sql(f"SELECT id FROM {told}"), 30)
        stack.sql(f"DELETE FROM {told}")  # it is what breaks a promise everywhere else
    wait_for("the leftover is removed", lambda: leftover not in invariants.machines(stack), 30)


def _is_sealed(stack: Stack) -> bool:
    found = stack.request("POST", "/audit/verify", json={}).json()["data"]
    assert found["verified"], found
    return bool(found["sealed"] == found["entries"] > 0)


def _wait_for_image_work(stack: Stack, cell: Cell, before: int) -> None:
    """It is due once an hour; and again where the pass before is still under way."""
    for _ in range(5):
        stack.sql(IMAGES_DUE[cell.plan])
        with contextlib.suppress(AssertionError):
            stack.wait_for_hit(cell.point, before, 6)
            return


def _heal(stack: Stack, cell: Cell) -> None:
    """What somebody stopped behind our back runs again, whatever happens to the run that sees to it."""
    instance = stack.running()
    project = f"/projects/{instance['project_id']}"
    stack.request("PATCH", project, json={"drift_policy": "heal"}).raise_for_status()
    try:
        before = len(stack.hits(cell.point))
        stack.fault(cell.point, cell.what)
        url = f"{stack.simulator_url}/hosts/{instance['host']}/machines/{instance['container_id']}"
        httpx.put(url, json={"state": "stopped", "memory_mb": 1}).raise_for_status()
        stack.wait_for_hit(cell.point, before, 30)
        wait_for("it is healed", lambda: _is_well(stack, instance), 60)
    finally:
        stack.wait_for_api()
        stack.request("PATCH", project, json={"drift_policy": "report"}).raise_for_status()


def _is_well(stack: Stack, instance: Json) -> bool:
    now = stack.instance(instance)
    machine = next(m for m in stack.simulated_machines() if m["id"] == now["container_id"])
    return (
        now["status"] == "running" and not now["drift"] and machine["state"] == "running" and machine["memory_mb"] > 1
    )


def _drain(stack: Stack, cell: Cell) -> None:
    """What was on the host is elsewhere, once, or, where the drain was called off, where it was or elsewhere."""
    instance = stack.running()
    (host,) = (host for host in stack.list("/hosts") if host["name"] == instance["host"])
    undone = cell.plan == "drain undone"
    held = "instance.start.before" if undone else cell.point
    before, undoing = len(stack.hits(held)), len(stack.hits(cell.point))
    alone = cell.what == "cancel" or cell.what in PROCESSES
    stack.plant(*([_at(held, "pause")] if undone or alone else []), *([] if alone else [_at(cell.point, cell.what)]))
    accepted = stack.accept("POST", f"/hosts/{host['id']}/drain")
    try:
        stack.wait_for_hit(held, before)
        if undone or cell.what == "cancel":
            answer = stack.cancel(accepted)
            assert answer.status_code in (httpx.codes.ACCEPTED, httpx.codes.CONFLICT), answer.text
        if undone:
            stack.wait_for_hit(cell.point, undoing)
        if cell.what in PROCESSES:
            stack.kill(cell.what)
        if alone:
            stack.plant()
        row = stack.ended(accepted)
        assert row["state"] == "completed" or (row["state"] == "cancelled" and (undone or cell.what == "cancel")), row
        if row["state"] == "completed":
            assert stack.instance(instance)["host"] != host["name"]
    finally:
        stack.plant()
        stack.ended(accepted)
        stack.request("POST", f"/hosts/{host['id']}/uncordon").raise_for_status()
    _expect(stack, instance, "running")


def _webhook(stack: Stack, cell: Cell) -> None:
    """Every event that is wanted arrives, for the first time in order; what comes again has the same id."""
    with Receiver() as receiver:
        body = {"name": f"hook-{uuid.uuid4().hex[:8]}", "url": receiver.url, "events": ["instance."]}
        hook = stack.accept("POST", "/webhooks", body)["data"]
        (cursor,) = stack.sql("SELECT epoch, xid, number FROM webhooks WHERE id = %s", hook["id"])
        before = len(stack.hits(cell.point))
        try:
            held = cell.what in PROCESSES
            stack.plant(_at(cell.point, "pause" if held else cell.what))
            accepted = stack.launch()
            stack.wait_for_hit(cell.point, before, 30)
            if held:
                stack.kill(cell.what)
                stack.plant()
            stack.completed(accepted)
            stack.completed(stack.act("stop", accepted))
            wanted = (
                "SELECT epoch || '-' || xid || '-' || id FROM events WHERE type LIKE 'instance.%%'"
                " AND (epoch, xid, id) > (%s, %s, %s) ORDER BY epoch, xid, id"
            )
            expected = [id for (id,) in stack.sql(wanted, *cursor)]
            wait_for("every event arrives", lambda: receiver.ids() == expected, 45)
            assert len({(one.delivery, one.event["id"]) for one in receiver.received}) == len(expected)
            assert all(one.is_signed_with(hook["secret"]) for one in receiver.received)
            states = "SELECT count(*) FROM webhook_deliveries WHERE webhook_id = %s AND state = 'delivered'"
            wait_for("it is written down", lambda: stack.sql(states, hook["id"]) == [(len(expected),)])
        finally:
            stack.wait_for_api()
            stack.request("DELETE", f"/webhooks/{hook['id']}")


def _plant_leftover(stack: Stack, instance: Json) -> str:
    """A machine with our labels whose row is unknown: a create that ended after everybody had forgotten it."""
    (machine,) = (m for m in stack.simulated_machines() if m["id"] == instance["container_id"])
    id = str(uuid.uuid4())
    copy = {name: machine[name] for name in ("image", "vcpus", "memory_mb")}
    copy |= {"ports": [], "labels": machine["labels"] | {"io.cairn.id": id}}
    httpx.post(f"{stack.simulator_url}/hosts/{instance['host']}/machines/cairn-instance-{id}", json=copy)
    return id


def _plant_what_is_too_old(stack: Stack) -> Json:
    """A deleted instance, with its workflows and events, as if all of it had happened a year ago."""
    instance = stack.running()
    stack.completed(stack.act("delete", instance))
    for statement in (
        "UPDATE instances SET deleted_at = deleted_at - interval '1 year' WHERE id = %s",
        "UPDATE events SET created_at = created_at - interval '1 year' WHERE resource_id = %s",
        "UPDATE workflows SET created_at = created_at - interval '1 year', started_at = started_at - interval '1 year',"
        " finished_at = finished_at - interval '1 year' WHERE resource_id = %s",
    ):
        stack.sql(statement, instance["id"])
    return instance


def _rows_of(stack: Stack, instance: Json) -> list[int]:
    tables = {"instances": "id", "workflows": "resource_id", "events": "resource_id"}
    return [stack.sql(f"SELECT count(*) FROM {t} WHERE {c} = %s", instance["id"])[0][0] for t, c in tables.items()]


def _plant_old_samples(stack: Stack, instance: Json) -> None:
    """A minute that is to be made coarser, half an hour ago; nothing later has been yet."""
    stack.sql("DELETE FROM samples")
    stack.sql(
        "INSERT INTO samples SELECT project_id, id, 10, date_bin('60 s', now(), 'epoch') - interval '30 min' + n * "
        "interval '10 s', 10 * n, 1000, 2, n, n, n, n FROM instances, generate_series(0, 5) AS n WHERE id = %s",
        instance["id"],
    )


def _plant_old_key(stack: Stack, instance: Json) -> None:
    """A data key of a master key that is the newest no more, under which nothing lies; and a script in clear."""
    script = "user_data = '#!/bin/sh', user_data_sha256 = encode(sha256('#!/bin/sh'), 'hex')"
    stack.sql(f"UPDATE instances SET {script} WHERE id = %s", instance["id"])
    stack.sql(
        "INSERT INTO data_keys (id, project_id, master_key_id, wrapped) VALUES (%s, %s, 'before', '')",
        *(str(uuid.uuid4()), instance["project_id"]),
    )


def _expect_coarser(stack: Stack, instance: Json) -> None:
    def rows() -> list[tuple[Any, ...]]:
        asked = "SELECT cpu_percent, memory_bytes, rx_bytes FROM samples WHERE instance_id = %s AND seconds = 60"
        return stack.sql(f"{asked} ORDER BY at LIMIT 1", instance["id"])

    assert wait_for("a minute's samples are one", rows, 30) == [(25, 1000, 5)]


def _expect_done(stack: Stack, cell: Cell, accepted: Json) -> None:
    _expect(stack, accepted, DONE[cell.plan])
    _expect_size(stack, cell, accepted, LARGE)


def _expect_size(stack: Stack, cell: Cell, accepted: Json, instance_type: str) -> None:
    """Of a resize: this size (the invariants see that the machine has it too), with its ports and what it wrote."""
    if cell.plan.startswith("resize"):
        before, after = accepted["data"], stack.instance(accepted)
        assert (after["instance_type"], after["ports"]) == (instance_type, before["ports"]), after
        if cell.plan != "resize anew":
            assert after["container_id"] == before["container_id"], "it is another machine"


def _expect(stack: Stack, accepted: Json, status: str) -> None:
    instance = stack.instance(accepted)
    assert instance["status"] == status, instance


def recover(stack: Stack) -> bool:
    """Whether a stack that failed a cell can be used for another."""
    with contextlib.suppress(AssertionError, httpx.HTTPError):
        stack.plant()
        for path in ("/sessions", "/workspaces", "/cache-volumes"):
            for one in stack.list(path):
                stack.completed(stack.accept("DELETE", f"{path}/{one['id']}"))
        stack.delete_all()
        invariants.settle(stack)
        return True
    return False
