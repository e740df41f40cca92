"""The steps of groups: what a run launches and deletes next, and how it ends."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, Row, delete, func, select, update
from sqlalchemy.orm import Session
from temporalio import activity

from activities import balancer_orders, group_balancing, group_members
from activities.database import once_committed, transaction
from activities.fleet import Limits
from activities.group_members import AT_ONCE
from activities.runs import Histories, RunEnded, claim, end, others, record
from model.base import Frozen
from model.errors import NotReady, QuotaExceeded, Superseded
from model.groups import DELETE, Activity, Configuration, Group, GroupStatus, Template
from model.metrics import GROUP_RUNS
from model.scaling import TRIES, Choice, Wish, backoff, choose, gives_up
from model.vault import SealedValue
from model.workflows import Failure, Order, Outcome, Step

SUPERSEDED = "a newer wish has taken its place"


class GroupRound(Frozen):
    """What a run does next: launches, and members to delete once they are released; whether it has to look again,
    and else how it has failed."""

    launches: list[Order] = []
    removals: list[Order] = []
    waits: bool = False
    failure: Failure | None = None


class Release(Frozen):
    """Members that are about to be deleted."""

    order: Order
    removals: list[Order]


class GroupEnd(Frozen):
    order: Order
    outcome: Outcome
    failure: Failure | None = None


class GroupRecords:
    """Groups in the database. Runs on the control queue."""

    def __init__(self, engine: Engine, histories: Histories, limits: Limits) -> None:
        self._engine = engine
        self._histories = histories
        self._limits = limits

    @activity.defn(name="group.next")
    def next(self, order: Order) -> GroupRound:
        """Claim the run; once no other works on the group, order the next launches and deletions.

        Those that were ordered and have not begun come again, also those of an earlier run of the group.
        """
        with transaction(self._engine, order.project_id) as session:
            group = lock_group(session, order)
            claim(session, order)
            if group.workflow_id != order.workflow_id:
                raise Superseded(f"workflow {group.workflow_id} works on {group.kind} {group.name} now")
            in_the_way = others(session, order)
            if not in_the_way:
                group_balancing.join_due(session, group.id)
                return _Round(session, group, order, self._limits).order()
        raise NotReady(f"workflow {in_the_way[0]} still works on {order.resource_type} {order.name}")

    @activity.defn(name="group.release")
    def release(self, release: Release) -> list[Order]:
        """The runs after which nobody sends these members anything any more; none: that is so. Repeated, those that
        have not begun. Raises NotReady while others' runs are at it."""
        order = release.order
        with transaction(self._engine, order.project_id) as session:
            return group_balancing.leave(session, order, [one.resource_id for one in release.removals], self._limits)

    @activity.defn(name="group.settle")
    def settle(self, ended: GroupEnd) -> None:
        """End the run, and say how the group is."""
        steps = self._histories.steps(ended.order.workflow_id)
        with transaction(self._engine, ended.order.project_id) as session:
            settle_group(session, ended.order, ended.outcome, ended.failure, steps)


