"""Imports that are too slow, too large or too many; deletes that end before they begin; places on a host."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import Engine
from temporalio.testing import ActivityEnvironment

from activities import images as image_activities
from activities.image_records import ImageEnd, ImageLimits, ImageRecords, Import
from activities.images import ImageEngine, ImageFacts
from drivers import pace
from drivers.blobs import FileBlobs
from model.base import new_id
from model.errors import HostBusy, QuotaExceeded, Unavailable
from model.images import ImageFound, ImageWanted
from model.instances import MachineSpec
from model.workflows import Failure, Order, Step
from tests.activities.conftest import NoHistories
from tests.services import Database
from worker.agent import STEPS

CONTENT = b"x" * 100_000


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """``/file`` at once, ``/drip`` without an end."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            if self.path == "/drip":
                self.end_headers()
                while True:
                    try:
                        self.wfile.write(b"x" * 1000)
                    except OSError:
                        return
                    time.sleep(0.02)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_: object) -> None:
            """Nobody looks."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


class Images:
    """Images as the API writes them, and the steps of their runs."""

    def __init__(self, db: Database, engine: Engine, folder: Path) -> None:
        self.db = db
        self.folder = folder
        self.histories: Any = NoHistories()
        self.least_free = 0
        self._engine = engine

    @property
    def records(self) -> ImageRecords:
        limits = ImageLimits(most_bytes=1 << 30, most_unpacked_bytes=1 << 30, cache_days=1)
        blobs = FileBlobs(self.folder, least_free=self.least_free)
        return ImageRecords(self._engine, self.histories, blobs, limits, [ip_network("127.0.0.0/8")])

    def write(self, kind: str, status: str, prior: str | None = None, **columns: Any) -> Order:
        order = Order(
            workflow_id=new_id(),
            project_id=self.db.project_id,
            kind=kind,
            resource_type="image",
            resource_id=new_id(),
            name="base",
            request_id="test",
            deadline_seconds=60,
        )
        with self.db.connect() as connection, connection.transaction():
            values = {
                "id": order.resource_id,
                "project_id": order.project_id,
                "name": str(order.resource_id),
                "status": status,
                "source": "url",
                "workflow_id": order.workflow_id,
            } | columns
            names, places = ", ".join(values), ", ".join(["%s"] * len(values))
            connection.execute(f"INSERT INTO images ({names}) VALUES ({places})", list(values.values()))
            connection.execute(
                'INSERT INTO workflows (id, project_id, kind, resource_type, resource_id, actor, "order", prior_status)'
                " VALUES (%s, %s, %s, 'image', %s, 'test', %s, %s)",
                (
                    *(order.workflow_id, order.project_id, kind, order.resource_id),
                    *(Jsonb(order.model_dump(mode="json")), prior),
                ),
            )
        return order

    def download(self, order: Order, url: str) -> str:
        self.db.rows("UPDATE images SET url = %s WHERE id = %s", url, order.resource_id)
        asked = Import(order=order, source="url")
        digest: str = ActivityEnvironment().run(self.records.download, asked)
        return digest

    def row(self, order: Order) -> dict[str, Any]:
        return self.db.one("SELECT * FROM images WHERE id = %s", order.resource_id)

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]


@pytest.fixture
def images(database: Database, worker_engine: Engine, tmp_path: Path) -> Images:
    return Images(database, worker_engine, tmp_path)


def test_download_says_how_much_the_image_takes(images: Images, site: str) -> None:
    order = images.write("ImportImage", "importing")
    digest = images.download(order, f"{site}/file")
    row = images.row(order)
    assert (row["digest"], row["size_bytes"]) == (digest, len(CONTENT))


def test_download_that_drips_is_broken_off(images: Images, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "WINDOW_SECONDS", 0.3)
    with pytest.raises(Unavailable, match="KiB a second"):
        images.download(images.write("ImportImage", "importing"), f"{site}/drip")
    assert images.files() == []


def test_pace_is_that_of_each_window(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    kept = pace.Pace()
    enough = int(pace.LEAST_RATE * pace.WINDOW_SECONDS)
    for seconds, size, expected in ((59, 0, False), (60, enough, False), (119, enough, False), (121, enough, True)):
        now[0] = seconds
        assert kept.is_too_slow(size) is expected, seconds


def test_download_beyond_the_quota_leaves_nothing(images: Images, site: str) -> None:
    images.db.rows("UPDATE quotas SET image_bytes_limit = %s", len(CONTENT) + 10)
    images.download(images.write("ImportImage", "importing"), f"{site}/file")
    images.write("ImportImage", "available", source="registry", size_bytes=1 << 40)  # which is on hosts alone
    order = images.write("ImportImage", "importing")
    with pytest.raises(QuotaExceeded):
        images.download(order, f"{site}/file")
    assert (images.row(order)["digest"], images.row(order)["size_bytes"]) == (None, None)
    assert len(images.files()) == 1


def test_some_of_the_disk_stays_free(images: Images, site: str) -> None:
    images.least_free = 1 << 60
    with pytest.raises(Unavailable):
        images.download(images.write("ImportImage", "importing"), f"{site}/file")
    assert images.files() == []


class Ran:
    def __init__(self, *steps: str) -> None:
        self._steps = steps

    def steps(self, _workflow_id: Any) -> list[Step]:
        return [
            Step(
                name=name,
                host=None,
                state="failed",
                attempts=1,
                started_at=None,
                finished_at=None,
                error=None,
                undo=False,
            )
            for name in self._steps
        ]


@pytest.mark.parametrize(
    ("prior", "steps", "expected"),
    [
        *(("available", [], "available"), ("error", [], "error"), ("pending", ["image.claim"], "pending")),
        *(("available", ["image.claim", "image.discard"], "error"), ("importing", ["image.claim"], "error")),
    ],
)
@pytest.mark.parametrize("outcome", ["cancelled", "failed"])
def test_delete_that_removed_nothing_leaves_the_image_as_it_was(
    images: Images, prior: str, steps: list[str], expected: str, outcome: Any
) -> None:
    order = images.write("DeleteImage", "deleting", prior)
    images.histories = Ran(*steps)
    ended = ImageEnd(order=order, outcome=outcome, failure=Failure(code="x", message="x", step=None))
    ActivityEnvironment().run(images.records.settle, ended)
    row = images.row(order)
    assert row["status"] == expected
    assert (row["error"] is None) == (expected == prior)


def test_delete_and_import_that_completed(images: Images) -> None:
    for kind, status, expected in (
        ("DeleteImage", "deleting", "deleted"),
        ("ImportImage", "importing", "available"),
    ):
        order = images.write(kind, status, "available" if kind == "DeleteImage" else None)
        images.histories = Ran("image.claim", "image.discard")
        facts = ImageFacts(digest=f"sha256:{'1' * 64}", size_bytes=1) if kind == "ImportImage" else None
        ActivityEnvironment().run(images.records.settle, ImageEnd(order=order, outcome="completed", facts=facts))
        assert images.row(order)["status"] == expected


class Registries:
    """Images of a host whose registries answer when they are told to."""

    def __init__(self) -> None:
        self.entered, self.answer = threading.Semaphore(0), threading.Event()

    def find(self, wanted: ImageWanted) -> ImageFound | None:
        return ImageFound() if wanted.reference == "here:1" else None

    def ensure(self, _wanted: ImageWanted, _cancelled: Any, _login: Any) -> ImageFound:
        self.entered.release()
        assert self.answer.wait(10)
        return ImageFound()


def test_images_take_some_of_a_hosts_places_and_one_project_not_all_of_these(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in (("ENSURES", 3), ("OF_PROJECT", 2), ("PULLS", 2), ("WAIT_SECONDS", 0.05)):
        monkeypatch.setattr(image_activities, name, number)
    registries = Registries()
    host = ImageEngine("one", registries)  # type: ignore[arg-type]

    def pull() -> Any:
        return ActivityEnvironment().run(host.pull, ImageWanted(reference="web:1"))

    def is_there() -> Any:
        return ActivityEnvironment().run(host.pull, ImageWanted(reference="here:1"))

    def ensure(project: UUID) -> Any:
        spec = MachineSpec(
            id=new_id(), project_id=project, generation=1, name="web", image="web:1", vcpus=1, memory_mb=512, ports=[]
        )
        return ActivityEnvironment().run(host.ensure, spec)

    mine, theirs = new_id(), new_id()
    with ThreadPoolExecutor(5) as threads:
        running = [threads.submit(pull), threads.submit(pull), *(threads.submit(ensure, mine) for _ in range(2))]
        for _ in running:
            assert registries.entered.acquire(timeout=5), "imports take no place from launches"
        with pytest.raises(HostBusy) as busy:
            pull()
        assert busy.value.details["retry_after_seconds"] > 0
        assert is_there() == ImageFound(), "what is there takes no place"
        with pytest.raises(HostBusy):
            ensure(mine)
        running.append(threads.submit(ensure, theirs))
        assert registries.entered.acquire(timeout=5), "there is one left for others"
        with pytest.raises(HostBusy):
            ensure(theirs)
        registries.answer.set()
        for one in running:
            assert one.result(5) == ImageFound()
        assert pull() == ensure(mine) == ImageFound()


def test_places_stay_for_what_is_done_to_machines() -> None:
    assert image_activities.ENSURES + image_activities.PULLS <= STEPS - 8
