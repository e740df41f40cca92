"""The compose file and the systemd units: valid, and as strict as docs/production.md says they are."""

from __future__ import annotations

import os
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml

from model.settings import Settings
from tests.deploy import compose
from worker import engine
from worker.database import ROLES

UNITS = compose.ROOT / "deploy" / "systemd"
PAGE = compose.ROOT / "docs" / "production.md"
ALLOW_LIST = compose.ROOT / "deploy" / "allow-list.yml"
WORKSPACES = compose.ROOT / "deploy" / "workspaces.yml"
DOCUMENT = compose.read()
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
#: They come up, do their work, and end.
ONE_SHOTS = {"temporal-schema", "setup"}


def test_file_is_valid(installed: None) -> None:
    """By the distribution's docker-compose, which checks it against the specification's schema of its time."""
    command = ["docker-compose", "--file", str(compose.FILE), "--profile", "agent", "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_image_is_called_by_the_version_of_its_wheel() -> None:
    assert {service["image"] for service in compose.ours(DOCUMENT).values()} == {f"cairn:{version('cairn-platform')}"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_held_short(name: str) -> None:
    service = SERVICES[name]
    assert re.search(r":\d+\.\d+(\.\d+)?(-\w+)?$", service["image"]), "an exact version"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service and "cap_add" not in service
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    assert service["restart"] == ("on-failure" if name in ONE_SHOTS else "unless-stopped")
    assert service["logging"]["options"]["max-size"]
    if name not in ONE_SHOTS | {"temporal-ui"}:
        assert service["healthcheck"]["test"][0] == "CMD", "no shell"


@pytest.mark.parametrize("name", [*compose.ours(DOCUMENT), "postgres", "proxy"])
def test_ours_and_what_guards_data_run_as_nobody_on_read_only_roots(name: str) -> None:
    service = SERVICES[name]
    assert not re.match(r"(0|root)(:|$)", service["user"])
    assert service["read_only"] is True


#: What enters networks of containers, and, since it mounts, what keeps files of anybody: numbers as in capabilities(7).
ENTERS = {"SYS_ADMIN": 21, "SYS_PTRACE": 19}
KEEPS = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3}


def test_agents_unit_has_two_capabilities_and_the_others_none() -> None:
    for unit in UNITS.glob("*.service"):
        text = unit.read_text()
        given = {
            name: set(value.split()) for name, value in re.findall(r"^(\w*Capabilit\w+)=(.*)$", text, re.MULTILINE)
        }
        if unit.stem == "cairn-agent":
            both = {f"CAP_{name}" for name in ENTERS}
            assert given == {"CapabilityBoundingSet": both, "AmbientCapabilities": both}
            assert "\nRestrictNamespaces=net\n" in text
        else:
            assert given == {"CapabilityBoundingSet": set()} and "\nRestrictNamespaces=yes\n" in text
        assert "\nNoNewPrivileges=yes\n" in text


def test_agents_unit_for_workspaces_adds_what_files_take_and_hides_no_mount() -> None:
    lines = (UNITS.parent / "workspaces.conf").read_text().splitlines()
    said = dict(line.split("=", 1) for line in lines if not line.startswith(("#", "[")))
    for name in ("CapabilityBoundingSet", "AmbientCapabilities"):
        assert set(said.pop(name).split()) == {f"CAP_{one}" for one in KEEPS}
    unit = (UNITS / "cairn-agent.service").read_text()
    # All that would give it a view of its own on file systems, and nothing else.
    own_view = re.findall(r"^(PrivateTmp|Protect(?!Clock)\w+)=(?:yes|strict)$", unit, re.MULTILINE)
    assert said == dict.fromkeys(own_view, "no")
    assert "deploy/workspaces.conf" in PAGE.read_text()


@pytest.mark.parametrize(("file", "more"), [(ALLOW_LIST, {}), (WORKSPACES, KEEPS)], ids=["allow-list", "workspaces"])
def test_agent_with_more_is_the_same_with_no_more_than_that_takes(
    installed: None, file: Path, more: dict[str, int]
) -> None:
    command = ["docker-compose", "--file", str(compose.FILE), "--file", str(file), "--profile", "agent", "config"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert set(yaml.safe_load(file.read_text())["services"]) == {"agent"}, "the others are as they were"
    agent = yaml.safe_load(done.stdout)["services"]["agent"]
    assert agent["cap_drop"] == ["ALL"]
    become = {"SETUID", "SETGID", "SETPCAP"}
    assert set(agent["cap_add"]) - become == {*ENTERS, *more}, "and what becomes somebody else with these"
    assert agent["read_only"] is True and "no-new-privileges:true" in agent["security_opt"]
    assert agent["command"] == SERVICES["agent"]["command"]
    assert SERVICES["agent"]["user"] == "10001:10001" and "--reuid=10001" in agent["entrypoint"]
    held = subprocess.run(
        [*agent["entrypoint"], "cat", "/proc/self/status"], capture_output=True, text=True, check=True
    )
    assert re.search(r"^Uid:(\t10001){4}$", held.stdout, re.MULTILINE)
    sets = {int(value, 16) for value in re.findall(r"^Cap\w+:\t(\w+)$", held.stdout, re.MULTILINE)}
    assert sets == {sum(1 << number for number in (ENTERS | more).values())}
    if more:
        # Where the engine looks for it, and sees what is mounted there.
        (kept,) = yaml.safe_load(file.read_text())["services"]["agent"]["volumes"]
        assert kept["source"] == kept["target"] == compose.image_environment()["CAIRN_DATA_DIR"]
        assert kept["bind"] == {"propagation": "rshared"}


def test_agent_with_allow_lists_enters_a_container_as_nobody(docker_engine: docker.DockerClient) -> None:
    begun = yaml.safe_load(ALLOW_LIST.read_text())["services"]["agent"]["entrypoint"]
    made = docker_engine.containers.run(engine.IMAGE, ["sleep", "60"], network_mode="none", detach=True)
    try:
        made.reload()
        enters = ["nsenter", f"--net=/proc/{made.attrs['State']['Pid']}/ns/net", "--", "true"]
        subprocess.run([*begun, *enters], capture_output=True, timeout=20, check=True)
        without = [word for word in begun if not word.startswith(("--ambient", "--inh"))]
        refused = subprocess.run([*without, *enters], capture_output=True, timeout=20, check=False)
        assert refused.returncode != 0
    finally:
        made.remove(force=True)


def test_nothing_is_published_but_the_proxy() -> None:
    assert [name for name, service in SERVICES.items() if service.get("ports")] == ["proxy"]
    inside = {port.rsplit(":", 2)[2]: port.rsplit(":", 2)[0] for port in SERVICES["proxy"]["ports"]}
    assert inside.pop("8443"), "TLS, on all addresses"
    assert inside == dict.fromkeys(("8080", "7233", "8233"), "127.0.0.1")


def test_the_database_is_reached_only_by_those_who_need_it() -> None:
    assert DOCUMENT["networks"]["database"] == {"internal": True}
    assert SERVICES["postgres"]["networks"] == ["database"]
    beside = {name for name, service in SERVICES.items() if "database" in service.get("networks", [])}
    users = {"temporal-schema", "temporal", "setup", "api-1", "api-2", "control-1", "control-2"}
    assert beside == {"postgres"} | users


def test_secrets_are_files_and_each_service_has_its_own_alone() -> None:
    for name, service in SERVICES.items():
        environment = service.get("environment", {})
        spoken = [key for key in environment if re.search("PASSWORD|PWD|KEY|TOKEN|SECRET", key)]
        assert [key for key in spoken if not key.endswith("_FILE")] == [], name
        named = {Path(environment[key]).name for key in spoken}
        assert named <= set(service.get("secrets", [])), name
        assert set(service.get("secrets", [])) <= set(DOCUMENT["secrets"]), name
    for role in ("api", "control", "agent"):
        (service,) = [SERVICES[name] for name in SERVICES if name in (role, f"{role}-1")]
        assert not {"postgres-password", "setup-password", "owner-password"} & set(service["secrets"])
    assert all(list(one) == ["file"] for one in DOCUMENT["secrets"].values())


def test_every_role_of_the_database_has_a_password_in_setup() -> None:
    files = SERVICES["setup"]["environment"]
    assert {f"CAIRN_{role.removeprefix('cairn_').upper()}_PASSWORD_FILE" for role in ROLES} <= set(files)


def test_page_makes_the_programs_as_the_image_does() -> None:
    """In a folder of its version, which the link that the units go by leads to: an upgrade makes another beside it."""
    version_of, *commands, link = compose.commands_of(PAGE, "## With systemd")
    there = [[word.replace("/opt/cairn-$VERSION", "/opt/cairn") for word in words] for words in commands]
    assert [[word.removesuffix("==$VERSION") for word in words] for words in there] == compose.build_commands()
    assert version_of == ["VERSION=$(uv", "version", "--short)"]
    assert link == ["ln", "-sfnT", "/opt/cairn-$VERSION", "/opt/cairn"]


def test_set_up_is_tried_again_like_everything_else() -> None:
    for unit in UNITS.glob("*.service"):
        kind = "on-failure" if unit.stem == "cairn-setup" else "always"
        assert f"\nRestart={kind}\nRestartSec=" in unit.read_text(), unit.name


def test_page_restarts_what_holds_a_file_of_this_folder() -> None:
    """A single file that is mounted is that which was there at its start; ``up`` sees no change."""
    held = {
        name
        for name, service in SERVICES.items()
        for mount in service.get("volumes", [])
        if mount.startswith("./deploy/") and "initdb" not in mount and service["restart"] != "on-failure"
    }
    commands = compose.commands_of(compose.ROOT / "docs" / "upgrading.md", "### With containers")
    assert held == {words[3] for words in commands if words[:3] == ["docker", "compose", "restart"]}


def test_an_agent_in_a_container_of_its_own_has_what_that_of_the_file_has() -> None:
    (words,) = compose.commands_of(compose.ROOT / "docs" / "hosts.md", "## As a service")
    mounts = {words[at + 1].partition(":")[2] for at, word in enumerate(words) if word == "-v"}
    assert mounts == {mount.partition(":")[2] for mount in SERVICES["agent"]["volumes"]}


def test_page_names_the_units_that_there_are() -> None:
    """What root does on a machine of its own is not done here: that files, users and units are those is looked at."""
    commands = compose.commands_of(PAGE, "### Units")
    text = "\n".join(unit.read_text() for unit in UNITS.iterdir())
    units = {unit.stem for unit in UNITS.glob("*.service")}
    (copied,) = (words[1] for words in commands if words[0] == "cp")
    assert {path.stem for path in compose.ROOT.glob(copied)} == units
    enabled = {word for words in commands if words[:2] == ["systemctl", "enable"] for word in words[3:]}
    assert {re.sub("@.*", "@", word) for word in enabled} == units
    users = {words[-1] for words in commands if words[0] == "useradd"}
    assert users == set(re.findall(r"^User=(.+)$", text, re.MULTILINE))
    folders = {folder: int(words[3], 8) for words in commands if words[0] == "install" for folder in words[4:]}
    assert {str(Path(path).parent) for path in re.findall(r"/etc/cairn/\S+", text)} == folders.keys()
    # What no credential of systemd's is, a process opens itself, as a user that the folder does not belong to.
    opened = re.findall(r"^Environment=CAIRN_\w+_FILE=(/etc/\S+)$", text, re.MULTILINE)
    assert opened and all(folders[str(Path(path).parent)] & 0o001 for path in opened)
    assert folders["/etc/cairn/secrets"] == 0o700
    secrets = {words[-1] for words in compose.commands_of(PAGE, "### Secrets") if words[0] == "touch"}
    secrets |= {word for words in compose.commands_of(PAGE, "### Secrets") for word in words if "secrets/" in word}
    made = {Path(path).name for path in secrets}
    assert set(re.findall(r"/etc/cairn/secrets/(\S+)", text)) <= made


def test_page_names_the_variables_that_the_file_reads() -> None:
    start = PAGE.read_text().partition("### Start")[2].partition("**Only the proxy")[0]
    table, passed = start.partition("| passed on from")[::2]
    assert {name for cells in _rows(table) for name in _variables(cells[0])} == set(
        re.findall(r"\$\{(\w+)", compose.FILE.read_text())
    )
    said: dict[str, set[str]] = {}
    for variables, whom, *_ in _rows(passed):
        for one in whom.split(", "):
            said.setdefault(one.strip(), set()).update(_variables(variables))
    given = compose.passed_on()
    assert given["api-1"] == given["api-2"] and given["control-1"] == given["control-2"]
    named = {"APIs": "api-1", "control workers": "control-1", "set-up": "setup", "agent": "agent"}
    assert said == {who: given[service] for who, service in named.items()}


def test_what_is_passed_on_is_a_setting_and_nothing_where_nothing_is_said() -> None:
    known = {f"CAIRN_{name.upper()}" for name in Settings.model_fields}
    for service, variables in compose.passed_on().items():
        assert {name.removesuffix("_FILE") for name in variables} <= known, service
        assert not variables & set(SERVICES[service]["environment"]), service
    mine = compose.read(CAIRN_MAIL_FROM="me@example.org")["services"]
    assert mine["api-1"]["environment"]["CAIRN_MAIL_FROM"] == "me@example.org"


def test_what_is_not_passed_on_goes_into_a_file_of_its_own(installed: None, tmp_path: Path) -> None:
    (block,) = [part.partition("```")[0] for part in PAGE.read_text().split("```yaml\n")[1:]]
    override = tmp_path / "docker-compose.override.yml"
    override.write_text(block)
    command = ["docker-compose", "--file", str(compose.FILE), "--file", str(override), "--profile", "agent", "config"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    known = {f"CAIRN_{name.upper()}" for name in Settings.model_fields}
    whole = yaml.safe_load(done.stdout)["services"]
    for name, service in yaml.safe_load(block)["services"].items():
        given = service["environment"]
        assert given.keys() <= known - SERVICES[name]["environment"].keys() - compose.passed_on()[name], name
        assert whole[name]["environment"].items() >= {**SERVICES[name]["environment"], **given}.items()


def test_prometheus_asks_where_the_file_shows_metrics() -> None:
    jobs = yaml.safe_load((compose.ROOT / "deploy" / "prometheus" / "scrape.yml").read_text())["scrape_configs"]
    targets = {job["job_name"]: set(job["static_configs"][0]["targets"]) for job in jobs}
    given = {name: service["environment"] for name, service in compose.ours(DOCUMENT).items()}
    apis = {f"{name}:{given[name]['CAIRN_API_PORT']}" for name in given if name.startswith("api")}
    workers = {f"{name}:{given[name]['CAIRN_METRICS_PORT']}" for name in given if name.startswith("control")}
    assert (targets["cairn-api"], targets["cairn-control"]) == (apis, workers)
    # Where the others of its network find it, and nobody beyond its machine.
    agent = given["agent"]
    assert agent["CAIRN_METRICS_ADDRESS"] == agent["CAIRN_AGENT_ADDRESS"]
    assert f"{agent['CAIRN_METRICS_ADDRESS']}:{agent['CAIRN_METRICS_PORT']}" in PAGE.read_text()
    # Two of one machine: each has what is its own.
    assert "\nEnvironmentFile=-/etc/cairn/control-%i.env\n" in (UNITS / "cairn-control@.service").read_text()


def test_example_of_an_environment_is_one_that_an_api_starts_with(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [part.partition("```")[0] for part in PAGE.read_text().split("```ini\n")[1:]]
    lines = [line.partition("=") for line in block.splitlines() if not line.startswith("#")]
    for name in [name for name in os.environ if name.startswith("CAIRN_")]:
        monkeypatch.delenv(name)
    for name, _, value in lines:
        monkeypatch.setenv(name, value.strip('"'))
    settings = Settings()
    assert {name.removeprefix("CAIRN_").lower() for name, _, _ in lines} == settings.model_fields_set


def _rows(table: str) -> list[list[str]]:
    return [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| `")]


def _variables(cell: str) -> list[str]:
    return re.findall(r"`([A-Z_]+)`", cell)


def test_upgrade_replaces_each_of_ours_one_after_the_other() -> None:
    """With containers, what the file has; with systemd, what is enabled."""
    page = compose.ROOT / "docs" / "upgrading.md"
    commands = compose.commands_of(page, "### With containers")
    replaced = [words[-1] for words in commands if "--wait" in words or "run" in words]
    order = ["setup", "control-1", "control-2", "api-1", "api-2", "agent"]
    assert replaced == order and set(order) == set(compose.ours(DOCUMENT))
    assert all("--no-deps" in words for words in commands if words[-1] in order)
    restarted = [
        words[2] for words in compose.commands_of(page, "### With systemd") if words[:2] == ["systemctl", "restart"]
    ]
    enabled = [words[3:] for words in compose.commands_of(PAGE, "### Units") if words[:2] == ["systemctl", "enable"]]
    assert sorted(restarted) == sorted(unit for units in enabled for unit in units)
    kinds = [unit.partition("@")[0] for unit in restarted]
    assert kinds == ["cairn-setup", *["cairn-control"] * 2, *["cairn-api"] * 2, "cairn-agent"]
