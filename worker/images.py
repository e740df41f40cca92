"""The part of the control worker that brings files of images and looks at them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import Worker

from activities.image_records import ImageRecords
from activities.images import IMAGES
from activities.interceptor import ActivityInterceptor

#: Downloads and checks at once. Each may last as long as an import may.
THREADS = 16


def importer(client: Client, records: ImageRecords) -> Worker:
    """Its own queue and threads: a server that sends slowly keeps nothing else waiting."""
    return Worker(
        client,
        task_queue=IMAGES,
        activities=[records.download, records.verify],
        activity_executor=ThreadPoolExecutor(THREADS, thread_name_prefix="image"),
        max_concurrent_activities=THREADS,
        interceptors=[ActivityInterceptor()],
        max_heartbeat_throttle_interval=timedelta(seconds=1),
        graceful_shutdown_timeout=timedelta(seconds=5),
    )
