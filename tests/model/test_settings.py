from pathlib import Path

import pytest
from pydantic import ValidationError

from model.settings import Settings, of_process, table
from model.tickets import new_signing_key, verifying_key

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_documented_table_is_the_settings() -> None:
    assert table() in DOCS.read_text()


def test_port_range_is_written_with_a_dash(monkeypatch) -> None:
    monkeypatch.setenv("CAIRN_PORT_RANGE", "31000-31010")
    assert Settings().port_range == (31000, 31010)


def test_secrets_do_not_show(monkeypatch) -> None:
    monkeypatch.setenv("CAIRN_API_KEY", "cairn_verysecret")
    assert "verysecret" not in repr(Settings())


@pytest.mark.parametrize("name", ["CAIRN_TICKET_KEY", "CAIRN_TICKET_KEY_OTHER"])
@pytest.mark.parametrize(
    "key", ["", "verysecret", new_signing_key().replace("A", "!"), verifying_key(new_signing_key())]
)
def test_bad_ticket_key_ends_a_process_at_its_start_and_is_not_shown(monkeypatch, name: str, key: str) -> None:
    monkeypatch.setenv(name, key)
    with pytest.raises(SystemExit) as ended:
        of_process()
    assert str(ended.value).startswith(f"{name}: ")
    assert "openssl genpkey" in str(ended.value)
    assert "verysecret" not in str(ended.value)
    with pytest.raises(ValidationError) as error:
        Settings()
    assert not key or key not in str(error.value)


def test_ticket_key_may_be_one_line(monkeypatch) -> None:
    key = new_signing_key()
    monkeypatch.setenv("CAIRN_TICKET_KEY", key.replace("\n", "\\n"))
    found = Settings().ticket_key
    assert found is not None
    assert found.get_secret_value() == key
