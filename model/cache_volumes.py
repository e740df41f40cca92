"""Cache volumes: folders that the sandboxes of one project share on each host, for what package managers download.

States, the rule of where a sandbox may see one, the tables.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from enum import StrEnum
from itertools import pairwise
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, Frozen, Now
from model.resources import Resource, rules

#: The workflows of cache volumes.
CLEAR, DEPROVISION = "ClearCacheVolume", "DeprovisionCacheVolume"
#: What agents that can give caches to sandboxes say among their versions.
CAPABILITY = "caches"
#: Bytes of a path; cache volumes of a project, and of a session.
LONGEST_PATH, MOST_VOLUMES, MOST_OF_SESSION = 255, 100, 16

#: Of programs, of the kernel, of the engine (which puts files of its own into /etc), or of the session: neither they
#: nor anything below them is a cache.
_CLOSED = frozenset(
    {"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "workspace"}
    # Which lead to /run.
    | {"var/run", "var/lock"}
)
#: What programs or a user's own files are in: a cache would hide it. What is further down may be one.
_WHOLE = frozenset(
    {
        *("home", "media", "mnt", "opt", "root", "srv", "tmp", "usr", "var"),
        *("usr/bin", "usr/games", "usr/include", "usr/lib", "usr/lib32", "usr/lib64", "usr/libexec", "usr/libx32"),
        *("usr/local", "usr/local/bin", "usr/local/etc", "usr/local/lib", "usr/local/sbin", "usr/local/share"),
        *("usr/sbin", "usr/share", "usr/src"),
        *("var/cache", "var/lib", "var/local", "var/log", "var/mail", "var/opt", "var/spool", "var/tmp"),
    }
)


class CacheVolumeStatus(StrEnum):
    READY = "ready"
    CLEARING = "clearing"
    #: It could not be deleted.
    ERROR = "error"
    DELETING = "deleting"
    DELETED = "deleted"


class CacheSpec(Frozen):
    """What a host is told to empty or to remove."""

    id: UUID
    project_id: UUID


class CacheHosts(Frozen):
    """Where a cache volume is."""

    hosts: list[str]
    spec: CacheSpec


class CacheMount(Frozen):
    """Of a machine: a cache volume of its project, and where it sees that."""

    id: UUID
    path: str


def check_path(path: str) -> str:
    """Where a sandbox may see a cache. Raises ValueError.

    It is absolute and written in the one way that there is: no empty name, ``.`` or ``..``, no slash at the end,
    nothing that cannot be printed, at most 255 bytes. It is neither the root nor a folder that a sandbox needs as its
    image has it: of ``/bin``, ``/boot``, ``/dev``, ``/etc``, ``/lib*``, ``/proc``, ``/run``, ``/sbin``, ``/sys`` and
    ``/workspace`` nothing at all (nor of ``/var/run`` and ``/var/lock``, which lead to ``/run``); of ``/home``,
    ``/opt``, ``/root``, ``/tmp``, ``/usr``, ``/var`` and the like not the folder itself, nor its system folders
    (``/usr/lib``, ``/var/cache``), nor a user's whole home (``/home/NAME``), but what is below these:
    ``/root/.cache/pip``, ``/home/dev/.npm``, ``/usr/local/cargo/registry``, ``/var/cache/apt``.
    """
    if not path.startswith("/"):
        raise ValueError("expected a path from the root on, as /root/.cache/pip")
    if not path.isprintable():
        raise ValueError("it has characters that cannot be printed")
    if len(path.encode()) > LONGEST_PATH:
        raise ValueError(f"it has more than {LONGEST_PATH} bytes")
    names = path[1:].split("/")
    if any(name in ("", ".", "..") for name in names):
        raise ValueError("expected it without '.', '..', '//' and a '/' at its end; and not the root itself")
    inside = "/".join(names)
    for closed in _CLOSED:
        if f"{inside}/".startswith(f"{closed}/"):
            raise ValueError(f"no cache can be in /{closed}: give a folder such as /root/.cache/pip")
    if inside in _WHOLE or (names[0] == "home" and not names[2:]):
        raise ValueError(f"it would hide what the image has in {path}: give a folder of the cache alone")
    return path


def nested(paths: Mapping[str, str]) -> tuple[str, str] | None:
    """Of paths by name: the names of two of which one is the other, or is in it; None: there are none."""
    found = sorted((f"{path}/", name) for name, path in paths.items())
    # What begins with another comes right behind it, or behind what begins with it too.
    for (outer, one), (inner, other) in pairwise(found):
        if inner.startswith(outer):
            return one, other
    return None


class CacheVolume(Resource, Base):
    __tablename__ = "cache_volumes"

    #: Where a sandbox sees it.
    path: Mapped[str]
    cleared_at: Mapped[dt.datetime | None]
    #: The workflow that owns it, or owned it last; none: nothing was done to it yet.
    workflow_id: Mapped[UUID | None]

    __table_args__ = (
        *rules("cache_volumes", CacheVolumeStatus),
        CheckConstraint("path ~ '^/.'", name="path"),
        Index("ix_cache_volumes_list", "project_id", "id", postgresql_where=text("status <> 'deleted'")),
        Index("ix_cache_volumes_workflow", "project_id", "workflow_id"),
        Index("ix_cache_volumes_deleted", "deleted_at", postgresql_where=text("status = 'deleted'")),
    )


class CacheVolumeHost(Base):
    """A host on which a cache volume is, or is about to be. Written before anything is there; it goes with its host,
    whose disk nobody reaches any more."""

    __tablename__ = "cache_volume_hosts"

    volume_id: Mapped[UUID] = mapped_column(primary_key=True)
    host_id: Mapped[UUID] = mapped_column(ForeignKey("hosts.id", ondelete="CASCADE"), primary_key=True)
    project_id: Mapped[UUID]
    since: Mapped[Now]

    __table_args__ = (
        ForeignKeyConstraint(
            ["project_id", "volume_id"], ["cache_volumes.project_id", "cache_volumes.id"], ondelete="CASCADE"
        ),
        Index("ix_cache_volume_hosts_host", "host_id"),
    )


class SessionCacheVolume(Base):
    """A cache volume that a work session has."""

    __tablename__ = "session_cache_volumes"

    session_id: Mapped[UUID] = mapped_column(primary_key=True)
    volume_id: Mapped[UUID] = mapped_column(primary_key=True)
    project_id: Mapped[UUID]

    __table_args__ = (
        ForeignKeyConstraint(
            ["project_id", "session_id"], ["work_sessions.project_id", "work_sessions.id"], ondelete="CASCADE"
        ),
        ForeignKeyConstraint(["project_id", "volume_id"], ["cache_volumes.project_id", "cache_volumes.id"]),
        Index("ix_session_cache_volumes_volume", "volume_id"),
    )
