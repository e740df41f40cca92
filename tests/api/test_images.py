"""Images over the API: what is accepted, what an upload may be, and what it leaves where it is none."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import threading
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest

from api import image_uploads, user_urls
from drivers import pace
from drivers.blobs import FileBlobs
from model.errors import Unavailable
from model.settings import Settings
from tests.api.conftest import Api
from tests.services import eventually
from worker.api import CONNECTIONS

FILE = b"any file" * 10_000
DIGEST = f"sha256:{hashlib.sha256(FILE).hexdigest()}"


async def create(api: Api, source: dict[str, Any] | None = None, name: str = "base", **more: Any) -> dict[str, Any]:
    answer = await api.http.post("/v1/images", json={"name": name, "source": source or {"type": "upload"}} | more)
    assert answer.status_code in (201, 202), answer.text
    found: dict[str, Any] = answer.json()
    return found


async def upload(api: Api, image: dict[str, Any], content: Any = FILE, **headers: str) -> httpx.Response:
    return await api.http.post(f"/v1/images/{image['data']['id']}/upload", content=content, headers=headers)


def stored(api: Api) -> list[str]:
    """All files of the blob store, those on their way too."""
    folder: Path = api.app.state.blobs._folder
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


async def test_registry_image_is_accepted(api: Api) -> None:
    made = await create(api, {"type": "registry", "reference": "nginx:1.29"})
    assert made["data"]["status"] == "importing"
    assert made["data"]["source"]["reference"] == "nginx:1.29"
    assert made["meta"]["workflow_id"] == made["data"]["workflow_id"]
    row = api.db.one("SELECT kind, resource_type FROM workflows WHERE resource_id = %s", made["data"]["id"])
    assert (row["kind"], row["resource_type"]) == ("ImportImage", "image")


async def test_upload_waits_and_starts_when_it_came(api: Api) -> None:
    made = await create(api)
    assert (made["data"]["status"], made["data"]["workflow_id"]) == ("pending", None)
    answer = await upload(api, made)
    assert answer.status_code == 202, answer.text
    found = answer.json()["data"]
    assert (found["status"], found["digest"], found["size_bytes"]) == ("importing", DIGEST, len(FILE))
    assert stored(api) == [DIGEST.removeprefix("sha256:")]
    assert answer.headers["location"] == f"/v1/workflows/{answer.json()['meta']['workflow_id']}"
    assert (await upload(api, made)).json()["error"]["code"] == "invalid_state"


@pytest.mark.parametrize(
    "source",
    [
        {"type": "registry", "reference": "web:tag:tag"},
        {"type": "registry"},
        {"type": "upload", "format": "zip"},
        {"type": "upload", "checksum": "md5:1"},
        {"type": "floppy"},
        {"type": "url", "url": "ftp://images.example.org/a"},
        {"type": "url", "url": "http://10.0.0.1/a"},
        {"type": "url", "url": "http://127.0.0.1@169.254.169.254/"},
        {"type": "url", "url": "http://user:secret@127.0.0.1/a"},
        {"type": "registry", "reference": "127.0.0.1:5000/web"},
        {"type": "registry", "reference": "2130706433:80/web"},
        {"type": "registry", "reference": "169.254.169.254/latest"},
        {"type": "registry", "reference": "cairn/0199b3f0-0000-7000-8000-000000000001:0123456789ab"},
        {"type": "registry", "reference": "docker.io/cairn/0199b3f0-0000-7000-8000-000000000001"},
    ],
)
async def test_source_that_is_refused(api: Api, source: dict[str, Any]) -> None:
    answer = await api.http.post("/v1/images", json={"name": "base", "source": source})
    assert answer.status_code == 422, answer.text
    assert api.db.rows("SELECT 1 FROM images") == []


async def test_mail_address_in_a_query_is_no_password(api: Api) -> None:
    await create(api, {"type": "url", "url": "http://1.1.1.1?mail=a@example.org"})


async def test_slow_names_keep_no_connection_of_the_database(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()

    def look_up(*_: Any, **__: Any) -> Any:
        answers.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "too slow")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(user_urls, "LOOK_UP_SECONDS", 4)
    source = {"type": "url", "url": "http://slow.test/a"}
    waiting = [
        asyncio.create_task(api.http.post("/v1/images", json={"name": f"i-{number}", "source": source}))
        for number in range(CONNECTIONS + 5)
    ]
    await asyncio.sleep(0.3)
    async with asyncio.timeout(3):
        assert (await api.http.get("/v1/images")).status_code == 200
    assert not any(task.done() for task in waiting)
    answered = await asyncio.gather(*waiting)
    answers.set()
    assert {answer.status_code for answer in answered} <= {202, 429}
    assert 202 in {answer.status_code for answer in answered}, "what is not known yet is judged by the download"


async def test_name_is_taken_until_it_is_deleted(api: Api) -> None:
    made = await create(api)
    again = await api.http.post("/v1/images", json={"name": "base", "source": {"type": "upload"}})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "name_taken")
    api.db.rows("UPDATE images SET status = 'deleted', deleted_at = now() WHERE id = %s", made["data"]["id"])
    await create(api)
    assert (await api.http.get(f"/v1/images/{made['data']['id']}")).json()["data"]["status"] == "deleted"
    assert len((await api.http.get("/v1/images")).json()["data"]) == 1


async def test_same_key_makes_one_image(api: Api) -> None:
    body = {"name": "base", "source": {"type": "upload"}}
    headers = {"Idempotency-Key": "k"}
    answers = await asyncio.gather(*(api.http.post("/v1/images", json=body, headers=headers) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["data"]["id"] for answer in answers}) == 1
    made = answers[0].json()
    uploads = [await upload(api, made, **{"Idempotency-Key": "u"}) for _ in range(2)]
    assert [answer.status_code for answer in uploads] == [202, 202]
    assert uploads[0].json()["meta"]["workflow_id"] == uploads[1].json()["meta"]["workflow_id"]
    other = await upload(api, made, b"another", **{"Idempotency-Key": "u"})
    assert other.json()["error"]["code"] == "idempotency_mismatch"
    assert len(stored(api)) == 1


async def test_wrong_checksum_leaves_nothing_and_may_be_sent_again(api: Api) -> None:
    made = await create(api)
    other = hashlib.sha256(b"other")
    in_base64 = base64.b64encode(other.digest()).decode()
    for headers in ({"X-Checksum-SHA256": other.hexdigest()}, {"Content-Digest": f"sha-256=:{in_base64}:"}):
        answer = await upload(api, made, **headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "checksum_mismatch")
        assert answer.json()["error"]["details"]["actual"] == DIGEST
    assert stored(api) == []
    right = base64.b64encode(bytes.fromhex(DIGEST.removeprefix("sha256:"))).decode()
    assert (await upload(api, made, **{"Content-Digest": f"sha-256=:{right}:"})).status_code == 202


async def test_checksum_of_the_image_holds_too(api: Api) -> None:
    made = await create(api, {"type": "upload", "checksum": "0" * 64})
    assert (await upload(api, made)).json()["error"]["code"] == "checksum_mismatch"
    assert stored(api) == []


@pytest.mark.parametrize("headers", [{"Content-Digest": "sha-256=:x:"}, {"X-Checksum-SHA256": "12"}])
async def test_checksum_that_is_none(api: Api, headers: dict[str, str]) -> None:
    answer = await upload(api, await create(api), **headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_failed")


async def test_empty_upload(api: Api) -> None:
    answer = await upload(api, await create(api), b"")
    assert (answer.status_code, stored(api)) == (422, [])


async def test_too_large_upload(api: Api) -> None:
    small = api.app.state.settings.model_copy(update={"image_max_bytes": 3 << 20})
    assert isinstance(small, Settings)
    api.app.state.settings = small
    made = await create(api)

    async def unannounced() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield bytes(1 << 20)

    for content in (bytes(4 << 20), unannounced()):
        answer = await upload(api, made, content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        assert stored(api) == []


async def test_other_bodies_are_limited_as_before(api: Api) -> None:
    answer = await api.http.post("/v1/images", content=bytes(2 << 20), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize("cut", [0, 1, 1000, 70_000, 2_500_000])
async def test_upload_cut_at_any_byte_leaves_the_disk_as_before(api: Api, cut: int) -> None:
    made = await create(api)
    path = f"/v1/images/{made['data']['id']}/upload"
    port = int(api.url.rpartition(":")[2])
    _reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {api.db.api_key}\r\nContent-Length: 5000000\r\n\r\n"
    writer.write(head.encode() + bytes(cut))
    await writer.drain()
    assert await eventually(lambda: len(stored(api)) == 1), "it was on its way"
    writer.close()
    assert await eventually(lambda: stored(api) == [])
    assert (await api.http.get(f"/v1/images/{made['data']['id']}")).json()["data"]["status"] == "pending"
    assert api.db.rows("SELECT 1 FROM workflows") == []


async def test_upload_needs_a_key_and_ones_own_image(api: Api) -> None:
    made = await create(api)
    path = f"/v1/images/{made['data']['id']}/upload"
    async with httpx.AsyncClient(base_url=api.url) as nobody:
        assert (await nobody.post(path, content=FILE)).status_code == 401
    async with api.as_(api.db.project("other")) as other:
        assert (await other.post(path, content=FILE)).status_code == 404
        assert (await other.get(f"/v1/images/{made['data']['id']}")).status_code == 404
        assert (await other.get("/v1/images")).json()["data"] == []
    assert stored(api) == []


async def test_delete_is_refused_while_an_instance_is_made_of_it(api: Api) -> None:
    made = await available(api)
    launched = await api.launch(image="base")
    assert launched["data"]["image_id"] == made["data"]["id"]
    path = f"/v1/images/{made['data']['id']}"
    refused = await api.http.delete(path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")
    assert refused.json()["error"]["details"]["instances"] == ["web"]
    api.put(launched["data"], "deleted")
    answer = await api.http.delete(path)
    assert (answer.status_code, answer.json()["data"]["status"]) == (202, "deleting")
    again = await api.http.delete(path)
    assert again.json()["meta"]["workflow_id"] == answer.json()["meta"]["workflow_id"]
    stale = await api.http.delete(
        f"/v1/images/{(await available(api, 'b'))['data']['id']}", headers={"If-Match": '"9"'}
    )
    assert stale.status_code == 412


async def available(api: Api, name: str = "base") -> dict[str, Any]:
    """What an import would have made of an upload."""
    made = await create(api, name=name)
    assert (await upload(api, made)).status_code == 202
    api.db.rows("UPDATE workflows SET state = 'completed', finished_at = now() WHERE resource_type = 'image'")
    api.db.rows(
        "UPDATE images SET status = 'available', format = 'rootfs-tar' WHERE id = %s AND status = 'importing'",
        made["data"]["id"],
    )
    return made


async def test_launch_by_name_or_id_gets_the_images_digest(api: Api) -> None:
    made = await available(api)
    for name, image in (("a", "base"), ("b", made["data"]["id"])):
        launched = await api.launch(name, image=image)
        assert (launched["data"]["image"], launched["data"]["image_digest"]) == (image, DIGEST)
    row = api.db.one("SELECT image_reference, image_format FROM instances WHERE name = 'a'")
    expected = f"cairn/{made['data']['id']}:{DIGEST.removeprefix('sha256:')[:12]}"
    assert (row["image_reference"], row["image_format"]) == (expected, "rootfs-tar")


async def test_name_of_an_image_goes_before_a_reference(api: Api) -> None:
    assert (await api.launch("a", image="base"))["data"]["image_id"] is None
    await available(api)
    assert (await api.launch("b", image="base"))["data"]["image_id"]


async def test_launch_of_an_image_that_is_not_available(api: Api) -> None:
    await create(api)
    body = {"name": "web", "image": "base"}
    answer = await api.http.post("/v1/instances", json=body)
    assert (answer.status_code, answer.json()["error"]["details"]["state"]) == (409, "pending")
    for image, code in (("0199b3f0-0000-7000-8000-000000000001", "image_not_found"), ("No.Such", "validation_failed")):
        answer = await api.http.post("/v1/instances", json=body | {"image": image})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)


async def test_host_fetches_what_its_instances_need_and_nothing_else(api: Api) -> None:
    await available(api)
    launched = await api.launch(image="base")
    host = {"Authorization": "Bearer agent-one"}
    async with httpx.AsyncClient(base_url=api.url) as agent:
        path = f"/v1/blobs/{DIGEST}"
        assert (await agent.get(path, headers=host)).status_code == 404, "it is placed nowhere yet"
        place = "UPDATE instances SET host_id = %s, generation = 1 WHERE id = %s"
        api.db.rows(place, api.db.hosts["one"], launched["data"]["id"])
        answer = await agent.get(path, headers=host)
        assert (answer.status_code, answer.content) == (200, FILE)
        assert (await agent.get(path, headers={"Authorization": "Bearer agent-two"})).status_code == 404
        assert (await agent.get(path, headers={"X-API-Key": api.db.api_key})).status_code == 401
        for wrong in ("sha256:" + "0" * 64, "sha256:..", "md5:1", "%00"):
            assert (await agent.get(f"/v1/blobs/{wrong}", headers=host)).status_code == 404
        api.db.rows("UPDATE instances SET status = 'deleted', deleted_at = now()")
        assert (await agent.get(path, headers=host)).status_code == 404


async def refused(api: Api, name: str, source: dict[str, Any] | None = None) -> tuple[int, str]:
    answer = await api.http.post("/v1/images", json={"name": name, "source": source or {"type": "upload"}})
    return answer.status_code, answer.json()["error"]["code"]


async def test_quota_of_images(api: Api) -> None:
    api.db.rows("UPDATE quotas SET images_limit = 2")
    made = [await create(api, name=name) for name in ("a", "b")]
    assert await refused(api, "c") == (429, "quota_exceeded")
    assert len(api.db.rows("SELECT 1 FROM images")) == 2
    api.db.rows("UPDATE images SET status = 'deleted', deleted_at = now() WHERE id = %s", made[0]["data"]["id"])
    answers = await asyncio.gather(
        *(api.http.post("/v1/images", json={"name": f"n-{n}", "source": {"type": "upload"}}) for n in range(5))
    )
    assert sorted(answer.status_code for answer in answers) == [201, 429, 429, 429, 429], "two do not get one place"


async def test_quota_of_bytes(api: Api) -> None:
    api.db.rows("UPDATE quotas SET image_bytes_limit = %s", len(FILE) + 5)
    await available(api, "first")
    other = await create(api, name="second")
    answer = await upload(api, other)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "quota_exceeded")

    async def unannounced() -> AsyncIterator[bytes]:
        yield FILE[1:]

    answer = await upload(api, other, unannounced())
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "quota_exceeded")
    assert len(stored(api)) == 1
    assert (await upload(api, other, b"tiny")).status_code == 202
    project = (await api.http.get("/v1/projects")).json()["data"][0]["id"]
    found = (await api.http.get(f"/v1/projects/{project}/quotas")).json()["data"]["image_bytes"]
    assert found == {"limit": len(FILE) + 5, "used": len(FILE), "reserved": 4}


async def test_so_many_imports_at_once(api: Api) -> None:
    most = api.app.state.settings.project_imports
    waiting = await create(api, name="waiting")
    made = [await create(api, {"type": "registry", "reference": "nginx"}, f"i-{n}") for n in range(most)]
    for source in ({"type": "registry", "reference": "nginx"}, {"type": "url", "url": "http://1.1.1.1/"}):
        assert await refused(api, "more", source) == (429, "too_many_imports")
    for headers in ({}, {"Idempotency-Key": "k"}):
        answer = await upload(api, waiting, **headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_imports")
        assert int(answer.headers["retry-after"]) > 0
    async with api.as_(api.db.project("other")) as other:
        body = {"name": "theirs", "source": {"type": "registry", "reference": "nginx"}}
        assert (await other.post("/v1/images", json=body)).status_code == 202
    api.db.rows("UPDATE images SET status = 'available' WHERE id = %s", made[0]["data"]["id"])
    assert (await upload(api, waiting)).status_code == 202


async def test_uploads_of_one_project_leave_places_for_others(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_uploads, "OF_PROJECT", 2)
    go_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"begun"
        await go_on.wait()

    made = [await create(api, name=name) for name in ("a", "b", "c")]
    sending = [asyncio.create_task(upload(api, one, slow())) for one in made[:2]]
    assert await eventually(lambda: len(stored(api)) == 2)
    answer = await upload(api, made[2])
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_streams")
    async with api.as_(api.db.project("other")) as other:
        theirs = (await other.post("/v1/images", json={"name": "x", "source": {"type": "upload"}})).json()["data"]
        assert (await other.post(f"/v1/images/{theirs['id']}/upload", content=FILE)).status_code == 202
    go_on.set()
    assert [(await one).status_code for one in sending] == [202, 202]
    assert not image_uploads._UPLOADS


async def test_upload_that_drips_loses_its_place(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "WINDOW_SECONDS", 0.3)
    made = await create(api)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    path = f"/v1/images/{made['data']['id']}/upload"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {api.db.api_key}\r\nContent-Length: 5000000\r\n\r\n"
    writer.write(head.encode())
    answering = asyncio.create_task(reader.readline())
    for _ in range(100):
        if answering.done():
            break
        writer.write(b"x")
        await asyncio.sleep(0.02)
    assert b" 400 " in await asyncio.wait_for(answering, 1)
    writer.close()
    assert await eventually(lambda: stored(api) == [])


async def test_some_of_the_disk_stays_free(api: Api) -> None:
    made = await create(api)
    api.app.state.blobs = FileBlobs(api.app.state.blobs._folder, least_free=1 << 60)
    answer = await upload(api, made)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert stored(api) == []


async def test_delete_that_never_began_can_be_called_off(api: Api) -> None:
    made = await available(api)
    path = f"/v1/images/{made['data']['id']}"
    workflow = (await api.http.delete(path)).json()["meta"]["workflow_id"]
    assert (await api.http.post(f"/v1/workflows/{workflow}/cancel")).json()["data"]["state"] == "cancelled"
    found = (await api.http.get(path)).json()["data"]
    assert (found["status"], found["error"], found["digest"]) == ("available", None, DIGEST)
    assert (await api.launch(image="base"))["data"]["image_id"] == found["id"]


async def test_delete_that_called_off_an_import_is_seen_to_its_end(api: Api) -> None:
    made = await create(api, {"type": "registry", "reference": "nginx"})
    api.db.rows("UPDATE workflows SET state = 'running', started_at = now(), run_id = 'r'")
    path = f"/v1/images/{made['data']['id']}"
    workflow = (await api.http.delete(path)).json()["meta"]["workflow_id"]
    assert (await api.http.post(f"/v1/workflows/{workflow}/cancel")).json()["data"]["state"] == "accepted"
    assert (await api.http.get(path)).json()["data"]["status"] == "deleting"


@pytest.mark.parametrize("prefix", ["", "docker.io/", "index.docker.io/"])
async def test_launch_by_what_hosts_call_an_image_is_refused(api: Api, prefix: str) -> None:
    """Whoever knew, or guessed, such a name would run another project's image."""
    image = f"{prefix}cairn/0199b3f0-0000-7000-8000-000000000001:0123456789ab"
    answer = await api.http.post("/v1/instances", json={"name": "web", "image": image})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_failed")
    await api.launch(image="cairn/base:latest")