class _Round:
    """One round of a run, in its transaction; the group's row is locked."""

    def __init__(self, session: Session, group: Group, order: Order, limits: Limits) -> None:
        self.session = session
        self.group = group
        self._order = order
        self._limits = limits
        self.activity = session.scalars(select(Activity).where(Activity.workflow_id == order.workflow_id)).one()
        self.rows = group_members.rows(session, group)
        self.stuck = group_members.not_deleted(session, order)
        self.members = group_members.members(session, group, [row for row in self.rows if row.id not in self.stuck])
        self.since, self.failures = self._before()

    def order(self) -> GroupRound:
        if self.group.status == GroupStatus.PENDING:
            move_group(self.session, self.group, self._order, GroupStatus.SCALING)
        launches, removals = group_members.not_begun(self.session, self._order, self.rows)
        choice = self._choose()
        if choice.delete:  # they drain from the moment on in which they are about to be deleted
            balancer_orders.release(self.session, self._order, choice.delete, self._limits)
        removals += [
            group_members.remove(self.session, self.group, self._order, id, self._why(id), self._limits)
            for id in choice.delete
        ]
        self.activity.removed += len(choice.delete)
        blocked = None
        if choice.launch:
            try:
                launches += self._launch(choice.launch)
            except QuotaExceeded as error:
                blocked = Failure(code=error.code, message=error.message)
        self._say_what_it_waits_for()
        if blocked is not None and self._leads_nowhere():
            return GroupRound(failure=blocked)
        if launches or removals or choice.waits:
            return GroupRound(launches=launches, removals=removals, waits=choice.waits)
        return GroupRound(failure=blocked or self._failure())

    def _choose(self) -> Choice:
        choice = choose(self._wish(), self.members, AT_ONCE, launches=not self._gives_up())
        if not self._count_failures(choice):
            return choice
        if self._gives_up():
            self._go_back()
        return choose(self._wish(), self.members, AT_ONCE, launches=not self._gives_up())

    def _gives_up(self) -> bool:
        return gives_up(self.failures + self.activity.failures, self.members)

    def _before(self) -> tuple[dt.datetime, int]:
        """Since when runs of the group are at this configuration, each in the place of the one before, and how many
        failures those counted: who wishes often would else never see it given up. This one has a try of its own."""
        mine = (Activity.group_id == self.group.id) & (Activity.created_at < self.activity.created_at)
        same = (Activity.revision_after == self.group.revision) & (Activity.state == "cancelled")
        superseded = same & (Activity.error["code"].astext == Superseded.code)
        ended = select(func.max(Activity.created_at)).where(mine, superseded.is_not(True)).scalar_subquery()
        earlier = select(func.min(Activity.created_at), func.coalesce(func.sum(Activity.failures), 0)).where(
            mine, superseded, func.coalesce(Activity.created_at > ended, True)
        )
        since, failures = self.session.execute(earlier).one()
        return since or self.activity.created_at, min(failures, TRIES - 1)

    def _leads_nowhere(self) -> bool:
        """Whether nothing is under way that could make room for what is to be launched, or take its place."""
        mine = self.group.revision
        return not any(
            member.condition in ("coming", "going") or (member.condition == "up" and member.revision == mine)
            for member in self.members
        )

    def _say_what_it_waits_for(self) -> None:
        """That the balancer does not find well what is new, as long as nothing is made of that."""
        down = [row for row in self.rows if row.found == "down" and row.group_revision == self.group.revision]
        if down and self.activity.error is None:
            self.activity.error = group_members.cause(down[-1]).model_dump()

    def _wish(self) -> Wish:
        new = self._configuration(self.group.revision).rolled_out_at is None
        return group_members.wish_of(self.group, gates=new)

    def _count_failures(self, choice: Choice) -> int:
        """Of what this run launched, or those whose place it has taken: counted as it is about to be removed, once."""
        failed = {
            member.id
            for member in self.members
            if member.condition == "failed" and member.revision == self.group.revision and member.id in choice.delete
        }
        found = [row for row in self.rows if row.id in failed and row.created_at >= self.since]
        if found:
            self.activity.failures += len(found)
            self.activity.error = group_members.cause(found[-1]).model_dump()
        return len(found)

    def _go_back(self) -> None:
        """To the configuration that all members had last, where the one at hand is new. Once in a run."""
        group = self.group
        earlier = earlier_revision(self.session, group)
        new = self._configuration(group.revision).rolled_out_at is None
        if (
            earlier is None
            or not self._fits(earlier)
            or not new
            or self.activity.rolled_back
            or group.status == GroupStatus.DELETING
        ):
            return
        data = {"name": group.name, "from": group.revision, "to": earlier, "error": self.activity.error}
        group.revision = self.activity.revision_after = earlier
        group.version += 1
        self.activity.rolled_back, self.activity.failures, self.failures = True, 0, 0
        record(self.session, self._order, (f"{group.kind}.rolled_back", data))

    def _fits(self, revision: int) -> bool:
        """Whether members may be made from it: the group may have another balancer, and other numbers, by now."""
        ports = Template.model_validate(self._configuration(revision).template).wanted_ports
        taken = any(port.host_port for port in ports) and self.group.max_instances > 1
        silent = self.group.load_balancer_id is not None and not any(port.protocol == "tcp" for port in ports)
        return not taken and not silent

    def _configuration(self, revision: int) -> Configuration:
        return self.session.get_one(Configuration, (self.group.id, revision))

    def _launch(self, number: int) -> list[Order]:
        """As many as the quota allows. Raises QuotaExceeded where that is none."""
        template = Template.model_validate(self._configuration(self.group.revision).template)
        found = [row.image_digest for row in self.rows if row.group_revision == self.group.revision]
        # All members of a configuration are of just one image, whatever its tag means by now.
        # But of a pool, which is to follow the tag.
        known = None if self.group.kind == "pool" else next(filter(None, found), None)
        digest = template.image_digest or known
        template = template.model_copy(update={"image_digest": digest})
        gone = group_members.image_is_gone(self.session, template)
        if gone is not None:
            self.activity.error = gone.model_dump()
            self.activity.failures += number
            self._go_back()
            return [] if self._gives_up() else self._launch(number)
        made = group_members.launch(self.session, self.group, self._order, template, number, self._limits)
        self.activity.launched += len(made)
        return made

    def _why(self, id: object) -> str:
        (row,) = [row for row in self.rows if row.id == id]
        (member,) = [member for member in self.members if member.id == id]
        what = f"{self.group.kind} {self.group.name}"
        if member.condition == "failed":
            return f"{what}: {group_members.cause(row).message}"
        if self.group.status != GroupStatus.DELETING and member.revision != self.group.revision:
            if self.group.kind == "pool":
                return f"{what}: out of date"
            return f"{what}: of configuration {member.revision}, replaced by {self.group.revision}"
        return f"{what}: {self.activity.action}"

    def _failure(self) -> Failure | None:
        """How a run has failed that has nothing left to do."""
        if self.stuck:
            names = sorted(row.name for row in self.rows if row.id in self.stuck)
            said = f"{len(names)} members could not be deleted: {', '.join(names[:10])}"
            return Failure(code="not_emptied", message=said)
        known = Failure.model_validate(self.activity.error) if self.activity.error else None
        if known is None or not (self.activity.rolled_back or self._gives_up()):
            return None
        what = "went back to an earlier configuration" if self.activity.rolled_back else "gave up"
        return known.model_copy(update={"message": f"{what}, as new members failed; the last: {known.message}"})


