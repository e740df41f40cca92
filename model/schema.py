"""All tables, for what needs the whole schema (migrations)."""

from model.base import Base
from model.hosts import Host, HostPort, InstanceType
from model.instances import Instance
from model.projects import ApiKey, Installation, Project, ProjectQuota
from model.workflows import Event, IdempotencyKey, Workflow

__all__ = [
    "ApiKey",
    "Base",
    "Event",
    "Host",
    "HostPort",
    "IdempotencyKey",
    "Installation",
    "Instance",
    "InstanceType",
    "Project",
    "ProjectQuota",
    "Workflow",
]
