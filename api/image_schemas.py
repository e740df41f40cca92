"""Images as clients write and read them."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from api.instance_schemas import ErrorView, Name, Text, check_reference
from model.images import Format, ImageStatus


def _checksum(value: str) -> str:
    return f"sha256:{value.removeprefix('sha256:').lower()}"


Checksum = Annotated[str, Field(pattern=r"^(sha256:)?[0-9A-Fa-f]{64}$"), AfterValidator(_checksum)]


class RegistrySource(BaseModel):
    """A reference of a registry: a host pulls it now, and its digest is what instances get from then on."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["registry"]
    reference: Annotated[str, Field(max_length=255), AfterValidator(check_reference)]
    #: Name or id of a secret with which the registry is asked, now and by every host that pulls the image later:
    #: `username:password`, or JSON with these two.
    registry_secret: Name | None = None


class UploadSource(BaseModel):
    """A file that is sent next, to ``POST /v1/images/{id}/upload``."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["upload"]
    format: Format | None = None
    checksum: Checksum | None = None


class UrlSource(BaseModel):
    """A file that the platform downloads."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["url"]
    url: Annotated[Text, Field(min_length=1, max_length=2000)]
    format: Format | None = None
    checksum: Checksum | None = None


class ImageCreate(BaseModel):
    """``POST /v1/images``."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"name": "web", "source": {"type": "registry", "reference": "nginx:1.29"}},
                {
                    "name": "ours",
                    "source": {"type": "registry", "reference": "registry.example/a:1", "registry_secret": "registry"},
                },
                {"name": "app", "source": {"type": "upload"}},
                {"name": "base", "source": {"type": "url", "url": "https://images.example.org/base.tar.gz"}},
            ]
        },
    )

    name: Name
    source: Annotated[RegistrySource | UploadSource | UrlSource, Field(discriminator="type")]


class SourceView(BaseModel):
    type: Literal["registry", "upload", "url"]
    reference: str | None = None
    registry_secret: str | None = None
    url: str | None = None
    checksum: str | None = None


class ImageView(BaseModel):
    id: str
    project_id: str
    name: str
    status: ImageStatus
    source: SourceView
    #: What the file is; of a registry's image none.
    format: Format | None
    digest: str | None
    size_bytes: int | None
    #: Names of the hosts that have it.
    hosts: list[str]
    error: ErrorView | None
    version: int
    workflow_id: str | None
    created_at: dt.datetime
    updated_at: dt.datetime
    deleted_at: dt.datetime | None