def lock_group(session: Session, order: Order) -> Group:
    """The row of the order's group, which nobody else changes until the commit."""
    found = session.scalars(
        select(Group).where(Group.project_id == order.project_id, Group.id == order.resource_id).with_for_update()
    ).one_or_none()
    if found is None:  # the database was restored, and is older than the run
        raise RunEnded(f"there is no {order.resource_type} {order.resource_id}")
    return found


def earlier_revision(session: Session, group: Group) -> int | None:
    """The configuration that all members had last, other than the one at hand."""
    return session.scalars(
        select(Configuration.revision)
        .where(
            Configuration.group_id == group.id,
            Configuration.revision != group.revision,
            Configuration.rolled_out_at.is_not(None),
        )
        .order_by(Configuration.rolled_out_at.desc())
        .limit(1)
    ).one_or_none()


def move_group(session: Session, group: Group, order: Order, status: GroupStatus, **data: Any) -> None:
    """Move the group, and tell it."""
    previous, group.status = group.status, status
    group.version += 1
    group.updated_at = func.now()
    told = {"name": group.name, "from": previous, "to": status, "desired_count": group.desired_count, **data}
    record(session, order, (f"{group.kind}.{status}", told))


def settle_group(
    session: Session, order: Order, outcome: Outcome, failure: Failure | None, steps: list[Step] | None
) -> None:
    """End a run, and say how its group is. Once: a row that ended is left alone.

    Members that it launched stay, and launches that are under way go on: a run that works on the group after it, or
    else the next tick, finds them.
    """
    group = lock_group(session, order)
    mine = group.workflow_id == order.workflow_id
    if not mine and (outcome == "cancelled" or (failure is not None and failure.code == Superseded.code)):
        outcome = "cancelled"
        failure = Failure(code=Superseded.code, message=f"{SUPERSEDED}: workflow {group.workflow_id}")
    row = end(session, order, outcome, failure, steps)
    if row is None:
        return
    action = _action(session, order) or "other"
    once_committed(session, GROUP_RUNS.labels(action, outcome).inc)
    session.execute(
        update(Activity)
        .where(Activity.workflow_id == order.workflow_id, Activity.state == "running")
        .values(
            state=outcome,
            finished_at=func.now(),
            error=failure.model_dump() if failure else None,
        )
    )
    if mine:
        rows = group_members.rows(session, group)
        if order.kind == DELETE:
            status = _deleted(session, group, outcome, failure)
        elif outcome == "completed":
            status = _completed(session, group, order, rows)
        elif outcome == "cancelled":
            status = _called_off(session, group, order, rows)
        elif _is_whole(group, rows):  # on an earlier configuration
            group.error, status = failure.model_dump() if failure else None, GroupStatus.ACTIVE
        else:
            status = _failed(session, group, failure)
        move_group(session, group, order, status)
    record(session, order, (f"workflow.{outcome}", {"kind": order.kind, "error": row.error}))


