"""Settings: environment variables that start with ``CAIRN_``, read once per process and handed on.

``docs/configuration.md`` shows the same table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import quote, urlsplit
from uuid import UUID

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from model.setting_types import (
    Collector,
    DatabaseUrl,
    Days,
    MasterKeys,
    Networks,
    Origins,
    Port,
    PortRange,
    Rate,
    Seconds,
    SmtpUrl,
    TicketKey,
    Words,
)


def _is_secret(annotation: object) -> bool:
    return annotation is SecretStr or any(_is_secret(part) for part in get_args(annotation))


class SecretFiles(PydanticBaseSettingsSource):
    """``CAIRN_<NAME>_FILE`` names a file with the value of a secret: so it is in no list of processes, and in no
    description of a container. Where the variable itself is set, it wins."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        path = os.environ.get(f"CAIRN_{field_name.upper()}_FILE") if _is_secret(field.annotation) else None
        try:
            return Path(path).read_text().strip() if path else None, field_name, False
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"CAIRN_{field_name.upper()}_FILE: {error}") from None

    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields.items()
        found = {name: self.get_field_value(field, name)[0] for name, field in fields}
        return {name: value for name, value in found.items() if value is not None}


class Settings(BaseSettings):
    """Every setting of every process. A field's description is its documentation."""

    model_config = SettingsConfigDict(env_prefix="CAIRN_", extra="ignore", frozen=True, hide_input_in_errors=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, SecretFiles(settings_cls)

    data_dir: Path = Field(Path(".cairn"), description="Folder of the embedded stack's state")
    api_host: str = Field("127.0.0.1", description="Address the API listens on")
    api_port: Port = Field(8080, description="Port the API listens on (0: a free one)")
    api_leave_seconds: float = Field(
        0, ge=0, le=60, description="Seconds that an API which is told to end answers on and says that it is not ready"
    )
    api_url: str | None = Field(None, description="Where clients find the API, ending in /v1")
    api_key: SecretStr | None = Field(None, description="Key that clients send")
    temporal_host: Literal["127.0.0.1", "0.0.0.0"] = Field(  # noqa: S104 - only where somebody asks for it
        "127.0.0.1", description="Address the embedded Temporal server listens on: loopback, or all (0.0.0.0)"
    )
    temporal_port: Port = Field(7233, description="Port of the embedded Temporal server (0: a free one)")
    temporal_ui_port: Port = Field(8233, description="Port of its Web UI (0: a free one)")
    temporal_address: str = Field("127.0.0.1:7233", description="Temporal server that the processes use")
    temporal_namespace: str = Field("default", description="Temporal namespace")
    temporal_ui_url: str = Field("http://127.0.0.1:8233", description="Web UI that workflow links point to")
    database_url: DatabaseUrl = Field(
        SecretStr("postgresql:///cairn"), description="PostgreSQL, as the role of this process (libpq URL)"
    )
    database_password: SecretStr | None = Field(None, description="Its password, where the URL holds none")
    port_range: PortRange = Field(
        (20000, 29999), description="Host ports that Cairn chooses from, LOW-HIGH", validate_default=True
    )
    publish_address: str = Field("127.0.0.1", description="Address on which instances' ports are published")
    overcommit_cpu: Annotated[float, Field(gt=0)] = Field(
        4, description="vCPUs placed per CPU of a host (embedded: 100)"
    )
    overcommit_memory: Annotated[float, Field(gt=0)] = Field(
        1, description="Memory placed per memory of a host (embedded: 10)"
    )
    quota_instances: int | None = Field(None, ge=0, description="Instances per project (default: no limit)")
    quota_vcpus: int | None = Field(None, ge=0, description="vCPUs per project (default: no limit)")
    quota_memory_mb: int | None = Field(None, ge=0, description="Memory per project, MiB (default: no limit)")
    quota_images: int | None = Field(None, ge=0, description="Images per project (default: no limit)")
    quota_image_bytes: int | None = Field(
        None, ge=0, description="Bytes of all files of a project's images (default: no limit)"
    )
    quota_load_balancers: int | None = Field(None, ge=0, description="Load balancers per project (default: no limit)")
    quota_interval: Seconds = Field(
        3600, description="Seconds between two comparisons of what quotas count with what there is"
    )
    cron_interval: Seconds = Field(
        60, description="Seconds between two comparisons of cron jobs with Temporal's schedules"
    )
    project_groups: int = Field(
        1000, ge=0, description="Groups, deployments and pools that a project may have together"
    )
    project_imports: int = Field(4, ge=1, description="Images that a project may import at once")
    project_streams: int = Field(100, ge=1, description="Streams that a project may have open at once, of each API")
    project_event_streams: int = Field(500, ge=1, description="Streams of events that it may have open beside them")
    user_projects: int = Field(
        100, ge=1, description="Projects that a user may own, each with quotas of its own (administrators: any number)"
    )
    deadline_launch: Seconds = Field(300, description="Seconds a launch may take before it is undone")
    deadline_start: Seconds = Field(300, description="Seconds a start may take")
    deadline_stop: Seconds = Field(300, description="Seconds a stop may take")
    deadline_delete: Seconds = Field(300, description="Seconds a delete may take")
    lb_image: str = Field(
        "haproxy:3.0-alpine",
        description="Image of load balancers: HAProxy 2.6 or newer, /bin/sh and nc (embedded: cairn/haproxy:latest)",
    )
    deadline_balancer: Seconds = Field(
        120, description="Seconds a change of a load balancer may take, beside the time that a target takes to drain"
    )
    deadline_import: Seconds = Field(3600, description="Seconds an import of an image may take")
    deadline_workspace: Seconds = Field(3600, description="Seconds that a workspace may take to be fetched")
    workspace_max_bytes: int = Field(
        20 << 30, ge=1 << 20, description="Bytes that a workspace may take on its host, with the repository it is of"
    )
    session_image: str = Field(
        "debian:stable-slim",
        description="Image of work sessions that name none: one with /bin/sh (embedded: cairn/base:latest)",
    )
    agent_image: str = Field(
        "cairn/agent:latest",
        description="Image of sessions with the reference agent ('cairn up' and 'cairn doctor --install' make it)",
    )
    deadline_chat: Seconds = Field(3600, description="Seconds that the agent of a session may take for an answer")
    session_file_max_bytes: int = Field(
        4 << 30, ge=1 << 20, description="Bytes that a file of a session, or what an archive unpacks to, may have"
    )
    workspace_paths: Words = Field(
        (), description="Folders of a host, comma-separated, below which workspaces may be copied from (default: none)"
    )
    git_image: str = Field(
        "alpine/git:2.49.1",
        description="Image with git and ssh, in which an agent runs git (embedded: cairn/git:latest)",
    )
    git_ca_file: Path | None = Field(
        None, description="File of further authorities, PEM, that an agent trusts when it fetches repositories"
    )
    stop_grace: Annotated[float, Field(ge=0)] = Field(
        10, description="Seconds between asking an instance to end and ending it"
    )
    reconcile_interval: Seconds = Field(10, description="Seconds between two looks of an agent at its engine")
    tick_seconds: Seconds = Field(10, description="Seconds between two ticks")
    purge_interval: Seconds = Field(3600, description="Seconds between two removals of what is kept for a while only")
    retain_deleted: Days = Field(7, description="Days that a deleted instance's row is kept (it can be read for one)")
    retain_events: Days = Field(30, description="Days that events are kept")
    retain_workflows: Days = Field(90, description="Days that a workflow is kept after its end, with its steps")
    outbound_allow: Networks = Field(
        (), description="Networks, comma-separated, that users' URLs may lead to although they are not public"
    )
    trusted_proxies: Networks = Field(
        (), description="Networks, comma-separated, of proxies whose X-Forwarded-For and -Proto count"
    )
    allowed_hosts: Words = Field(
        (), description="Names that the API may be called by, comma-separated; *.NAME: all below it (default: any)"
    )
    cors_origins: Origins = Field(
        (), description="Origins, comma-separated, whose pages browsers let use the API, as https://app.example.org"
    )
    rate_limit_read: Rate = Field("240000/minute", description="Requests that only read, of a key or a user (0: any)")
    rate_limit_write: Rate = Field("60000/minute", description="Requests that change something, likewise")
    rate_limit_streams: Rate = Field("6000/minute", description="Streams that are opened, likewise")
    rate_limit_user: Rate = Field("480000/minute", description="Requests of a user, with all its keys")
    rate_limit_address: Rate = Field("12000/minute", description="Requests without a valid key, of an address")
    rate_limit_mails: Rate = Field("60/hour", description="Mails to others, as invitations, that a user has sent")
    rate_limit_auth: Rate = Field("600/minute", description="Logins, registrations and the like, of an address")
    webhook_attempts: int = Field(8, ge=1, le=20, description="Attempts to deliver an event to a webhook")
    webhook_retry_seconds: Seconds = Field(3600, description="Seconds over which these attempts are spread")
    ticket_key: TicketKey | None = Field(
        None, description="Key that the API signs tickets for agents with: Ed25519, PEM (all APIs the same)"
    )
    master_keys: MasterKeys | None = Field(
        None,
        description="Master keys, base64 of 32 bytes each (or id:base64), the newest first: secrets lie under them, "
        "access tokens are signed with them (all APIs and workers the same)",
    )
    audit_commands: bool = Field(
        False, description="Whether the audit log shows what is run in instances: its first 256 characters"
    )
    auth: Literal["required", "anonymous"] = Field(
        "required", description="anonymous: who shows no key is the first administrator; on loopback only"
    )
    registration: Literal["open", "closed"] = Field(
        "open", description="Whether anybody may register, or administrators alone let users in"
    )
    session_days: Days = Field(30, description="Days after a login that another is needed, however much it was used")
    public_url: str | None = Field(
        None, description="Address that links in mails begin with (default: where the API listens)"
    )
    smtp_url: SmtpUrl | None = Field(
        None,
        description="Server that mails go out by, smtp://USER:PASSWORD@HOST:PORT (with STARTTLS, unless the host is "
        "loopback or ?tls=off is behind it) or smtps:// (default: none)",
    )
    mailer: Literal["smtp", "log"] = Field(
        "smtp",
        description="log: without CAIRN_SMTP_URL what mails say is logged, their tokens too; for development (default "
        "of cairn up)",
    )
    mail_from: str = Field("Cairn <cairn@localhost>", description="Sender of mails")
    admin_email: str = Field("admin@cairn.local", description="Address that the first administrator logs in with")
    admin_password: SecretStr | None = Field(
        None, description="Password that the first administrator gets, where none is set yet"
    )
    ticket_key_other: TicketKey | None = Field(
        None, description="Another whose tickets agents take: the next before the key is changed, the last after it"
    )
    fence_after: Seconds = Field(
        30, description="Seconds without a lease after which an agent stops instances of on_host_lost: fence"
    )
    docker_host: str = Field("unix:///var/run/docker.sock", description="Docker engine of this host")
    host_name: str = Field("local", description="Name of this host")
    host_cpus: float | None = Field(None, gt=0, description="CPUs of this host (default: as many as it has)")
    host_memory_mb: int | None = Field(None, gt=0, description="Memory of this host, MiB (default: all of it)")
    agent_identity: Path | None = Field(None, description="File of a host agent's keys and credential")
    secrets_dir: Path | None = Field(
        None,
        description="Folder, in a tmpfs, where an agent keeps instances' secrets (default: /dev/shm/cairn-secrets-UID)",
    )
    agent_address: str | None = Field(
        None, description="Address on which an agent serves streams (default: that of its way to the API)"
    )
    agent_port: Port = Field(0, description="Port on which an agent serves streams (0: a free one)")
    health_file: Path | None = Field(None, description="File that a control worker touches while it works")
    installation: UUID | None = Field(None, description="Id of the installation (embedded: made at first start)")
    install_engine: bool = Field(True, description="0: never install a Docker engine, fail instead")
    simulated_hosts: int = Field(0, ge=0, le=200, description="Simulated hosts to add (backend: simulated)")
    simulator_url: str = Field("http://127.0.0.1:8099", description="Simulated engine that the agent uses")
    simulator_latency_ms: float = Field(0, ge=0, description="Time a call to the simulated engine takes")
    faults_file: Path | None = Field(None, description="Fault points' file; testing only")
    blobs_dir: Path | None = Field(None, description="Folder of uploaded images (default: blobs in the data folder)")
    blobs_min_free_bytes: int = Field(1 << 30, ge=0, description="Bytes that images leave free on its disk")
    blobs_s3_bucket: str | None = Field(None, description="Keep images in this bucket instead (S3-compatible)")
    blobs_s3_endpoint: str | None = Field(None, description="Where the bucket's service is (default: AWS)")
    blobs_s3_region: str = Field("us-east-1", description="Region of the bucket")
    blobs_s3_access_key: str | None = Field(None, description="Access key (default: as the SDK finds one)")
    blobs_s3_secret_key: SecretStr | None = Field(None, description="Its secret")
    image_max_bytes: int = Field(10 << 30, gt=0, description="Bytes that an uploaded or downloaded image may have")
    image_max_unpacked_bytes: int = Field(40 << 30, gt=0, description="Bytes that it may unpack to")
    image_cache_days: float = Field(
        14, gt=0, description="Days after which a host forgets an image that Cairn brought and nothing has used"
    )
    metrics_address: str = Field("127.0.0.1", description="Address on which workers and agents serve metrics")
    metrics_port: Port | None = Field(
        None, description="Port on which a worker or an agent serves metrics (default: not at all; 0: a free one)"
    )
    metrics_token: SecretStr | None = Field(
        None, description="Bearer token that who reads metrics must show, of the API too (default: none is asked for)"
    )
    temporal_metrics_port: Port | None = Field(
        None, description="Port on which a worker or an agent serves what Temporal's SDK measures (default: not at all)"
    )
    otlp_endpoint: Collector | None = Field(
        None, description="OpenTelemetry collector that traces are sent to, OTLP over HTTP (default: nothing is traced)"
    )
    trace_ratio: float = Field(
        1, ge=0, le=1, description="Share of the requests that are traced, where their callers have not decided it"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged")
    log_format: Literal["json", "console"] = Field("json", description="How log lines look")
    log_limit: int = Field(
        600, ge=0, description="Lines of one event and level, below error, in ten seconds (0: no limit)"
    )

    @field_validator("*")
    @classmethod
    def check_secret(cls, value: object) -> object:
        """An empty one would be shown by everybody; where none is wanted, nothing is set."""
        if isinstance(value, SecretStr) and not value.get_secret_value().strip():
            raise ValueError("it is empty: give it a value, or unset it")
        return value

    @property
    def mails_are_logged(self) -> bool:
        """For development: nobody proves anything by a mail."""
        return self.smtp_url is None and self.mailer == "log"

    @property
    def has_mails(self) -> bool:
        return self.smtp_url is not None or self.mails_are_logged

    @property
    def database(self) -> str:
        """The libpq URL of the database, with its password."""
        url = self.database_url.get_secret_value()
        return url if self.database_password is None else with_password(url, self.database_password.get_secret_value())


class SetupSettings(Settings):
    """What ``cairn setup`` reads beside them. There ``database_url`` is that of a role that may make others."""

    setup_patience: Annotated[float, Field(gt=0, le=86400)] = Field(
        120, description="Seconds to wait for PostgreSQL and Temporal, each (default with --check: 5)"
    )
    owner_password: SecretStr | None = Field(None, description="Password that the role cairn_owner gets")
    api_password: SecretStr | None = Field(None, description="Password that the role cairn_api gets")
    worker_password: SecretStr | None = Field(None, description="Password that the role cairn_worker gets")
    temporal_retention: Days = Field(7, description="Days that Temporal keeps the history of a run that has ended")


def secret_variables() -> set[str]:
    """The variables that hold secrets, of whichever process."""
    return {
        f"CAIRN_{name.upper()}" for name, field in SetupSettings.model_fields.items() if _is_secret(field.annotation)
    }


def with_password(url: str, password: str) -> str:
    """A libpq URL with this password. Raises ValueError where it names no role."""
    parts = urlsplit(url)
    user, at, where = parts.netloc.rpartition("@")
    if not at:
        raise ValueError("CAIRN_DATABASE_URL: with a password it must name a role, postgresql://ROLE@HOST/DATABASE")
    return parts._replace(netloc=f"{user.partition(':')[0]}:{quote(password, safe='')}@{where}").geturl()


def problem_of(error: ValidationError | SettingsError) -> str:
    """Which variable is wrong, and how; not what it says, as that may be secret."""
    if isinstance(error, SettingsError):
        return str(error)
    first = error.errors()[0]
    name = "CAIRN_" + "_".join(str(part) for part in first["loc"]).upper()
    return f"{name}: {first['msg'].removeprefix('Value error, ')}"


def of_process() -> Settings:
    """The settings of this process; ends it where one is wrong, saying which."""
    try:
        return Settings()
    except (ValidationError, SettingsError) as error:
        raise SystemExit(f"{problem_of(error)} (see docs/configuration.md)") from None


def table(fields: Mapping[str, FieldInfo] = Settings.model_fields) -> str:
    """The settings as a Markdown table: docs/configuration.md holds it, and a test compares."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in fields.items():
        default = field.default
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        elif isinstance(default, tuple):
            default = "-".join(map(str, default))
        elif isinstance(default, bool):
            default = int(default)
        shown = "" if default in (None, [], "") else f"`{default}`"
        lines.append(f"| `CAIRN_{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(lines)
