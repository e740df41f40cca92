"""Steps of images: on a real database and a folder of files, and on a host whose images take long."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import Engine
from temporalio.testing import ActivityEnvironment

from activities.blob_claims import remove_unneeded
from activities.database import transaction
from activities.image_records import FEW_ATTEMPTS, ImageLimits, ImageRecords, Import
from drivers import locked_file
from drivers.blobs import FileBlobs
from model.base import new_id
from model.errors import CairnError, ImageNotFound, RegistryBusy, Superseded, Unavailable, UrlRefused
from model.metrics import REGISTRY
from model.workflows import Order
from tests.activities.conftest import NoHistories, Platform
from tests.drivers.conftest import LOOPBACK

FILE = b"any file" * 1000
DIGEST = f"sha256:{hashlib.sha256(FILE).hexdigest()}"


@dataclass
class Images:
    platform: Platform
    records: ImageRecords
    blobs: FileBlobs
    folder: Path

    def add(self, status: str, source: str = "upload", **columns: Any) -> Order:
        """An image, and the import that owns it."""
        order = Order(
            workflow_id=new_id(),
            project_id=self.platform.db.project_id,
            kind="ImportImage",
            resource_type="image",
            resource_id=new_id(),
            name="base",
            request_id="test",
            deadline_seconds=60,
        )
        values = {
            "id": order.resource_id,
            "project_id": order.project_id,
            "name": str(order.resource_id),
            "status": status,
            "source": source,
            "workflow_id": order.workflow_id,
        } | columns
        with self.platform.db.connect() as connection, connection.transaction():
            connection.execute(
                f"INSERT INTO images ({', '.join(values)}) VALUES ({', '.join(['%s'] * len(values))})",
                list(values.values()),
            )
            connection.execute(
                'INSERT INTO workflows (id, project_id, kind, resource_type, resource_id, actor, "order")'
                " VALUES (%s, %s, 'ImportImage', 'image', %s, 'test', %s)",
                (order.workflow_id, order.project_id, order.resource_id, Jsonb(order.model_dump(mode="json"))),
            )
        return order

    def row(self, order: Order) -> dict[str, Any]:
        return self.platform.db.one("SELECT * FROM images WHERE id = %s", order.resource_id)

    def store(self, content: bytes = FILE) -> str:
        with self.blobs.receive() as file:
            file.write(content)
            self.blobs.put(file)
            return file.digest

    def stored(self) -> list[str]:
        return [digest for digest, _ in self.blobs.all()]

    def run(self, method: Callable[..., Any], *arguments: Any, attempt: int = 1) -> Any:
        environment = ActivityEnvironment()
        environment.info = replace(environment.info, workflow_run_id="run-1", attempt=attempt)
        return environment.run(method, *arguments)

    def download(self, url: str, attempt: int = 1) -> Any:
        order = self.add("importing", "url", url=url)
        return self.run(self.records.download, Import(order=order, source="url", url=url), attempt=attempt)


@pytest.fixture
def images(platform: Platform, worker_engine: Engine, tmp_path: Path) -> Images:
    blobs = FileBlobs(tmp_path)
    limits = ImageLimits(most_bytes=1 << 20, most_unpacked_bytes=1 << 30, cache_days=14)
    histories: Any = NoHistories()
    return Images(platform, ImageRecords(worker_engine, histories, blobs, limits, LOOPBACK), blobs, tmp_path)


class Server(ThreadingHTTPServer):
    """Answers what it is told to."""

    status = 200
    headers: dict[str, str] = {}
    paths: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.paths.append(self.path)
            self.send_response(made.status)
            for name, value in made.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(FILE)))
            self.end_headers()
            self.wfile.write(FILE)

        def log_message(self, *_: object) -> None:
            """Nobody looks."""

    made = Server(("127.0.0.1", 0), Handler)
    made.paths, made.headers = [], {}
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_signature_of_a_url_stands_in_the_row_alone(images: Images, server: Server) -> None:
    url = f"{server.url}/a.tar?signature=secret"
    order = images.add("importing", "url", url=url)
    asked: Import = images.run(images.records.claim, order)
    assert asked.url == f"{server.url}/a.tar"
    assert "secret" not in asked.model_dump_json()
    assert images.run(images.records.download, asked) == DIGEST
    assert server.paths == ["/a.tar?signature=secret"]
    assert (images.row(order)["digest"], images.stored()) == (DIGEST, [DIGEST])


def test_download_of_what_is_not_imported_any_more_is_not_kept(images: Images, server: Server) -> None:
    order = images.add("error", "url", url=server.url)
    with pytest.raises(Superseded):
        images.run(images.records.download, Import(order=order, source="url", url=server.url))
    assert (images.row(order)["digest"], images.stored()) == (None, [])


def test_name_that_nobody_knows_is_given_up_after_a_while(images: Images) -> None:
    url = "http://image.invalid/a?secret"
    for attempt, kind in ((1, Unavailable), (FEW_ATTEMPTS, ImageNotFound)):
        with pytest.raises(CairnError, match=r"image\.invalid is not known") as failed:
            images.download(url, attempt)
        assert type(failed.value) is kind


def test_certificate_that_nobody_trusts_is_given_up_after_a_while(images: Images, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer() -> None:
            while True:
                try:
                    client, _ = plain.accept()
                except OSError:
                    return
                with client:
                    client.recv(1000)
                    client.sendall(b"HTTP/1.1 400 no TLS here\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"https://127.0.0.1:{plain.getsockname()[1]}/a"
        for attempt, kind in ((1, Unavailable), (FEW_ATTEMPTS, ImageNotFound)):
            with pytest.raises(CairnError, match="no TLS") as failed:
                images.download(url, attempt)
            assert type(failed.value) is kind


def test_redirect_to_no_url_is_final(images: Images, server: Server) -> None:
    for location in ("ftp://127.0.0.1/a?secret", "http://[secret"):
        server.status, server.headers = 302, {"Location": location}
        with pytest.raises(UrlRefused) as refused:
            images.download(server.url)
        assert "secret" not in refused.value.message


def test_server_that_breaks_off_is_tried_again(images: Images, server: Server) -> None:
    with pytest.raises(Unavailable):
        images.download(f"http://127.0.0.1:{_closed_port()}/a?secret", FEW_ATTEMPTS)


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def test_full_disk_is_told_as_one(images: Images, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(locked_file.os, "write", full)
    with pytest.raises(Unavailable, match="the blob store cannot be used: No space left"):
        images.download(server.url)


@pytest.mark.parametrize(("said", "seconds"), [("7", 7), ("\u00b2", None), ("\u0663", None), ("soon", None)])
def test_time_to_wait_of_a_server(images: Images, server: Server, said: str, seconds: int | None) -> None:
    server.status, server.headers = 503, {"Retry-After": said.encode().decode("latin-1")}
    with pytest.raises(CairnError) as refused:
        images.download(server.url)
    assert type(refused.value) is (RegistryBusy if seconds else Unavailable)
    assert refused.value.details.get("retry_after_seconds") == seconds


def test_late_discard_leaves_what_another_run_has(images: Images) -> None:
    images.store()
    order = images.add("importing", digest=DIGEST)
    late = order.model_copy(update={"workflow_id": new_id()})
    images.run(images.records.discard, late)
    assert (images.row(order)["digest"], images.stored()) == (DIGEST, [DIGEST])
    images.run(images.records.discard, order)
    assert (images.row(order)["digest"], images.stored()) == (None, [])


class Slow(FileBlobs):
    """A store that removes slowly."""

    def remove(self, digest: str) -> None:
        time.sleep(6)
        super().remove(digest)


def test_lock_outlasts_a_slow_removal(images: Images, worker_engine: Engine) -> None:
    """An upload that would store the file again waits until it is removed, though that takes long."""
    images.store()
    order = images.add("error", digest=DIGEST)
    waited: list[float] = []

    def remove() -> bool:
        with transaction(worker_engine, order.project_id) as session:
            return remove_unneeded(session, Slow(images.folder), DIGEST)

    with ThreadPoolExecutor(1) as threads, images.platform.db.connect() as connection:
        removing = threads.submit(remove)
        time.sleep(0.5)
        began = time.monotonic()
        connection.execute("SELECT pg_advisory_xact_lock(1768777063, hashtext(%s))", (DIGEST,))
        waited.append(time.monotonic() - began)
        assert removing.result(1)
    assert waited[0] > 5
    assert images.stored() == []


def test_wait_for_an_upload_ends(images: Images) -> None:
    forgotten = images.add("pending", updated_at=dt.datetime.now(dt.UTC) - dt.timedelta(days=2), digest=DIGEST)
    recent = images.add("pending")
    images.store()
    old = time.time() - 7200
    for path in images.folder.rglob("*"):
        os.utime(path, (old, old))
    images.platform.db.rows("UPDATE installation SET created_at = now() - interval '1 day'")
    images.run(images.records.sweep)
    row = images.row(forgotten)
    assert (row["status"], row["error"]["code"], row["version"]) == ("error", "deadline_exceeded", 2)
    assert images.stored() == []
    assert images.row(recent)["status"] == "pending"
    events = images.platform.db.rows("SELECT type, resource_id FROM events")
    assert [(event["type"], event["resource_id"]) for event in events] == [("image.error", forgotten.resource_id)]


def grown_old(images: Images, hours: float) -> None:
    then = time.time() - hours * 3600
    for path in images.folder.rglob("*"):
        os.utime(path, (then, then))


def test_database_that_knows_nothing_empties_no_store(images: Images) -> None:
    """It was made anew beside a store that is full, or two installations have one bucket."""
    kept = [images.store(content) for content in (b"one", b"two")]
    grown_old(images, 3)
    images.platform.db.rows("UPDATE installation SET created_at = now() - interval '2 hours'")
    assert images.run(images.records.sweep) == 0
    assert set(images.stored()) == set(kept), "what is older than the database is not what it has forgotten"
    images.platform.db.rows("UPDATE installation SET created_at = now() - interval '1 day'")
    more = [images.store(str(number).encode()) for number in range(4)]
    grown_old(images, 3)
    refused = REGISTRY.get_sample_value("cairn_blob_sweeps_refused_total") or 0
    assert images.run(images.records.sweep) == 0
    assert set(images.stored()) == {*kept, *more}, "far too many are unknown"
    assert REGISTRY.get_sample_value("cairn_blob_sweeps_refused_total") == refused + 1
    # A few are what somebody left who died.
    images.add("available", digest=kept[0])
    assert images.run(images.records.sweep) == 5
    assert images.stored() == [kept[0]]
