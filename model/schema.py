"""All tables, for what needs the whole schema (migrations)."""

from model.audit import AuditEntry, AuditHead, AuditLink
from model.balancers import BalancerSample, BalancerTarget, LoadBalancer
from model.base import Base
from model.cache_volumes import CacheVolume, CacheVolumeHost, SessionCacheVolume
from model.chat import Chunk, Message, WorkAgent
from model.cron import CronJob, CronRun
from model.groups import Activity, Configuration, Group
from model.hosts import Host, HostPort, HostToken, InstanceType
from model.images import Image, ImageCache
from model.instances import Instance
from model.policies import Policy
from model.preferences import Preference
from model.projects import ApiKey, Installation, Project, ProjectQuota, Pulse
from model.rates import RateLimit
from model.restores import Restore, RestoreDifference, RestoreHost
from model.samples import Sample
from model.sessions import WorkSession
from model.ssh_keys import SshKey
from model.users import (
    Binding,
    Invitation,
    LoginAddress,
    Mail,
    PasswordReset,
    RefreshToken,
    Role,
    ServiceAccount,
    Session,
    User,
)
from model.vault import DataKey, ImageLogin, InstanceSecrets, SealedValue, Secret, SecretVersion
from model.webhooks import Webhook, WebhookDelivery
from model.workflows import Event, IdempotencyKey, Workflow
from model.workspaces import Credential, Workspace, WorkspaceLogin

__all__ = [
    "Activity",
    "ApiKey",
    "AuditEntry",
    "AuditHead",
    "AuditLink",
    "BalancerSample",
    "BalancerTarget",
    "Base",
    "Binding",
    "CacheVolume",
    "CacheVolumeHost",
    "Chunk",
    "Configuration",
    "Credential",
    "CronJob",
    "CronRun",
    "DataKey",
    "Event",
    "Group",
    "Host",
    "HostPort",
    "HostToken",
    "IdempotencyKey",
    "Image",
    "ImageCache",
    "ImageLogin",
    "Installation",
    "Instance",
    "InstanceSecrets",
    "InstanceType",
    "Invitation",
    "LoadBalancer",
    "LoginAddress",
    "Mail",
    "Message",
    "PasswordReset",
    "Policy",
    "Preference",
    "Project",
    "ProjectQuota",
    "Pulse",
    "RateLimit",
    "RefreshToken",
    "Restore",
    "RestoreDifference",
    "RestoreHost",
    "Role",
    "Sample",
    "SealedValue",
    "Secret",
    "SecretVersion",
    "ServiceAccount",
    "Session",
    "SessionCacheVolume",
    "SshKey",
    "User",
    "Webhook",
    "WebhookDelivery",
    "WorkAgent",
    "WorkSession",
    "Workflow",
    "Workspace",
    "WorkspaceLogin",
]
