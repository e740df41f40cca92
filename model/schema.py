"""All tables, for what needs the whole schema (migrations)."""

from model.audit import AuditEntry, AuditHead, AuditLink
from model.base import Base
from model.hosts import Host, HostPort, HostToken, InstanceType
from model.images import Image, ImageCache
from model.instances import Instance
from model.projects import ApiKey, Installation, Project, ProjectQuota, Pulse
from model.rates import RateLimit
from model.restores import Restore, RestoreDifference, RestoreHost
from model.samples import Sample
from model.ssh_keys import SshKey
from model.users import Binding, Invitation, Mail, PasswordReset, RefreshToken, Role, ServiceAccount, Session, User
from model.vault import DataKey, InstanceSecrets, Secret, SecretVersion
from model.webhooks import Webhook, WebhookDelivery
from model.workflows import Event, IdempotencyKey, Workflow

__all__ = [
    "ApiKey",
    "AuditEntry",
    "AuditHead",
    "AuditLink",
    "Base",
    "Binding",
    "DataKey",
    "Event",
    "Host",
    "HostPort",
    "HostToken",
    "IdempotencyKey",
    "Image",
    "ImageCache",
    "Installation",
    "Instance",
    "InstanceSecrets",
    "InstanceType",
    "Invitation",
    "Mail",
    "PasswordReset",
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
    "Secret",
    "SecretVersion",
    "ServiceAccount",
    "Session",
    "SshKey",
    "User",
    "Webhook",
    "WebhookDelivery",
    "Workflow",
]
