"""Every plan that there is, as workers register them."""

from __future__ import annotations

from workflows import hosts, images, instance_changes, instances, projects, restores, system, webhooks

PLANS = [
    *instances.PLANS,
    *instance_changes.PLANS,
    *hosts.PLANS,
    *projects.PLANS,
    *images.PLANS,
    *system.PLANS,
    *webhooks.PLANS,
    *restores.PLANS,
]
