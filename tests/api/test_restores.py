"""What an API answers while the platform is restored from a backup."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg.types.json import Jsonb

from model.base import new_id
from tests.api.conftest import Api
from tests.api.people import login, register

DIFFERENCE = {
    **{"kind": "machine_without_row", "name": "web", "host": "one", "generation": 1, "what": "no row knows it"},
    **{"project_id": None, "run": None, "blocks": True},
}


def execute(api: Api, statement: str, *parameters: Any) -> None:
    with api.db.connect() as connection:
        connection.execute(statement, parameters)  # type: ignore[arg-type]


def restore(api: Api) -> str:
    execute(api, "INSERT INTO restores (id, backup_at, epoch) VALUES (gen_random_uuid(), now(), 2)")
    id = str(new_id())
    execute(
        api,
        "INSERT INTO restore_differences VALUES (1, 'machine_without_row', %s, 'web', %s)",
        id,
        Jsonb(DIFFERENCE | {"id": id}),
    )
    return id


async def test_platform_that_was_never_restored_says_so_and_has_nothing_to_finish(api: Api) -> None:
    assert (await api.http.get("/v1/operations/restore")).json()["data"]["state"] == "never"
    for verb in ("finish", f"{new_id()}/adopt"):
        answer = await api.http.post(f"/v1/operations/restore/{verb}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "invalid_state")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/instances"),
        ("PATCH", "/v1/projects/{id}"),
        ("DELETE", "/v1/instances/{id}"),
        ("POST", "/v1/hosts/{id}/drain"),
        ("DELETE", "/v1/hosts/{id}"),
        ("POST", "/v1/workflows/{id}/cancel"),
    ],
)
async def test_nothing_is_changed_while_it_is_restored(api: Api, method: str, path: str) -> None:
    restore(api)
    id = api.db.project_id if "projects" in path else new_id()
    answer = await api.http.request(method, path.format(id=id), json={} if method != "DELETE" else None)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "restored"), answer.text
    assert answer.headers["Retry-After"] == "60"


async def test_reads_go_on_and_the_operator_decides(api: Api) -> None:
    id = restore(api)
    assert (await api.http.get("/v1/instances")).status_code == 200
    assert (await api.http.post("/v1/hosts/tokens", json={})).status_code == 201
    view = (await api.http.get("/v1/operations/restore")).json()["data"]
    assert (view["state"], view["differences"]) == ("restored", [DIFFERENCE | {"id": id}])
    for verb, kind in (("adopt", "AdoptInstance"), ("discard", "DiscardMachine"), ("forget", "ForgetDifference")):
        answer = await api.http.post(f"/v1/operations/restore/{id}/{verb}")
        assert answer.status_code == 202 and answer.json()["data"] == {"id": id, "name": "web"}
        row = api.db.one("SELECT kind, resource_id FROM workflows WHERE id = %s", answer.json()["meta"]["workflow_id"])
        assert (row["kind"], str(row["resource_id"])) == (kind, id)


async def test_what_does_not_differ_is_not_decided_about(api: Api) -> None:
    restore(api)
    answer = await api.http.post(f"/v1/operations/restore/{new_id()}/discard")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_what_is_left_alone_is_kept_over_several_attempts_to_finish(api: Api) -> None:
    restore(api)
    for leave in (["a"], ["b", "a"]):
        assert (await api.http.post("/v1/operations/restore/finish", json={"leave": leave})).status_code == 202
    assert api.db.one("SELECT left_alone FROM restores")["left_alone"] == ["a", "b"]


async def test_who_was_logged_out_by_a_restore_logs_in_again_before_it_is_finished(api: Api) -> None:
    await register(api, "ada")
    restore(api)
    assert (await login(api, "ada")).status_code == 200
