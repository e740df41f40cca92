"""A start ends when the machine is healthy."""

from __future__ import annotations

import time

from temporalio import activity

from drivers.machines import Cancelled, Check, Machines
from model.errors import Unhealthy
from model.health import Checked, HealthCheck
from model.instances import MachineSpec, MachineState

#: Between two looks at a machine that starts, where its check does not ask for more of them.
LOOK_SECONDS = 1.0
POLL_SECONDS = 0.05
#: The step gives up by itself so long before its time is over, so that it can say why.
MARGIN_SECONDS = 3.0
#: Of a step that has no time-out.
LONGEST_SECONDS = 300.0


def until_healthy(
    machines: Machines, spec: MachineSpec, check: HealthCheck, state: MachineState, cancelled: Check
) -> MachineState:
    """The machine, which was started, once its check passes. Raises Unhealthy at the end of the step's time."""
    within = _seconds_left()
    until = time.monotonic() + within
    pause = min(LOOK_SECONDS, check.interval_seconds)
    while True:
        look = machines.look(
            Checked(
                engine_id=state.engine_id,
                id=spec.id,
                project_id=spec.project_id,
                generation=spec.generation,
                check=check,
            )
        )
        if look.failure is None:
            return state
        if time.monotonic() + pause > until:
            raise Unhealthy(f"its health check ({check}) did not pass within {within:.0f} s: {look.failure}")
        _sleep(pause, cancelled)
        # It may have ended meanwhile, or been started again by its engine, with another address.
        state = machines.ready(spec.id, cancelled)


def _seconds_left() -> float:
    """Of this attempt, by Temporal's clock alone: the host's may differ."""
    info = activity.info()
    if info.schedule_to_close_timeout is None:
        return LONGEST_SECONDS
    left = info.schedule_to_close_timeout - (info.started_time - info.scheduled_time)
    return max(left.total_seconds() - MARGIN_SECONDS, 0.0)


def _sleep(seconds: float, cancelled: Check) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if cancelled():
            raise Cancelled
        time.sleep(POLL_SECONDS)
