"""The blob store that the settings ask for."""

from __future__ import annotations

from pathlib import Path

from drivers.blobs import Blobs, FileBlobs
from model.settings import Settings


def folder_of(settings: Settings) -> Path:
    """Where files are, or are received."""
    return settings.blobs_dir or settings.data_dir / "blobs"


def place_of(settings: Settings) -> str:
    """For people."""
    bucket = settings.blobs_s3_bucket
    return str(folder_of(settings).absolute()) if bucket is None else f"the bucket {bucket}"


def connect(settings: Settings) -> Blobs:
    """A folder that all APIs and control workers share, or a bucket of an S3-compatible service."""
    folder = folder_of(settings)
    if settings.blobs_s3_bucket is None:
        return FileBlobs(folder, least_free=settings.blobs_min_free_bytes)
    from drivers.s3_blobs import S3Blobs

    secret = settings.blobs_s3_secret_key
    return S3Blobs(
        bucket=settings.blobs_s3_bucket,
        endpoint=settings.blobs_s3_endpoint,
        region=settings.blobs_s3_region,
        access_key=settings.blobs_s3_access_key,
        secret_key=secret.get_secret_value() if secret else None,
        folder=folder,
        least_free=settings.blobs_min_free_bytes,
    )
