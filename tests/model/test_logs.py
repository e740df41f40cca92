"""Log lines: their fields, what is kept out of them, and how many there are."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError

from model import logs
from model.logs import Sampled
from model.redaction import HIDDEN, SECRET_NAMES, is_secret_name, redacted, redacted_text
from model.secrets import new_credential, new_join_token, new_key, new_webhook_secret
from model.tickets import new_signing_key

DOCS = Path(__file__).parents[2] / "docs" / "logging.md"
SECRET = "Tr0ub4dor-and-3"


class Spec(BaseModel):
    name: str = "web"
    env: dict[str, str] = {"DB": SECRET}
    key: SecretStr = SecretStr(SECRET)


@dataclasses.dataclass
class Login:
    user: str = "ann"
    password: str = SECRET


class Strange:
    def __str__(self) -> str:
        return f"login with password={SECRET}"


VALUES = {
    "secret_str": SecretStr(SECRET),
    "secret_bytes": SecretBytes(SECRET.encode()),
    "raw": SECRET.encode(),
    "view": memoryview(SECRET.encode()),
    "model": Spec(),
    "data": Login(),
    "nested": {"a": [{"Authorization": f"Bearer {SECRET}"}, ({"env": {"A": SECRET}},)]},
    "strange": Strange(),
    "url": f"postgresql://cairn:{SECRET}@db.example/cairn",
    "json": json.dumps({"password": SECRET, "user_data": SECRET}),
    "header": f"Authorization: Bearer {SECRET}",
    "pair": f"api_key={SECRET}&x=1",
    **{name: SECRET for name in SECRET_NAMES},
    **{f"X-{name.replace('_', '-').title()}": SECRET for name in SECRET_NAMES},
}
OURS = {
    "api key": new_key(),
    "credential": new_credential(),
    "join token": new_join_token(),
    "webhook secret": new_webhook_secret(),
    "signing key": new_signing_key(),
    "ticket": "eyJhbGciOiJFZERTQSJ9.eyJleHAiOjF9.c2lnbmF0dXJl",
}


@pytest.mark.parametrize("name", VALUES)
def test_secrets_are_hidden_by_type_name_and_looks(name: str) -> None:
    shown = json.dumps(logs.redact(None, "info", {"event": "e", name: VALUES[name]}))
    assert SECRET not in shown
    assert shown != "{}"


@pytest.mark.parametrize("what", OURS)
@pytest.mark.parametrize("how", ["{}", "it said '{}'.", "key={}", '{{"a": "{}"}}'])
def test_what_we_give_out_is_known_by_its_looks(what: str, how: str) -> None:
    secret = OURS[what]
    shown = redacted_text(how.format(secret))
    assert not any(part in shown for part in secret.split("\n")[1:-2] or [secret]), shown


def test_what_is_not_secret_stays() -> None:
    plain = {
        "event": "http.request",
        "path": "/v1/instances/0199-abc",
        "status": 202,
        "milliseconds": 5.1,
        "host": "one",
        "key_id": "0199",
        "tokens": 3,
        "error": "connection to server at 127.0.0.1, port 5432 failed: Connection refused",
        "nothing": None,
        "hosts": ["one", "two"],
        "address": "http://127.0.0.1:8080/v1",
    }
    assert logs.redact(None, "info", dict(plain)) == plain
    assert not is_secret_name("secretary")
    assert redacted({"token": None}) == {"token": None}
    assert redacted(b"abc") == "[3 bytes]"


LOGGER = """
import logging, sys
import structlog
from pydantic import BaseModel
from model import logs
logs.configure("info", sys.argv[1], "tested")
log = structlog.get_logger()
secret = sys.stdin.read()

class Model(BaseModel):
    count: int

def fail():
    try:
        Model(count=secret)
    except ValueError as error:
        raise RuntimeError(f"connect to postgresql://cairn:{secret}@db failed") from error

structlog.contextvars.bind_contextvars(request_id="r-1", authorization="Bearer " + secret)
log.info("plain", env={"A": secret}, status=200)
try:
    fail()
except RuntimeError:
    log.exception("ours")
    logging.getLogger("package").exception("theirs: password=%s", secret)
logging.getLogger("package").warning("Authorization: Bearer %s", secret)
log.error("of an error", exc_info=ValueError(f"token={secret}"))
"""


@pytest.mark.parametrize("format", ["json", "console"])
def test_nothing_secret_reaches_standard_error(format: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LOGGER, format], input=SECRET, capture_output=True, text=True, check=True
    )
    assert SECRET not in ran.stderr
    assert "Traceback" in ran.stderr
    assert ran.stderr.count(HIDDEN) >= 6


def test_every_line_has_the_fields_that_are_documented() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LOGGER, "json"], input=SECRET, capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    documented = set(re.findall(r"^\| `(\w+)` \|", DOCS.read_text(), re.MULTILINE))
    assert [line["event"] for line in lines if "logger" not in line] == ["plain", "ours", "of an error"]
    for line in lines:
        assert line.keys() >= {"timestamp", "level", "event", "process"}
        assert line["process"] == "tested"
        assert line["request_id"] == "r-1"
    assert {"timestamp", "level", "event", "process", "request_id", "logger", "exception", "suppressed"} <= documented


def test_a_flood_of_one_event_is_sampled_and_says_so(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    sampled = Sampled(5)

    def say(event: str = "noisy", method: str = "info") -> dict[str, object] | None:
        try:
            return dict(sampled(None, method, {"event": event}))
        except logs.structlog.DropEvent:
            return None

    assert sum(say() is not None for _ in range(100)) == 5
    assert say("another") == {"event": "another"}
    assert say(method="warning") is not None, "another level is counted by itself"
    assert all(say(method="error") is not None for _ in range(100)), "errors are never dropped"
    now[0] = logs.WINDOW
    assert say() == {"event": "noisy", "suppressed": 95}
    assert say() == {"event": "noisy"}
    assert all(Sampled(0).admits("noisy", "info") for _ in range(1000))


def test_what_is_remembered_of_events_is_bounded() -> None:
    sampled = Sampled(1)
    for number in range(3 * logs.EVENTS):
        sampled.admits(str(number), "info")
    assert len(sampled._windows) <= logs.EVENTS


def test_a_librarys_flood_is_sampled_by_its_logger(capfd) -> None:
    script = (
        "import logging; from model import logs; logs.configure('info', 'json', 'x', 3)\n"
        "for n in range(50): logging.getLogger('noisy').warning('line %s', n)\n"
        "logging.getLogger('noisy').error('an error')"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert len(ran.stderr.splitlines()) == 4


def test_validation_errors_do_not_repeat_what_was_sent() -> None:
    class Model(BaseModel):
        count: int

    with pytest.raises(ValidationError) as error:
        Model(count=SECRET)  # type: ignore[arg-type]
    assert SECRET not in redacted_text(str(error.value))
    assert logging.getLogger("x") is not None
