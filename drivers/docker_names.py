"""Images of a Docker engine by their full names."""

from __future__ import annotations

from typing import Any

import docker.errors
from docker import APIClient

from drivers.images import engine_reference, full_name, is_ours
from model.images import ImageWanted


def find(client: APIClient, wanted: ImageWanted) -> dict[str, Any] | None:
    """What the engine says of the image that is wanted; None: it is not there. Raises APIError.

    What is made of it is made of the ``Id`` that is found here.
    """
    if wanted.format is None and is_ours(wanted.reference):
        return None
    return named(client, engine_reference(wanted))


def named(client: APIClient, reference: str) -> dict[str, Any] | None:
    """What has just this name.

    The engine takes more for a name: the first digits of an image's id, also in the place of a tag. That would be
    anybody's image.
    """
    try:
        found: dict[str, Any] = client.inspect_image(reference)  # type: ignore[no-untyped-call]
    except docker.errors.ImageNotFound:
        return None
    names = [*(found.get("RepoTags") or []), *(found.get("RepoDigests") or [])]
    return found if full_name(reference) in map(full_name, names) else None
