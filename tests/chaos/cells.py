"""The cells of the kill matrix: what is done to the platform, and at which point of which plan.

They are made from the registry of activities, so that one that no scenario reaches is noticed.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from activities.registry import fault_points

#: The activities that each scenario passes, in order. ``undo`` is a launch that is cancelled before its start.
PLANS = {
    "launch": ("instance.place", "image.ensure", "instance.create", "instance.start", "instance.settle"),
    "start": ("instance.claim", "instance.start", "instance.settle"),
    "stop": ("instance.claim", "instance.stop", "instance.settle"),
    "restart": ("instance.claim", "instance.stop", "instance.start", "instance.settle"),
    "pause": ("instance.claim", "instance.pause", "instance.settle"),
    "resume": ("instance.claim", "instance.resume", "instance.settle"),
    "resize": ("instance.hold_size", "instance.adjust", "instance.settle"),
    # On an engine that does it only while the machine is stopped; on one that has to make another.
    "resize off": ("instance.adjust", "instance.stop", "instance.start", "instance.settle"),
    "resize anew": (
        *("instance.hold_size", "image.ensure", "instance.stop", "instance.create", "instance.start"),
        *("instance.switch", "instance.settle"),
    ),
    "delete": ("instance.claim", "instance.delete", "instance.settle"),
    "undo": ("instance.delete", "instance.settle"),
    "heal": (
        "instance.claim",
        "image.ensure",
        "instance.create",
        "instance.adjust",
        "instance.start",
        "instance.settle",
    ),
    "drain": (
        *("drain.next", "instance.place_beside", "image.ensure", "instance.stop", "instance.create", "instance.start"),
        *("instance.switch", "instance.delete", "instance.settle", "drain.settle"),
    ),
    "drain undone": ("instance.stay",),
    "project": ("project.next", "project.forget", "project.settle"),
    "user": ("user.next", "user.forget", "user.settle"),
    "group": ("group.next", "group.release", "group.settle", "instance.place", "instance.settle", "instance.delete"),
    # With their proxies, whose own steps are those of launch and delete.
    "balancer": ("lb.claim", "lb.configure", "lb.apply", "lb.settle"),
    "balancer drain": ("lb.configure", "lb.apply", "lb.drain", "lb.drained", "lb.settle"),
    "balancer delete": ("lb.remove", "lb.settle"),
    # With their sandboxes, likewise.
    "session": ("session.begin", "session.prepare", "session.launch", "session.settle"),
    "session warm": ("session.begin", "session.join", "session.settle"),
    "session stop": ("session.change", "session.settle"),
    "session commit": ("commit.begin", "commit.write", "commit.advance", "commit.publish", "session.settle"),
    "session commit undone": ("commit.discard",),
    "session delete": ("session.remove", "session.discard", "session.settle"),
    "chat": ("chat.begin", "chat.deliver", "session.settle"),
    "chat called off": ("chat.cancel", "session.settle"),
    "workspace": ("workspace.claim", "workspace.place", "workspace.bring", "workspace.settle"),
    "workspace sync": ("workspace.place", "workspace.bring", "workspace.settle"),
    "workspace delete": ("workspace.claim", "workspace.remove", "workspace.settle"),
    "cache clear": ("cache_volume.claim", "cache_volume.clear", "cache_volume.settle"),
    "cache delete": ("cache_volume.claim", "cache_volume.remove", "cache_volume.settle"),
    "reconcile": ("host.inventory", "host.reconcile"),
    "tick": ("tick.sweep",),
    "samples": ("samples.coarsen",),
    "purge": ("rows.purge",),
    "audit": ("audit.seal",),
    "quotas": ("quota.compare",),
    "reencrypt": ("secrets.reencrypt",),
    "import": ("image.claim", "image.download", "image.verify", "image.settle"),
    "import of a registry": ("image.pull",),
    "import undone": ("image.discard",),
    "images": ("image.collect", "image.caches"),
    "blobs": ("image.sweep",),
    "survey": ("machine.survey", "restore.note"),
    "adopt": ("restore.claim", "machine.survey", "restore.adopt", "restore.settle"),
    "discard": ("restore.claim", "machine.discard", "machine.survey", "restore.note", "restore.settle"),
    "forget": ("restore.claim", "restore.forget", "restore.settle"),
    "finish": ("restore.claim", "restore.finish", "restore.settle"),
    "webhook": ("webhook.take", "webhook.deliver"),
    "cron": ("cron.begin", "cron.request", "cron.settle"),
    "cron workflow": ("cron.act", "cron.watch"),
    "cron compare": ("cron.compare",),
}
#: Scenarios that a user asks for, and may call off.
CHANGES = ("launch", "start", "stop", "restart", "pause", "resume", "resize", "resize off", "resize anew")
ASKED = (*CHANGES, "delete")
#: What nobody asks for.
SYSTEM = ("reconcile", "tick", "samples", "purge", "audit", "quotas", "reencrypt", "images", "blobs")
#: What is done with images.
IMPORTS = ("import", "import of a registry", "import undone")
#: What is found, and what is decided, after a restore.
RESTORES = ("survey", "adopt", "discard", "forget", "finish")
CRON = ("cron", "cron workflow", "cron compare")
#: What is done with load balancers.
BALANCERS = ("balancer", "balancer drain", "balancer delete")
#: What is done with work sessions.
SESSIONS = ("session", "session warm", "session stop", "session commit", "session commit undone", "session delete")
#: What is said to their agents.
CHATS = ("chat", "chat called off")
#: What is done with workspaces.
WORKSPACES = ("workspace", "workspace sync", "workspace delete")
#: What is done with cache volumes.
CACHES = ("cache clear", "cache delete")
#: What is the same on every engine, whose own steps other scenarios try.
ON_ONE_ENGINE = (
    *SYSTEM,
    *BALANCERS,
    *SESSIONS,
    *CHATS,
    *WORKSPACES,
    *CACHES,
    *IMPORTS,
    *RESTORES,
    *CRON,
    "heal",
    "drain",
    "drain undone",
    "resize off",
    "resize anew",
    "webhook",
    "project",
    "user",
    "group",
)
PROCESSES = ("api", "temporal", "postgres")
#: What a fault does by itself. An answer can be lost only where there is one.
FAULTS = {"kill": None, "error": None, "lose_answer": ("after_effect", "after_commit")}


class Cell(NamedTuple):
    """``what`` happens while ``plan`` is at ``point``."""

    what: str
    plan: str
    point: str
    backend: str

    @property
    def activity(self) -> str:
        return self.point.rpartition(".")[0]


def points_of(activity: str) -> list[str]:
    """The registered fault points of an activity."""
    return [point["point"] for point in fault_points() if point["activity"] == activity]


def unreached() -> set[str]:
    """Registered activities that no scenario reaches."""
    return {point["activity"] for point in fault_points()} - {name for plan in PLANS.values() for name in plan}


def every() -> list[Cell]:
    """The whole matrix."""
    cells = []
    for plan, activities in PLANS.items():
        backends = ("simulated",) if plan in ON_ONE_ENGINE else ("simulated", "docker")
        for activity in activities:
            for point in points_of(activity):
                whats = [what for what, at in FAULTS.items() if at is None or point.endswith(at)]
                cells += [Cell(what, plan, point, backend) for what in whats for backend in backends]
                if plan in (*ASKED, *BALANCERS, *WORKSPACES, *CACHES, *SESSIONS, "chat", "drain", "import"):
                    cells += [Cell("cancel", plan, point, backend) for backend in backends]
                    cells += [Cell(process, plan, point, "simulated") for process in PROCESSES]
                if plan in ("webhook", "project", "user", "cron", "cron workflow", "group"):
                    cells += [Cell(process, plan, point, "simulated") for process in PROCESSES]
                if plan in CHANGES:
                    cells.append(Cell("delete", plan, point, "simulated"))
    return cells


def sample(fraction: float, seed: int) -> list[Cell]:
    """A part of it: kills of as many activities as half of it allows, and of every kind of event its share."""
    cells = every()
    chance = random.Random(seed)  # noqa: S311 - a test's choice, to be repeated
    if fraction < 1:
        activities = sorted({cell.activity for cell in cells})
        chosen = []
        for activity in chance.sample(activities, min(len(activities), round(fraction * len(cells) / 2))):
            chosen.append(chance.choice([c for c in cells if c.activity == activity and c.what == "kill"]))
        for what in sorted({cell.what for cell in cells}):
            kind = [cell for cell in cells if cell.what == what and cell not in chosen]
            wanted = round(fraction * len(kind))
            chosen += chance.sample(kind, max(1, min(wanted, len(kind))))
        cells = chosen
    chance.shuffle(cells)
    return cells
