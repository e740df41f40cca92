"""Bad input: always a 4xx in the envelope that names the field, and nothing written."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.app import create_app
from model.settings import Settings
from tests.api.conftest import BODY, Api
from tests.api.test_http import check_error

SURROGATE = "a\ud800b"
NUL = "a\x00b"
JSON = {"content-type": "application/json"}
NOT_BUILT = {
    "vpc_id": str(UUID(int=1)),
    "subnet_id": str(UUID(int=1)),
    "volumes": [{"volume_id": str(UUID(int=1)), "mount_path": "/data"}],
}
TYPES: list[Any] = [1, -1, 1.5, True, [], {}, [1], {"a": 1}, "", None, [None], [[]], 10**400]

#: field → values that it never takes.
BAD: dict[str, list[Any]] = {
    "ttl_seconds": [*(v for v in TYPES if v not in (1, None)), "60", 2**31],
    "idle_stop_seconds": [*(v for v in TYPES if v is not None), "60", 9, 2**31],
    "restart_policy": [*(v for v in TYPES), "NO", "on-failure:", "on-failure:0", "always:1", "on-failure:3\n"],
    "health_check": [*(v for v in TYPES if v is not None), {"type": "http"}, {"type": "http", "port": 80, "path": NUL}],
    "user_data": [*(v for v in TYPES if v is not None), "#!", "#!sh", "echo", "#!/bin/sh\r\n", f"#!/bin/sh {NUL}"],
    "ssh_key_id": [*(v for v in TYPES if v is not None), "laptop", str(UUID(int=1))],
    "name": [
        *(v for v in TYPES),
        *("../etc", "..", ".", "/", "a/b", "a b", "-a", "_a", " web", "web ", "web\n", "a" * 64),
        *("\u0430bc", "caf\u00e9", "\u202eweb", "web\u200b", "a\tb", SURROGATE, NUL, "\ud83d"),
    ],
    "image": [
        *(v for v in TYPES),
        *("UPPER/Case:", "a//b", "/a", "a/", ":tag", "a:", "a@", "a@sha256:", "a@sha256:" + "g" * 64, "a b", "a\n"),
        *("../a", "a/../b", "http://a/b", "a:" + "t" * 129, "a" * 256, "a:b:c", "-a", "a?b", "\u00e9", SURROGATE, NUL),
        *("a@md5:" + "0" * 32, "a:-tag", "a:.tag", "a..b", "a___b", "localhost:99999999/a", "a#b", "$(id)", "a;b"),
    ],
    "instance_type": [*TYPES, "huge-99", "Basic-1", "basic-1 ", "../x", SURROGATE, NUL, "x" * 64],
    "ports": [
        *(v for v in TYPES if v not in ([], None)),
        *("0", "70000", "1:0", "1:70000", "70000:80", "-1", "-1:80", "80-90", "80/sctp", "80:80:80", "a", "80,", ","),
        *("80,80", "8080:80,8080:81", "1:80,2:80", "8080:80/tcp,8080:81/tcp", "8 0", "0x50", "1e3", NUL, SURROGATE),
        *("\u0668\u0660", "80\u0660:80", "80," * 100_000, "99999", "65536", "80;81", "127.0.0.1:80:80"),
        *(
            [{"container_port": bad}]
            for bad in (0, -1, 65536, 70000, "eighty", "80", True, 1.5, 80.0, None, [], {}, 10**30)
        ),
        *([{"container_port": 80, "host_port": bad}] for bad in (-1, 65536, "x", True, 1.5, None, [], 10**30)),
        *([{"container_port": 80, "protocol": bad}] for bad in ("sctp", "TCP", "", 6, None, SURROGATE, NUL)),
        [{}],
        [{"host_port": 80}],
        ["80:80"],
        [80],
        [{"container_port": 80, "extra": 1}],
        [{"container_port": 80, "host_ip": "127.0.0.1"}],
        [{"container_port": 80}, {"container_port": 80}],
        [{"container_port": 80, "host_port": 9000}, {"container_port": 81, "host_port": 9000}],
        [{"container_port": n} for n in range(1, 66)],
    ],
    "env": [
        *(v for v in TYPES if v not in ([], {})),
        *(["A"], ["=1"], ["A=1", "A=2"], [1], [["A=1"]], ["A=1", None], "A=1", [f"{NUL}=1"], [f"A={NUL}"]),
        *([f"{SURROGATE}=1"], [f"A={SURROGATE}"], [SURROGATE], [f"{SURROGATE}=1", f"{SURROGATE}=2"]),
        *({"": "1"}, {"A=B": "1"}, {"A": 1}, {"A": None}, {"A": True}, {"A": ["x"]}, {"A": {}}),
        *({"A": NUL}, {NUL: "1"}, {SURROGATE: "1"}, {"A": SURROGATE}, {SURROGATE: SURROGATE}, {"K" * 257: "1"}),
        {f"K{n}": "v" for n in range(257)},
    ],
    "cmd": [
        *(v for v in TYPES if v not in ([], "", None)),
        *(
            "'unclosed",
            '"',
            "back\\",
            "a " * 400_000,
            NUL,
            SURROGATE,
            ["a", 1],
            ["a", None],
            ["a", ["b"]],
            [NUL],
            [SURROGATE],
            {"0": "a"},
        ),
        ["a"] * 257,
    ],
    "labels": [
        *(v for v in TYPES if v != {}),
        *(
            {"": "x"},
            {"a b": "x"},
            {"a=b": "x"},
            {"../a": "x"},
            {"a" * 64: "x"},
            {"a": "x" * 256},
            {"a": 1},
            {"a": None},
        ),
        *({"a": NUL}, {NUL: "x"}, {SURROGATE: "x"}, {"a": SURROGATE}, {"a": ["x"]}, {"a": True}, {"\u00e9": "x"}),
        {f"k{n}": "v" for n in range(65)},
    ],
    "metadata": [
        *(v for v in TYPES if v != {}),
        *({"": "x"}, {"a": "x" * 4097}, {"a": 1}, {"a": NUL}, {NUL: "x"}, {SURROGATE: "x"}, {"a": SURROGATE}),
        *({"a": {"b": "c"}}, {f"k{n}": "v" for n in range(65)}),
    ],
    "backend": [*TYPES, "Docker", "libvirt", SURROGATE, NUL],
    "host": [*(v for v in TYPES if v is not None), SURROGATE, NUL, "h" * 64],
    "unknown": [1, None, "x", SURROGATE],
    "status": ["running"],
    "id": [str(UUID(int=1))],
    "project_id": [str(UUID(int=1))],
    **{name: [value] for name, value in NOT_BUILT.items()},
}


@pytest_asyncio.fixture
async def api(shared_api: Api) -> Api:
    shared_api.db.rows("UPDATE instances SET status = 'deleted', deleted_at = now() WHERE status <> 'deleted'")
    return shared_api


async def post(api: Api, content: bytes, **headers: str) -> Any:
    return await api.http.post("/v1/instances", content=content, headers=JSON | headers)


@pytest.mark.parametrize("field", BAD)
async def test_field_is_refused_by_name(api: Api, field: str) -> None:
    before, quota = api.db.counts(), api.db.quota()
    for value in BAD[field]:
        answer = await post(api, json.dumps(BODY | {field: value}).encode(), **{"Idempotency-Key": "bad"})
        shown = repr(value)[:80]
        if isinstance(value, int) and value > 10**300:
            assert answer.status_code in (400, 422), shown
            continue
        assert answer.status_code == 422, (shown, answer.text)
        error: Any = check_error(answer, 422, "validation_failed")
        assert any(part["field"].split(".")[0] == field for part in error["details"]["fields"]), (shown, error)
    assert (api.db.counts(), api.db.quota()) == (before, quota)


@pytest.mark.parametrize("field", ["name", "image"])
async def test_required_field_is_missed_by_name(api: Api, field: str) -> None:
    body = {name: value for name, value in BODY.items() if name != field}
    error: Any = check_error(await api.http.post("/v1/instances", json=body), 422, "validation_failed")
    assert error["details"]["fields"][0]["field"] == field


@pytest.mark.parametrize("key", ["a\ud800", "a\x00", "", "x" * 10_000, "\u202e"])
async def test_unknown_field_of_any_name_is_refused(api: Api, key: str) -> None:
    before = api.db.counts()
    check_error(await post(api, json.dumps(BODY | {key: 1}).encode()), 422, "validation_failed")
    nested = BODY | {"ports": [{"container_port": 80, key: 1}]}
    check_error(await post(api, json.dumps(nested).encode()), 422, "validation_failed")
    assert api.db.counts() == before


async def test_every_wrong_field_is_named_at_once(api: Api) -> None:
    body = {"name": "../x", "image": "A/", "ports": "0", "backend": "x", "vpc_id": "y"}
    error: Any = check_error(await api.http.post("/v1/instances", json=body), 422)
    assert {part["field"].partition(".")[0] for part in error["details"]["fields"]} == set(body)


MALFORMED = [
    b"{",
    b"}",
    b"{'name': 'web'}",
    b'{"name": "web",}',
    b'{"name": "web" "image": "x"}',
    b'{"name": "\x00", "image": "x"}',
    b'{"name": "a\nb", "image": "x"}',
    b'{"name": "\\ud8"}',
    b'{"name": "\\x41"}',
    b"\xff\xfe{\x00",
    b'{"name": "\xff\xfe", "image": "x"}',
    b"nul",
    b"{} {}",
    b"[" * 100_000,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b'{"name": "web", "image": "x", "env": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"name": ' + b"9" * 5000 + b"}",
    b"<xml/>",
]
NOT_AN_OBJECT = [
    b"null",
    b"1",
    b'"x"',
    b"[]",
    b"[{}]",
    b"true",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"  ",
    b'"\\ud800"',
    b'{"name": "\xed\xa0\x80"}',
]


@pytest.mark.parametrize("content", MALFORMED, ids=range(len(MALFORMED)))
async def test_malformed_json(api: Api, content: bytes) -> None:
    before = api.db.counts()
    check_error(await post(api, content), 400, "malformed")
    assert api.db.counts() == before
    assert (await api.http.get("/health/live")).status_code == 200


@pytest.mark.parametrize("content", NOT_AN_OBJECT)
async def test_body_that_is_no_object(api: Api, content: bytes) -> None:
    before = api.db.counts()
    answer = await post(api, content)
    assert answer.status_code in (400, 422), answer.text
    check_error(answer, answer.status_code)
    assert api.db.counts() == before


@pytest.mark.parametrize(
    "content",
    [
        b'{"name": "web", "image": "x", "ports": [{"container_port": NaN}]}',
        b'{"name": "web", "image": "x", "ports": [{"container_port": Infinity}]}',
        b'{"name": "web", "image": "x", "ports": [{"container_port": 1e999}]}',
        b'{"name": "web", "image": "x", "ports": [{"container_port": -0.5}]}',
        b'{"name": "web", "image": "x", "ports": [{"container_port": 80}], "labels": {"a": NaN}}',
        b'{"name": NaN, "image": "x"}',
        b'{"name": "a", "image": "x", "a": -Infinity}',
        b'{"name": "web", "image": "x", "env": {"A": NaN}}',
        b'{"name": "web", "image": "x", "env": {"A": ' + b"[" * 200 + b"]" * 200 + b"}}",
        b'{"name": "web", "image": "x", "cmd": ' + b"[" * 300 + b"]" * 300 + b"}",
    ],
)
async def test_numbers_and_nesting_that_no_field_takes(api: Api, content: bytes) -> None:
    before = api.db.counts()
    answer = await post(api, content)
    assert answer.status_code in (400, 422), answer.text
    check_error(answer, answer.status_code)
    assert api.db.counts() == before


async def test_body_over_a_mebibyte(api: Api) -> None:
    before = api.db.counts()
    large = json.dumps(BODY | {"metadata": {"a": "x" * 10_000_000}}).encode()
    instance = f"/v1/instances/{UUID(int=0)}"

    async def chunks() -> Any:
        for start in range(0, len(large), 65536):
            yield large[start : start + 65536]

    for path in ("/v1/instances", f"{instance}/stop", f"/v1/workflows/{UUID(int=0)}/cancel"):
        check_error(await api.http.post(path, content=large, headers=JSON), 413, "body_too_large")
    check_error(await api.http.post("/v1/instances", content=chunks(), headers=JSON), 413, "body_too_large")
    assert api.db.counts() == before
    just = json.dumps(BODY | {"env": {"A": "x" * 1_000_000}}).encode()
    assert (await post(api, just)).status_code == 202


@pytest.mark.parametrize(
    "content", [b'{"force": true}', b"{", b"[1]", b'"x"', b'{"ttl_seconds": 1}', b"x" * 100, b"NaN"]
)
async def test_body_where_none_belongs(api: Api, content: bytes) -> None:
    instance = (await api.launch())["data"]
    api.put(instance, "running")
    before = api.db.counts()
    paths = (f"/v1/instances/{instance['id']}/stop", f"/v1/workflows/{instance['workflow_id']}/cancel")
    for path in paths:
        answer = await api.http.post(path, content=content, headers=JSON)
        assert 400 <= answer.status_code < 500, (path, answer.text)
        check_error(answer, answer.status_code)
    assert api.db.counts() == before


IDS = [
    "x",
    "1",
    "a" * 32 + "x",
    "%00",
    "%ff",
    "%ed%a0%80",
    "..%2f..%2f",
    "' OR 1=1",
    "\u00e9",
    "0" * 31,
    "null",
    "-",
    "{}",
]


@pytest.mark.parametrize("bad", IDS)
async def test_malformed_id(api: Api, bad: str) -> None:
    paths = [
        ("GET", "/v1/instances/{}"),
        ("DELETE", "/v1/instances/{}"),
        ("POST", "/v1/instances/{}/start"),
        ("POST", "/v1/instances/{}/stop"),
        ("GET", "/v1/workflows/{}"),
        ("GET", "/v1/workflows/{}/wait"),
        ("GET", "/v1/workflows/{}/events"),
        ("POST", "/v1/workflows/{}/cancel"),
        ("GET", "/v1/hosts/{}"),
        ("GET", "/v1/projects/{}"),
        ("GET", "/v1/projects/{}/quotas"),
    ]
    for method, path in paths:
        answer = await api.http.request(method, path.format(bad))
        if "%2f" in bad:
            assert answer.status_code in (404, 422)
            continue
        error: Any = check_error(answer, 422, "validation_failed")
        assert error["details"]["fields"][0]["field"].endswith("_id")


QUERIES = {
    "/v1/instances": [
        *(f"limit={bad}" for bad in ("0", "-1", "501", "x", "1.5", "", "NaN", "1e2", "9" * 30, "%00", "\u0661")),
        *(
            f"cursor={bad}"
            for bad in ("x", "", "%00", "!!!!", "\u00e9", "A" * 101, "A" * 20, "A" * 24, "%ed%a0%80", "====")
        ),
        *(f"status={bad}" for bad in ("x", "", "Running", "%00", "running,stopped", "%ff")),
        *(f"label={bad}" for bad in ("x", "", "=x", "%00=x", "a=%00", "a" * 400)),
        *(f"name={bad}" for bad in ("%00", "a" * 64)),
    ],
    "/v1/workflows": [
        *(f"state={bad}" for bad in ("x", "", "done", "%00")),
        *(f"kind={bad}" for bad in ("%00", "a b", "a" * 64, "\u00e9", "")),
        *(f"resource_id={bad}" for bad in ("x", "", "%00", "1")),
        "limit=0",
        "cursor=x",
    ],
    "/v1/hosts": ["limit=0", "limit=501", "cursor=x"],
}


@pytest.mark.parametrize(("path", "query"), [(path, query) for path in QUERIES for query in QUERIES[path]])
async def test_bad_query(api: Api, path: str, query: str) -> None:
    error: Any = check_error(await api.http.get(f"{path}?{query}"), 422, "validation_failed")
    assert error["details"]["fields"][0]["field"] == query.partition("=")[0]


@pytest.mark.parametrize("query", ["timeout=-1", "timeout=301", "timeout=x", "timeout=NaN", "timeout=inf", "steps=2"])
async def test_bad_wait(api: Api, query: str) -> None:
    workflow_id = (await api.launch())["meta"]["workflow_id"]
    async with asyncio.timeout(60):
        check_error(await api.http.get(f"/v1/workflows/{workflow_id}/wait?{query}"), 422, "validation_failed")


async def test_bad_force(api: Api) -> None:
    instance = (await api.launch())["data"]
    before = api.db.counts()
    answer = await api.http.delete(f"/v1/instances/{instance['id']}?force=perhaps")
    check_error(answer, 422, "validation_failed")
    assert api.db.counts() == before


@pytest.mark.parametrize("value", [b"\xff\xfe", b"a b", b"", b"x" * 256, b"\xc3\xa9", b"a\tb", b"a\x01b", b"\x7f"])
async def test_bad_idempotency_key(api: Api, value: bytes) -> None:
    before = api.db.counts()
    answer = await api.http.post("/v1/instances", json=BODY, headers={b"idempotency-key": value})
    if not answer.headers.get("x-request-id"):
        assert answer.status_code == 400  # the server's own parser
    else:
        error: Any = check_error(answer, 422, "validation_failed")
        assert error["details"]["fields"][0]["field"] == "Idempotency-Key"
    assert api.db.counts() == before


@pytest.mark.parametrize(
    "value", ["x", "1", "1-2", "1-2-3-4", "-1-2-3", "1-2-9" + "9" * 30, "9999999999-1-1", "\u00e9", "0-0"]
)
async def test_bad_last_event_id(api: Api, value: str) -> None:
    workflow_id = (await api.launch())["meta"]["workflow_id"]
    for path in ("/v1/events", f"/v1/workflows/{workflow_id}/events"):
        answer = await api.http.get(path, headers={b"last-event-id": value.encode("utf-8")})
        error: Any = check_error(answer, 422, "validation_failed")
        assert error["details"]["fields"][0]["field"] == "Last-Event-ID"


@pytest.mark.parametrize("value", [b"\xff\xfe", b"wait=\xb2", b"wait=99999999999999999999", b";;;,,,", b"wait=1e9"])
async def test_odd_prefer_and_if_match_never_break(api: Api, value: bytes) -> None:
    instance = (await api.launch())["data"]
    api.put(instance, "running")
    async with asyncio.timeout(20):
        answer = await api.http.post(f"/v1/instances/{instance['id']}/start", headers={b"prefer": value})
        assert answer.status_code in (400, 409), answer.text
        answer = await api.http.post(f"/v1/instances/{instance['id']}/stop", headers={b"if-match": value})
        assert answer.status_code in (400, 412), answer.text


@pytest.mark.parametrize("value", [b"\xff\xfe", b"\xc3\xa9", b"x" * 60_000, b" ", b"a\x00b", b"' OR 1=1 --"])
async def test_odd_api_key_is_401(api: Api, value: bytes) -> None:
    for header in (b"x-api-key", b"authorization"):
        sent = b"Bearer " + value if header == b"authorization" else value
        status = await raw(api, b"GET /v1/instances HTTP/1.1\r\nHost: x\r\n" + header + b": " + sent + b"\r\n\r\n")
        assert status in (400, 401, 431), value[:20]


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /v1/instances\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/instances/\xff HTTP/1.1\r\nHost: x\r\nX-API-Key: cairn_test\r\n\r\n",
        b"GET /v1/instances?name=\xff\xfe HTTP/1.1\r\nHost: x\r\nX-API-Key: cairn_test\r\n\r\n",
        b"POST /v1/instances HTTP/1.1\r\nHost: x\r\nX-API-Key: cairn_test\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/instances HTTP/1.1\r\nHost: x\r\nX-API-Key: cairn_test\r\nContent-Length: abc\r\n\r\n{}",
        b"POST /v1/instances HTTP/1.1\r\nHost: x\r\nX-API-Key: cairn_test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GARBAGE\r\n\r\n",
        b"POST /v1/instances HTTP/1.1\r\nHost: x\r\nX-API-Key: cairn_test\r\nContent-Type: application/json\r\n"
        b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
    ],
)
async def test_broken_http_is_refused_and_nothing_is_written(api: Api, request_: bytes) -> None:
    before = api.db.counts()
    status = await raw(api, request_)
    assert status is None or 200 <= status < 500
    assert api.db.counts() == before
    assert (await api.http.get("/health/live")).status_code == 200


async def raw(api: Api, request: bytes) -> int | None:
    """The status of what is answered to these bytes; None where the connection is closed instead."""
    address = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(request)
        async with asyncio.timeout(60):
            line = await reader.readline()
        return int(line.split()[1]) if line else None
    except OSError:
        return None
    finally:
        writer.close()


async def test_client_that_goes_away_in_the_middle_of_a_body_writes_nothing(api: Api) -> None:
    before = api.db.counts()
    address = urlsplit(api.url)
    for _ in range(5):
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        head = f"POST /v1/instances HTTP/1.1\r\nHost: x\r\nX-API-Key: {api.db.api_key}\r\n"
        writer.write(f'{head}Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{{"name": "web"'.encode())
        await writer.drain()
        writer.close()
    await asyncio.sleep(0.3)
    assert api.db.counts() == before
    assert (await api.http.get("/v1/instances")).status_code == 200


TEXT = st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF, exclude_categories=[]), max_size=12)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from([*BAD, "x"])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(FIELDS, ANYTHING, min_size=1, max_size=4))
async def test_any_body_is_accepted_or_refused_in_order(api: Api, changes: dict[str, Any]) -> None:
    before = api.db.counts()["workflows"]
    answer = await post(api, json.dumps(BODY | {"name": f"n{before}"} | changes).encode())
    assert answer.status_code in (202, 400, 409, 422), answer.text
    if answer.status_code == 202:
        assert answer.json()["data"]["status"] == "pending"
    else:
        check_error(answer, answer.status_code)
        assert api.db.counts()["workflows"] == before


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.sampled_from(["limit", "cursor", "status", "name", "label", "state", "kind"]), TEXT))
async def test_any_query_is_answered_or_refused_in_order(api: Api, values: dict[str, str]) -> None:
    sent = {name: value.encode("utf-8", "surrogatepass") for name, value in values.items()}
    for path in ("/v1/instances", "/v1/workflows"):
        answer = await api.http.get(path, params=sent)
        assert answer.status_code in (200, 422), (values, answer.text)


#: In the place of any part of any body.
STRANGE: list[Any] = [SURROGATE, NUL, 10**30, 1e999, {"a": {SURROGATE: 2**64}}]
#: Parameters of paths that are no ids.
PLAIN = {"key": "a", "secret": "a", "role_name": "a", "number": "1", "digest": "sha256:" + "0" * 64, "path": "a"}


def bodies() -> Iterator[tuple[str, str, Any]]:
    """Method, path and body of all requests that are documented with one."""
    document: Any = create_app(Settings(), None, None, None).openapi()  # type: ignore[arg-type]
    schemas = document["components"]["schemas"]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is None:
                continue
            choices = [content["schema"], *content["schema"].get("anyOf", [])]
            named = [schemas[choice["$ref"].rpartition("/")[2]] if "$ref" in choice else choice for choice in choices]
            for example in [e for one in (content, *named) for e in one.get("examples", ())]:
                yield method, re.sub(r"\{(\w+)\}", lambda name: PLAIN.get(name[1], str(UUID(int=1))), path), example


def spoilt(body: Any, value: Any) -> Iterator[Any]:
    """The body with this in the place of each part of it, one after the other."""
    yield value
    if isinstance(body, dict):
        for name, part in body.items():
            for other in spoilt(part, value):
                yield body | {name: other}
    elif isinstance(body, list):
        for number, part in enumerate(body):
            for other in spoilt(part, value):
                yield [*body[:number], other, *body[number + 1 :]]


async def test_nothing_in_any_body_is_an_error_of_ours(api: Api) -> None:
    asked = 0
    for method, path, example in bodies():
        for value in STRANGE:
            for body in spoilt(example, value):
                answer = await api.http.request(method.upper(), path, content=json.dumps(body), headers=JSON)
                assert answer.status_code < 500, (method, path, body, answer.text)
                asked += 1
    assert asked > 1000
