"""Every plan that there is, as workers register them."""

from __future__ import annotations

from workflows import hosts, instance_changes, instances, system

PLANS = [*instances.PLANS, *instance_changes.PLANS, *hosts.PLANS, *system.PLANS]