def _deleted(session: Session, group: Group, outcome: Outcome, failure: Failure | None) -> GroupStatus:
    if outcome == "completed":
        group.error, group.deleted_at = None, func.now()
        session.execute(delete(SealedValue).where(SealedValue.group_id == group.id))
        return GroupStatus.DELETED
    if outcome == "cancelled":  # before it had begun
        return GroupStatus.ACTIVE
    return _failed(session, group, failure)


def _completed(session: Session, group: Group, order: Order, rows: Sequence[Row[Any]]) -> GroupStatus:
    group.error = None
    if _action(session, order) != "replace":  # what has to be replaced again and again is given time, though it starts
        group.failures, group.backoff_until = 0, None
    if rows and all(row.group_revision == group.revision for row in rows):
        session.execute(
            update(Configuration)
            .where(Configuration.group_id == group.id, Configuration.revision == group.revision)
            .values(rolled_out_at=func.now())
        )
    return GroupStatus.ACTIVE


def _called_off(session: Session, group: Group, order: Order, rows: Sequence[Row[Any]]) -> GroupStatus:
    """Nothing goes on by itself: while it was replacing members it is paused; else what is there is what is desired."""
    live = [row for row in rows if row.status not in ("deleting", "error")]
    least, most = group.min_instances, group.max_instances
    if any(row.group_revision != group.revision for row in live):
        group.paused = True
        # What it has beyond that, for the time of the replacement, goes.
        numbers = select(Activity.desired_before, Activity.desired_after).where(
            Activity.workflow_id == order.workflow_id
        )
        before, after = session.execute(numbers).one()
        least, most = max(least, min(before, after)), min(most, max(before, after))
    group.desired_count = max(least, min(len(live), most))
    session.execute(
        update(Activity).where(Activity.workflow_id == order.workflow_id).values(desired_after=group.desired_count)
    )
    group.error = None
    return GroupStatus.ACTIVE


def _failed(session: Session, group: Group, failure: Failure | None) -> GroupStatus:
    """It is left alone for a while, and tried again by the tick."""
    group.error = failure.model_dump() if failure else None
    group.failures += 1
    group.backoff_until = session.execute(select(func.now())).scalar_one() + backoff(group.failures)
    return GroupStatus.ERROR


def _is_whole(group: Group, rows: Sequence[Row[Any]]) -> bool:
    live = [row for row in rows if row.status not in ("deleting", "error")]
    return len(live) == group.desired_count and all(row.group_revision == group.revision for row in live)


def _action(session: Session, order: Order) -> str | None:
    return session.scalar(select(Activity.action).where(Activity.workflow_id == order.workflow_id))
