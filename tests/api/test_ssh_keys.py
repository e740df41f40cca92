"""Keys of a project: kept, shown, forgotten; instances keep theirs."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from model.base import new_id
from tests.api.conftest import Api

MADE = ed25519.Ed25519PrivateKey.generate()
KEY = MADE.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + " me"


async def add(api: Api, name: str = "laptop", status: int = 201, **headers: str) -> dict[str, Any]:
    answer = await api.http.post("/v1/ssh-keys", json={"name": name, "public_key": KEY}, headers=headers)
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    return body["data"] or body["error"]


async def test_life_of_a_key(api: Api) -> None:
    made = await add(api)
    assert (made["name"], made["public_key"], made["type"]) == ("laptop", KEY, "ssh-ed25519")
    assert made["fingerprint"].startswith("SHA256:")
    assert (await api.http.get(f"/v1/ssh-keys/{made['id']}")).json()["data"] == made
    other = await add(api, "other")
    assert [key["name"] for key in (await api.http.get("/v1/ssh-keys")).json()["data"]] == ["other", "laptop"]
    assert (await api.http.get("/v1/ssh-keys", params={"name": "laptop"})).json()["data"] == [made]
    page = (await api.http.get("/v1/ssh-keys", params={"limit": 1})).json()
    assert page["data"] == [other]
    rest = await api.http.get("/v1/ssh-keys", params={"cursor": page["meta"]["next_cursor"]})
    assert rest.json()["data"] == [made]
    assert (await api.http.delete(f"/v1/ssh-keys/{made['id']}")).status_code == 204
    for method in ("GET", "DELETE"):
        assert (await api.http.request(method, f"/v1/ssh-keys/{made['id']}")).status_code == 404


async def test_name_is_taken_once_and_the_same_request_again_makes_no_other(api: Api) -> None:
    made = await add(api, **{"Idempotency-Key": "a"})
    assert await add(api, **{"Idempotency-Key": "a"}) == made
    assert (await add(api, status=409))["code"] == "name_taken"
    assert (await add(api, "two", status=409, **{"Idempotency-Key": "a"}))["code"] == "idempotency_mismatch"
    async with api.as_(api.db.project("other")) as http:
        answer = await http.post("/v1/ssh-keys", json={"name": "laptop", "public_key": KEY})
        assert answer.status_code == 201, "in another project"


async def test_keys_of_another_project_are_not_there(api: Api) -> None:
    made = await add(api)
    async with api.as_(api.db.project("other")) as http:
        assert (await http.get("/v1/ssh-keys")).json()["data"] == []
        assert (await http.get(f"/v1/ssh-keys/{made['id']}")).status_code == 404
        assert (await http.delete(f"/v1/ssh-keys/{made['id']}")).status_code == 404
        body = {"name": "web", "image": "a", "ssh_key_id": made["id"]}
        answer = await http.post("/v1/instances", json=body)
        assert (answer.status_code, answer.json()["error"]["details"]["fields"][0]["field"]) == (422, "ssh_key_id")
    assert (await api.http.get(f"/v1/ssh-keys/{made['id']}")).json()["data"] == made


async def test_instance_keeps_a_key_that_was_forgotten(api: Api) -> None:
    made = await add(api)
    instance = (await api.launch(ssh_key_id=made["id"]))["data"]
    assert instance["ssh_key_id"] == made["id"]
    await api.http.delete(f"/v1/ssh-keys/{made['id']}")
    row = api.db.one("SELECT authorized_key FROM instances WHERE id = %s", instance["id"])
    assert row["authorized_key"] == KEY
    again = await api.http.post("/v1/instances", json={"name": "b", "image": "a", "ssh_key_id": made["id"]})
    assert again.status_code == 422


async def test_private_key_is_refused_without_being_repeated(shared_api: Api) -> None:
    text = MADE.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    answer = await shared_api.http.post("/v1/ssh-keys", json={"name": "laptop", "public_key": text})
    assert answer.status_code == 422
    assert "private key" in answer.json()["error"]["message"]
    assert not any(line in answer.text for line in text.splitlines()), answer.text


@pytest.mark.parametrize(
    ("field", "value"),
    [("public_key", ""), ("public_key", "ssh-rsa"), ("public_key", 1), ("public_key", "x" * 9000), ("name", "a b")],
)
async def test_bad_fields_are_named(shared_api: Api, field: str, value: Any) -> None:
    answer = await shared_api.http.post("/v1/ssh-keys", json={"name": "laptop", "public_key": KEY} | {field: value})
    assert answer.status_code == 422
    assert answer.json()["error"]["details"]["fields"][0]["field"] == field


async def test_absent_key(shared_api: Api) -> None:
    assert (await shared_api.http.get(f"/v1/ssh-keys/{new_id()}")).status_code == 404
    assert (await shared_api.http.get("/v1/ssh-keys/x")).status_code == 422
