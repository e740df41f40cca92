"""Every activity that there is, and its fault points."""

from __future__ import annotations

from typing import Literal, TypedDict

from temporalio import activity

from activities.audit import AuditRecords
from activities.balancers import BalancerEngine, BalancerRecords
from activities.cache_volumes import CacheVolumeEngine, CacheVolumeRecords
from activities.chats import ChatCalls, ChatRecords
from activities.commits import CommitEngine, CommitRecords
from activities.cron import CronRecords
from activities.cron_calls import CronActs, CronCalls
from activities.cron_schedules import CronSchedules
from activities.drains import HostDrains
from activities.groups import GroupRecords
from activities.hosts import HostEngine, HostRecords
from activities.image_records import ImageRecords
from activities.images import ImageEngine
from activities.instances import InstanceEngine, InstanceRecords
from activities.project_ends import ProjectEnds
from activities.purge import PurgeRecords
from activities.quotas import QuotaRecords
from activities.reencryption import SecretRecords
from activities.restores import MachineSurvey, RestoreRecords
from activities.samples import SampleRecords
from activities.sessions import SessionEngine, SessionRecords
from activities.sweeper import Sweeper
from activities.user_ends import UserEnds
from activities.webhooks import WebhookCalls, WebhookRecords
from activities.workspaces import WorkspaceEngine, WorkspaceRecords
from drivers import faults

CONTROL_CLASSES: tuple[type, ...] = (
    InstanceRecords,
    HostRecords,
    HostDrains,
    BalancerRecords,
    SessionRecords,
    CommitRecords,
    ChatRecords,
    SampleRecords,
    ProjectEnds,
    UserEnds,
    GroupRecords,
    AuditRecords,
    PurgeRecords,
    QuotaRecords,
    ImageRecords,
    WorkspaceRecords,
    CacheVolumeRecords,
    WebhookRecords,
    RestoreRecords,
    SecretRecords,
    CronRecords,
    CronSchedules,
    Sweeper,
)
HOST_CLASSES: tuple[type, ...] = (
    InstanceEngine,
    HostEngine,
    ImageEngine,
    MachineSurvey,
    BalancerEngine,
    WorkspaceEngine,
    SessionEngine,
    CommitEngine,
    CacheVolumeEngine,
)
WEBHOOK_CLASSES: tuple[type, ...] = (WebhookCalls,)
CRON_CLASSES: tuple[type, ...] = (CronCalls,)
API_CLASSES: tuple[type, ...] = (CronActs,)
CHAT_CLASSES: tuple[type, ...] = (ChatCalls,)
Queue = Literal["control", "host", "webhooks", "images", "cron", "api", "chats"]


class FaultPoint(TypedDict):
    activity: str
    point: str
    queue: Queue


def names(kind: type) -> list[str]:
    """The names of the activities that a class defines."""
    found = (activity._Definition.from_callable(member) for member in vars(kind).values() if callable(member))
    return [definition.name for definition in found if definition is not None and definition.name]


def methods(instance: object) -> list[object]:
    """The activities of an instance, as a worker registers them."""
    return [
        getattr(instance, name)
        for name, member in vars(type(instance)).items()
        if callable(member) and activity._Definition.from_callable(member) is not None
    ]


def fault_points() -> list[FaultPoint]:
    """Three for each activity: the interceptor of every worker passes all of them."""
    elsewhere: dict[str, Queue] = dict.fromkeys(("image.download", "image.verify"), "images")
    queues: list[tuple[Queue, tuple[type, ...]]] = [
        ("control", CONTROL_CLASSES),
        ("host", HOST_CLASSES),
        ("webhooks", WEBHOOK_CLASSES),
        ("cron", CRON_CLASSES),
        ("api", API_CLASSES),
        ("chats", CHAT_CLASSES),
    ]
    return [
        {"activity": name, "point": f"{name}.{point}", "queue": elsewhere.get(name, queue)}
        for queue, kinds in queues
        for kind in kinds
        for name in names(kind)
        for point in faults.POINTS
    ]
