from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import ValidationError

from model.settings import Settings, SetupSettings, of_process, problem_of, table, with_password
from model.tickets import new_signing_key, verifying_key

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_documented_table_is_the_settings() -> None:
    assert table() in DOCS.read_text()
    more = {name: field for name, field in SetupSettings.model_fields.items() if name not in Settings.model_fields}
    assert table(more) in DOCS.read_text()


def test_a_secret_may_be_in_a_file_and_its_variable_wins(monkeypatch, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("cairn_verysecret\n")
    monkeypatch.setenv("CAIRN_API_KEY_FILE", str(file))
    found = Settings().api_key
    assert found is not None
    assert found.get_secret_value() == "cairn_verysecret"
    monkeypatch.setenv("CAIRN_API_KEY", "other")
    found = Settings().api_key
    assert found is not None
    assert found.get_secret_value() == "other"
    monkeypatch.setenv("CAIRN_HOST_NAME_FILE", str(file))
    assert Settings().host_name == "local", "no secret"


def test_a_file_that_is_not_there_ends_a_process(monkeypatch) -> None:
    monkeypatch.setenv("CAIRN_TICKET_KEY_FILE", "/nowhere/key")
    with pytest.raises(SystemExit, match=r"CAIRN_TICKET_KEY_FILE: .*/nowhere/key"):
        of_process()


@pytest.mark.parametrize("password", ["plain", "p@ss/w:rd 1%?#", "ümläut"])
def test_password_of_the_database_is_put_into_its_url(monkeypatch, password: str) -> None:
    monkeypatch.setenv("CAIRN_DATABASE_URL", "postgresql://cairn_api:old@[::1]:5433/cairn?sslmode=require")
    monkeypatch.setenv("CAIRN_DATABASE_PASSWORD", password)
    found = conninfo_to_dict(Settings().database)
    assert (found["user"], found["password"], found["port"]) == ("cairn_api", password, "5433")
    assert (found["host"], found["dbname"], found["sslmode"]) == ("::1", "cairn", "require")
    with pytest.raises(ValueError, match="name a role"):
        with_password("postgresql:///cairn", password)


SECRETS = [name for name, field in SetupSettings.model_fields.items() if "SecretStr" in str(field.annotation)]


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("empty", ["", " \n"])
def test_a_secret_that_is_empty_is_none_and_refused(monkeypatch, tmp_path: Path, name: str, empty: str) -> None:
    """As a file is that was touched, and never written: whoever shows nothing would show the right password."""
    variable, file = f"CAIRN_{name.upper()}", tmp_path / "empty"
    file.write_text(empty)
    monkeypatch.setenv(f"{variable}_FILE", str(file))
    with pytest.raises(ValidationError) as error:
        SetupSettings()
    assert problem_of(error.value).startswith(f"{variable}: ")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CAIRN_DATABASE_URL", "host=db password=verysecret"),
        ("CAIRN_OTLP_ENDPOINT", "collector:4318"),
        ("CAIRN_OTLP_ENDPOINT", "http://"),
        ("CAIRN_TICK_SECONDS", "inf"),
        ("CAIRN_PURGE_INTERVAL", "1e30"),
        ("CAIRN_SETUP_PATIENCE", "1e6"),
    ],
)
def test_a_value_that_cannot_work_is_refused_at_the_start_by_its_name(monkeypatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValidationError) as error:
        SetupSettings()
    assert problem_of(error.value).startswith(f"{variable}: ")
    assert "verysecret" not in problem_of(error.value)


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
