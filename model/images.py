"""Images: states and moves, what engines are told about them, and their tables."""

from __future__ import annotations

import datetime as dt
import re
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

from pydantic import SerializerFunctionWrapHandler, model_serializer
from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, Frozen, Now
from model.resources import Resource, rules

_ENGINE_NAME = re.compile(r"cairn/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
Format = Literal["docker-archive", "oci-archive", "rootfs-tar", "qcow2"]
FORMATS: tuple[Format, ...] = ("docker-archive", "oci-archive", "rootfs-tar", "qcow2")
SourceKind = Literal["registry", "upload", "url"]


class ImageStatus(StrEnum):
    #: Waits for its upload.
    PENDING = "pending"
    IMPORTING = "importing"
    AVAILABLE = "available"
    ERROR = "error"
    DELETING = "deleting"
    DELETED = "deleted"


#: States in which no run works on an image.
RESTING = frozenset({ImageStatus.PENDING, ImageStatus.AVAILABLE, ImageStatus.ERROR})


class ImageWanted(Frozen):
    """What a host is to make usable.

    Without ``format`` a reference of a registry, at ``digest`` (of its manifest) where one is known. With it a file
    of the blob store, whose ``digest`` is the file's; ``reference`` is what the engine is to call it.
    """

    reference: str
    digest: str | None = None
    format: Format | None = None
    #: Who wants it; and the image that it is imported as, where a login of the registry lies ready for that.
    project_id: UUID | None = None
    login_of: UUID | None = None

    @model_serializer(mode="wrap")
    def _known_to_all(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Agents of 0.2 do not know who: it goes out only with a login."""
        told: dict[str, Any] = serialize(self)
        return {name: value for name, value in told.items() if self.login_of or name not in ("project_id", "login_of")}


class ImageFound(Frozen):
    """What it turned out to be. ``digest`` None: the engine has it from no registry."""

    digest: str | None = None
    size_bytes: int | None = None


class CachedImage(Frozen):
    """One that Cairn brought to a host, and when it was last used there."""

    reference: str
    digest: str | None
    used_at: dt.datetime


def engine_name(image_id: UUID, digest: str) -> str:
    """What engines call an image of the blob store: the same at every host, and another for other contents."""
    return f"cairn/{image_id}:{digest.removeprefix('sha256:')[:12]}"


def is_engine_name(repository: str) -> bool:
    """Whether ``engine_name`` begins so."""
    return _ENGINE_NAME.fullmatch(repository) is not None


def without_query(url: str) -> str:
    """A URL as it is shown: what comes after its path may be a signature, with which anybody could download."""
    return url.partition("?")[0].partition("#")[0]


class Image(Resource, Base):
    __tablename__ = "images"

    source: Mapped[str]
    #: Of a registry.
    reference: Mapped[str | None]
    #: What to download.
    url: Mapped[str | None]
    #: sha256:… that the file must have, as the user said.
    checksum: Mapped[str | None]
    #: Of a file: what it must be, as the user said, and then what it is. Of a registry none.
    format: Mapped[str | None]
    #: sha256:…; of a registry that of the manifest (none: the host has it from elsewhere), of a file the file's.
    digest: Mapped[str | None]
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    #: With which login hosts pull it: model.vault.RegistryLogin.
    registry_secret: Mapped[dict[str, Any] | None]
    #: The workflow that owns the image, or owned it last; none yet: it waits for its upload.
    workflow_id: Mapped[UUID | None]

    __table_args__ = (
        *rules("images", ImageStatus),
        CheckConstraint("source IN ('registry', 'upload', 'url')", name="source"),
        CheckConstraint("format IN ({})".format(", ".join(f"'{f}'" for f in FORMATS)), name="format"),
        Index("ix_images_digest", "digest", postgresql_where=text("digest IS NOT NULL")),
        Index("ix_images_workflow", "project_id", "workflow_id"),
        Index(
            "ix_images_registry_secret",
            "project_id",
            postgresql_where=text("registry_secret IS NOT NULL AND status <> 'deleted'"),
        ),
        Index("ix_images_deleted", "deleted_at", postgresql_where=text("status = 'deleted'")),
    )


class ImageCache(Base):
    """A host that has what an image is. Reported by the hosts, and noted when one has made it usable."""

    __tablename__ = "image_caches"

    host_id: Mapped[UUID] = mapped_column(ForeignKey("hosts.id", ondelete="CASCADE"), primary_key=True)
    image_id: Mapped[UUID] = mapped_column(primary_key=True)
    project_id: Mapped[UUID]
    used_at: Mapped[Now]

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "image_id"], ["images.project_id", "images.id"], ondelete="CASCADE"),
        Index("ix_image_caches_image", "image_id"),
    )
