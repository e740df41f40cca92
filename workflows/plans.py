"""Every plan that there is, as workers register them."""

from __future__ import annotations

from workflows import (
    balancers,
    cache_volumes,
    chats,
    cron,
    groups,
    hosts,
    images,
    instance_changes,
    instances,
    projects,
    restores,
    sessions,
    system,
    webhooks,
    workspaces,
)

PLANS = [
    *instances.PLANS,
    *instance_changes.PLANS,
    *hosts.PLANS,
    *projects.PLANS,
    *groups.PLANS,
    *balancers.PLANS,
    *sessions.PLANS,
    *chats.PLANS,
    *images.PLANS,
    *workspaces.PLANS,
    *cache_volumes.PLANS,
    *system.PLANS,
    *webhooks.PLANS,
    *cron.PLANS,
    *restores.PLANS,
]
