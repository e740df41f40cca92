"""The manifests of docker and OCI image archives: whether they are whole, and fit what is there.

Docker's is described at https://github.com/moby/docker-image-spec, OCI's at
https://github.com/opencontainers/image-spec/blob/main/image-layout.md.
"""

from __future__ import annotations

import json
import posixpath
from typing import Any, TypeGuard

from model.base import Frozen
from model.errors import ImageRefused
from model.images import Format

MOST_LAYERS = 500
SHA256 = "sha256:"


class Contents(Frozen):
    """Of an archive that holds one image: the names of its files."""

    format: Format
    config: str
    layers: list[str]


class Found:
    """What was seen of an archive. Names are without a leading ``./``."""

    def __init__(self) -> None:
        self.documents: dict[str, bytes] = {}
        #: Name → SHA-256 of the file.
        self.digests: dict[str, str] = {}
        #: Name → SHA-256 of the unpacked layer, and what is wrong with it.
        self.layers: dict[str, tuple[str, str | None]] = {}
        self.links: dict[str, str] = {}
        self.absolute_link: str | None = None
        #: A file that is there more than once, each time another: readers differ in which counts.
        self.twice: str | None = None

    def link(self, name: str, target: str, *, hard: bool) -> None:
        base = "" if hard else posixpath.dirname(name)
        self.links[name] = posixpath.normpath(posixpath.join(base, target))

    def real(self, name: str) -> str:
        """Where a file is: older archives have a layer that comes twice only once."""
        name = posixpath.normpath(name)
        for _ in range(8):
            if name not in self.links:
                break
            name = self.links[name]
        return name


def read(found: Found) -> Contents | None:
    """The one image of the archive, which is whole; None: it is no image archive. Raises ImageRefused."""
    if not found.documents.keys() & {"manifest.json", "oci-layout"}:
        return None
    contents = read_names(found)
    if len(contents.layers) > MOST_LAYERS:
        raise ImageRefused(f"the image has more than {MOST_LAYERS} layers")
    _check_layers(found, contents)
    return contents


def read_names(found: Found) -> Contents:
    """The same, of an archive that has been looked at before."""
    if found.twice is not None:
        raise ImageRefused(f"{found.twice!r} is in the archive more than once, and not the same each time")
    return _docker(found) if "manifest.json" in found.documents else _oci(found)


def _docker(found: Found) -> Contents:
    manifest = _parsed(found, "manifest.json")
    if not isinstance(manifest, list) or len(manifest) != 1 or not isinstance(manifest[0], dict):
        raise ImageRefused("manifest.json: expected one image; save one at a time")
    config, layers = manifest[0].get("Config"), manifest[0].get("Layers")
    if not isinstance(config, str) or not _names(layers):
        raise ImageRefused("manifest.json: expected Config and Layers")
    return Contents(format="docker-archive", config=found.real(config), layers=[found.real(name) for name in layers])


def _oci(found: Found) -> Contents:
    document = _parsed(found, "index.json")
    # An index may lead to another, for several platforms.
    for _ in range(3):
        manifests = document.get("manifests") if isinstance(document, dict) else None
        if manifests is None:
            break
        if not isinstance(manifests, list):
            raise ImageRefused("index.json: expected a list of manifests")
        images = [m for m in manifests if isinstance(m, dict) and not _is_attestation(m)]
        if len(images) != 1:
            raise ImageRefused(f"the archive holds {len(images)} images or platforms: export one")
        document = _parsed(found, _blob(found, images[0]))
    config = document.get("config") if isinstance(document, dict) else None
    layers = document.get("layers") if isinstance(document, dict) else None
    if not isinstance(config, dict) or not isinstance(layers, list):
        raise ImageRefused("the image's manifest: expected config and layers")
    names = [_blob(found, layer if isinstance(layer, dict) else {}) for layer in layers]
    return Contents(format="oci-archive", config=_blob(found, config), layers=names)


def _is_attestation(manifest: dict[str, Any]) -> bool:
    """What builders put beside an image: a manifest for a platform that is none."""
    platform = manifest.get("platform")
    return isinstance(platform, dict) and platform.get("architecture") == "unknown"


def _blob(found: Found, descriptor: dict[str, Any]) -> str:
    """The file of a descriptor, which must have its digest."""
    digest = descriptor.get("digest")
    if not isinstance(digest, str) or not digest.startswith(SHA256):
        raise ImageRefused(f"expected a sha256 digest, got {str(digest)[:100]!r}")
    name = f"blobs/sha256/{digest.removeprefix(SHA256)}"
    if name not in found.digests:
        raise ImageRefused(f"{name} is missing from the archive")
    return name


def _check_layers(found: Found, contents: Contents) -> None:
    """Every file has the digest that its name or the image's configuration says."""
    for name in (contents.config, *contents.layers):
        folder, _, digest = name.rpartition("/")
        if folder == "blobs/sha256" and found.digests.get(name) not in (None, digest):
            raise ImageRefused(f"{name} does not have the digest that its name says")
    config = _parsed(found, contents.config)
    rootfs = config.get("rootfs") if isinstance(config, dict) else None
    expected = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(expected, list) or len(expected) != len(contents.layers):
        raise ImageRefused(f"{contents.config}: its layers are not those of the manifest")
    for name, diff_id in zip(contents.layers, expected, strict=True):
        if name not in found.layers:
            raise ImageRefused(f"layer {name[:200]} is missing from the archive, or is no tar")
        digest, problem = found.layers[name]
        if problem is not None:
            raise ImageRefused(problem)
        if diff_id != f"{SHA256}{digest}":
            raise ImageRefused(f"layer {name} does not have the digest that the image's configuration says")


def _parsed(found: Found, name: str) -> Any:
    if name not in found.documents:
        raise ImageRefused(f"{name[:200]} is missing from the archive, or too large")
    try:
        return json.loads(found.documents[name])
    except (ValueError, RecursionError) as error:
        raise ImageRefused(f"{name}: not JSON: {error}") from error


def _names(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
