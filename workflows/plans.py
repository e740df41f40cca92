"""Every plan that there is, as workers register them."""

from __future__ import annotations

from workflows import hosts, instances, system, webhooks

PLANS = [*instances.PLANS, *hosts.PLANS, *system.PLANS, *webhooks.PLANS]
