"""The dashboard and the alerts: they parse, ask for what is exported, fire on what they are for, and are explained."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import activities.figures
import api.metrics
from cli.main import load
from model.metrics import REGISTRY
from tests.prometheus import install, is_installed, promtool

ROOT = Path(__file__).parents[2]
PROMETHEUS, RUNBOOKS = ROOT / "deploy" / "prometheus", ROOT / "docs" / "runbooks"
TESTS = Path(__file__).with_name("alerts.test.yml")
RULES: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "cairn.json").read_text())
#: Every rule that could fire has done so by then.
LONG_AFTER = "50m"
SECTIONS = ["## What it means", "## What users feel", "## How to look", "## What to do"]
#: Written by Prometheus itself.
OF_PROMETHEUS = {"up"}
_METRIC = re.compile(r"\b(?:cairn|process|python|temporal)_\w+\b|\bup\b")
_STRING = re.compile(r'"[^"]*"')
_LABELS = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)|\{([^}]*)\}")


def exported() -> dict[str, set[str]]:
    """Every series that some process may show, and its labels."""
    found: dict[str, set[str]] = {}
    for family in REGISTRY.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"]}
        for suffix in suffixes.get(family.type, [""]):
            found[family.name + suffix] = set()
    for collector in REGISTRY._collector_to_names:
        for name in found:
            if name.startswith(getattr(collector, "_name", "\0")):
                found[name] = set(getattr(collector, "_labelnames", ())) | ({"le"} if "bucket" in name else set())
    for figure in (*api.metrics.FIGURES, *activities.figures.FIGURES):
        found[figure.name] = set(figure.labels)
    return found


def expressions() -> list[str]:
    targets = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return [*(rule["expr"] for rule in RULES), *targets]


@pytest.fixture(scope="module", autouse=True)
def tool() -> None:
    if not is_installed():
        install()


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_and_label_that_is_asked_for_is_exported(expression: str) -> None:
    known = exported()
    bare = _STRING.sub('""', expression)
    metrics = set(_METRIC.findall(re.sub(r"\{[^}]*\}", "", bare)))
    assert metrics, expression
    assert metrics - OF_PROMETHEUS <= known.keys()
    labels = {"job", "instance"}.union(*(known.get(metric, set()) for metric in metrics))
    for grouped, matched in _LABELS.findall(bare):
        asked = re.findall(r"\w+", grouped) or re.findall(r"(\w+)\s*[=!]", matched)
        assert set(asked) <= labels, (expression, asked)


def test_rules_and_the_example_of_a_configuration_parse(tmp_path: Path) -> None:
    shutil.copytree(PROMETHEUS, tmp_path / "p")
    (tmp_path / "token").write_text("x")
    told = (tmp_path / "p" / "scrape.yml").read_text().replace("/etc/prometheus/cairn-metrics-token", "../token")
    (tmp_path / "p" / "scrape.yml").write_text(told)
    assert f"{len(RULES)} rules found" in promtool("check", "rules", "alerts.yml", folder=tmp_path / "p")
    promtool("check", "config", "scrape.yml", folder=tmp_path / "p")
    jobs = {job["job_name"] for job in yaml.safe_load(told)["scrape_configs"]}
    assert set(re.findall(r'job="([\w-]+)"', json.dumps(RULES).replace('\\"', '"'))) <= jobs


def test_the_dashboards_expressions_parse(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(expressions())
    ]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", "rules.yml", folder=tmp_path)


def test_the_dashboards_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_every_alert_fires_on_what_it_is_for(tmp_path: Path) -> None:
    shutil.copy(PROMETHEUS / "alerts.yml", tmp_path)
    shutil.copy(TESTS, tmp_path)
    promtool("test", "rules", TESTS.name, folder=tmp_path)
    fired, quiet = set(), set()
    for test in yaml.safe_load(TESTS.read_text())["tests"]:
        for one in test["alert_rule_test"]:
            if one["exp_alerts"]:
                fired.add(one["alertname"])
            # No rule fires before its ``for``, whatever it asks for.
            elif one["eval_time"] == LONG_AFTER:
                quiet.add(one["alertname"])
    assert fired == quiet == {rule["alert"] for rule in RULES}


def test_every_alert_has_its_runbook_and_every_runbook_its_alert() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"} == {rule["alert"] for rule in RULES}
    index = (RUNBOOKS / "README.md").read_text()
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["for"]
        path = ROOT / rule["annotations"]["runbook_url"]
        assert path == RUNBOOKS / f"{rule['alert']}.md"
        page = path.read_text()
        assert page.startswith(f"# {rule['alert']}\n\n{rule['annotations']['summary']}")
        sections = re.split(r"^(## .*)$", page, flags=re.MULTILINE)
        assert sections[1::2] == SECTIONS
        assert all(len(text.split()) >= 3 for text in sections[2::2]), path
        assert f"[{rule['alert']}]({rule['alert']}.md)" in index


@pytest.mark.parametrize("path", sorted(RUNBOOKS.glob("*.md")), ids=lambda path: path.stem)
def test_runbooks_name_commands_metrics_and_pages_that_there_are(path: Path) -> None:
    page = path.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", page):
        assert (path.parent / target).exists(), target
    for group, command, options in re.findall(r"`cairn (\w+) (\w+)([^`]*)", page):
        found = load(group).commands.get(command)
        assert found is not None, f"cairn {group} {command}"
        taken = {option for parameter in found.params for option in parameter.opts + parameter.secondary_opts}
        assert set(re.findall(r"(?<=\s)--?[a-z-]+", options)) <= taken, f"cairn {group} {command}{options}"
    known = exported().keys()
    families = {name.removesuffix("_bucket") for name in known}
    assert set(re.findall(r"\bcairn_[a-z]\w+", page)) <= known | families
