from pathlib import Path

from model.settings import Settings, table

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_documented_table_is_the_settings() -> None:
    assert table() in DOCS.read_text()


def test_port_range_is_written_with_a_dash(monkeypatch) -> None:
    monkeypatch.setenv("CAIRN_PORT_RANGE", "31000-31010")
    assert Settings().port_range == (31000, 31010)


def test_secrets_do_not_show(monkeypatch) -> None:
    monkeypatch.setenv("CAIRN_API_KEY", "cairn_verysecret")
    assert "verysecret" not in repr(Settings())