async def test_checksums_of_other_algorithms_are_passed_over(api: Api) -> None:
    right = base64.b64encode(bytes.fromhex(DIGEST.removeprefix("sha256:"))).decode()
    for number, said in enumerate((f"sha-512=:{'A' * 86}==:", f"sha-512=:x:, sha-256=:{right}:")):
        made = await create(api, name=f"n{number}")
        assert (await upload(api, made, **{"Content-Digest": said})).status_code == 202


async def test_upload_to_an_image_that_takes_none_is_not_received(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although a key may make it a repetition: only one that was answered does."""
    made = await create(api)
    assert (await upload(api, made, **{"Idempotency-Key": "u"})).status_code == 202
    received = []
    receive = api.app.state.blobs.receive
    monkeypatch.setattr(api.app.state.blobs, "receive", lambda: received.append(1) or receive())
    answer = await upload(api, made, **{"Idempotency-Key": "another"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "invalid_state")
    assert received == []
    assert (await upload(api, made, **{"Idempotency-Key": "u"})).status_code == 202


async def test_upload_after_an_error_waits_again_and_says_so(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await create(api)
    api.db.rows("UPDATE images SET status = 'error', error = '{}' WHERE id = %s", made["data"]["id"])

    def fails(_: Any) -> None:
        raise Unavailable("the store is away")

    monkeypatch.setattr(api.app.state.blobs, "put", fails)
    assert (await upload(api, made)).status_code == 503
    found = (await api.http.get(f"/v1/images/{made['data']['id']}")).json()["data"]
    assert (found["status"], found["error"], found["version"]) == ("pending", None, 2)
    types = [row["type"] for row in api.db.rows("SELECT type FROM events ORDER BY xid, id")]
    assert types == ["image.pending", "image.pending"]


async def test_upload_that_another_overtook_is_left_out(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file may be removed at any moment: the image names another by now."""
    made = await create(api)
    put = api.app.state.blobs.put

    def put_late(file: Any) -> None:
        put(file)
        api.db.rows("UPDATE images SET digest = %s WHERE id = %s", f"sha256:{'0' * 64}", made["data"]["id"])

    monkeypatch.setattr(api.app.state.blobs, "put", put_late)
    answer = await upload(api, made)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "invalid_state")
    assert api.db.rows("SELECT 1 FROM workflows") == []


async def test_url_is_shown_without_its_signature(api: Api) -> None:
    url = "http://192.0.2.1/a.tar?signature=planted"
    allowed = api.app.state.settings.model_copy(update={"outbound_allow": (ip_network("192.0.2.0/24"),)})
    api.app.state.settings = allowed
    made = await create(api, {"type": "url", "url": url})
    assert made["data"]["source"]["url"] == "http://192.0.2.1/a.tar"
    assert "planted" not in (await api.http.get("/v1/images")).text
    assert api.db.one("SELECT url FROM images")["url"] == url
    assert "planted" not in str(api.db.rows('SELECT "order" FROM workflows') + api.db.rows("SELECT data FROM events"))
