"""How runs end, by what they were on."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.orm import Session

from activities.balancer_ends import settle_balancer
from activities.cache_volume_ends import settle_cache_volume
from activities.drains import settle_host
from activities.groups import settle_group
from activities.images import settle_image
from activities.instance_ends import settle_instance
from activities.project_ends import settle_project
from activities.restore_ends import settle_restore
from activities.session_ends import settle_session
from activities.user_ends import settle_user
from activities.workspace_ends import settle_workspace
from model.workflows import Failure, Order, Outcome, Step

_SETTLE: dict[str, Callable[..., None]] = {
    "cache_volume": settle_cache_volume,
    "deployment": settle_group,
    "group": settle_group,
    "host": settle_host,
    "image": settle_image,
    "instance": settle_instance,
    "load_balancer": settle_balancer,
    "pool": settle_group,
    "project": settle_project,
    "restore": settle_restore,
    "session": settle_session,
    "user": settle_user,
    "workspace": settle_workspace,
}


def settle(session: Session, order: Order, outcome: Outcome, failure: Failure | None, steps: list[Step]) -> None:
    """End a run from outside of it. Once: a row that ended is left alone."""
    _SETTLE[order.resource_type](session, order, outcome, failure, steps)
