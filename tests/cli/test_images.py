"""``cairn image``: what it sends, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.fake import IMAGE, WORKFLOW, Answer, FakeApi, accepted, cairn, image, workflow


def test_list_and_show(api: FakeApi) -> None:
    api.on("GET /images", Answer(200, [image()]))
    assert "docker-archive" in cairn("image", "list").stdout
    assert "3.0 MiB" in cairn("image", "show", "app").stdout
    missing = cairn("image", "show", "other")
    assert missing.exit_code == 3
    assert "cairn image list" in missing.stderr


def test_pull_and_import_name_their_sources(api: FakeApi) -> None:
    api.on("POST /images", accepted(image(status="importing")))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow()))
    api.on(f"GET /images/{IMAGE}", Answer(200, image()))
    assert cairn("image", "pull", "app", "nginx:1.29").exit_code == 0
    assert cairn("image", "pull", "app", "r.example/a", "--registry-secret", "registry").exit_code == 0
    assert (
        cairn("image", "import", "app", "https://x.example/a.tar", "--checksum", "1" * 64, "--no-wait").exit_code == 0
    )
    pulled, with_login, imported = api.seen("POST /images")
    assert with_login.body["source"] == {
        "type": "registry",
        "reference": "r.example/a",
        "registry_secret": "registry",
    }
    assert pulled.body == {"name": "app", "source": {"type": "registry", "reference": "nginx:1.29"}}
    assert imported.body["source"] == {"type": "url", "url": "https://x.example/a.tar", "checksum": "1" * 64}


def test_upload_of_a_file_that_is_not_there(api: FakeApi, tmp_path: Path) -> None:
    refused = cairn("image", "upload", "app", str(tmp_path / "none"))
    assert refused.exit_code == 2
    assert api.requests == []


def test_name_that_is_taken_by_something_else(api: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"x")
    api.on("POST /images", Answer(409, error={"code": "name_taken", "message": "taken"}))
    api.on("GET /images", Answer(200, [image()]))
    assert cairn("image", "upload", "app", str(tmp_path / "a.tar")).exit_code == 4


@pytest.mark.parametrize("state", ["completed", "failed"])
def test_rm_waits_for_the_end(api: FakeApi, state: str) -> None:
    api.on("GET /images", Answer(200, [image()]))
    api.on(f"DELETE /images/{IMAGE}", accepted(image(status="deleting")))
    api.on(f"GET /workflows/{WORKFLOW}", Answer(200, workflow(state)))
    assert cairn("image", "rm", "app").exit_code == (0 if state == "completed" else 1)
