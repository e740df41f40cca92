"""Policies: how many members a group should have by what is measured of it. Table and pure rules."""

from __future__ import annotations

import datetime as dt
import math
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, Id, Now

#: Of the agents' samples, in percent of what a member has; and requests per second and member, of the group's load
#: balancer. What is called otherwise is pushed by somebody.
USED, REQUESTS = ("cpu", "memory"), "requests"
MEASURED = (*USED, REQUESTS)
#: All policies are looked at this often.
EVERY = dt.timedelta(seconds=30)
#: What is measured is the mean over so long; something pushed is of use for so long.
WINDOW, FRESH = dt.timedelta(seconds=30), dt.timedelta(seconds=120)
#: A member that runs for less says nothing yet.
WARM_UP = dt.timedelta(seconds=30)
#: Within this share of the target nothing is done.
TOLERANCE = 0.1
#: It must be below the target for so long before there are fewer.
LOW_FOR = dt.timedelta(seconds=90)
#: Of one group.
MOST = 10
#: A target that is smaller is none: what is divided by it grows without end.
LEAST_TARGET = 1e-6


class Policy(Base):
    __tablename__ = "group_policies"

    id: Mapped[Id]
    project_id: Mapped[UUID]
    group_id: Mapped[UUID]
    name: Mapped[str]
    metric_type: Mapped[str]
    target_value: Mapped[float]
    #: Members more or fewer at once; none: as many as bring the metric to its target.
    scale_out_step: Mapped[int | None]
    scale_in_step: Mapped[int | None]
    #: Between two changes of the group by policies.
    cooldown_sec: Mapped[int] = mapped_column(server_default=text("60"))
    #: Of a metric that is pushed: the last, as the mean of all members.
    pushed_value: Mapped[float | None]
    pushed_at: Mapped[dt.datetime | None]
    #: Since when it has been low, and when it changed the group last.
    low_since: Mapped[dt.datetime | None]
    acted_at: Mapped[dt.datetime | None]
    created_at: Mapped[Now]

    __table_args__ = (
        ForeignKeyConstraint(
            ["project_id", "group_id"], ["scaling_groups.project_id", "scaling_groups.id"], ondelete="CASCADE"
        ),
        UniqueConstraint("group_id", "name"),
        CheckConstraint("metric_type ~ '^[a-z][a-z0-9_]{0,62}$'", name="metric_type"),
        CheckConstraint("target_value >= 1e-6 AND cooldown_sec >= 0", name="target"),
        CheckConstraint("scale_out_step > 0 AND scale_in_step > 0", name="steps"),
        CheckConstraint("num_nonnulls(scale_out_step, scale_in_step) IN (0, 2)", name="both_steps"),
        Index("ix_group_policies_group", "group_id", "id"),
    )


class Seen(NamedTuple):
    """A policy's group at one look. ``value`` None: nothing is known."""

    value: float | None
    target: float
    desired: int
    least: int
    most: int
    out_step: int | None
    in_step: int | None
    low_since: dt.datetime | None


class Verdict(NamedTuple):
    desired: int
    low_since: dt.datetime | None


def judge(seen: Seen, now: dt.datetime) -> Verdict:
    """How many there should be by this policy, without any cool-down. More at once; fewer only when it has been low all
    the while; what is not known changes nothing."""
    if seen.value is None or not seen.desired:
        return Verdict(seen.desired, None)
    ratio = seen.value / seen.target
    # The product may be infinite, of which there is no whole number.
    to_target = math.ceil(min(seen.desired * ratio, seen.most))
    if ratio > 1 + TOLERANCE:
        wanted = seen.desired + seen.out_step if seen.out_step else to_target
        return Verdict(min(max(wanted, seen.least), seen.most), None)
    if ratio >= 1 - TOLERANCE:
        return Verdict(seen.desired, None)
    # What remains must bear it: else it would grow again.
    fewest = max(1, seen.least, to_target)
    wanted = max(fewest, seen.desired - seen.in_step) if seen.in_step else fewest
    if wanted >= seen.desired:
        return Verdict(seen.desired, None)
    since = seen.low_since or now
    return Verdict(wanted if now - since >= LOW_FOR else seen.desired, since)


def together(desired: int, verdicts: list[int]) -> int:
    """Of several policies of one group: the most that any wants; fewer only where all do."""
    return max(verdicts, default=desired)
