"""The data folder and the servers' files in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.base import new_id
from model.secrets import new_key
from model.settings import Settings
from worker import data_folder, identity, joining, ports, postgres, stack_plan, stack_programs
from worker.data_folder import StackError

NOTHING = (0, 0)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> stack_plan.Plan:
    monkeypatch.setattr(stack_programs, "_script", lambda name: name)
    settings = Settings(data_dir=tmp_path / "d", api_port=0, temporal_port=0, temporal_ui_port=0, simulated_hosts=2)
    with stack_plan.planned(settings, "unix:///docker.sock") as plan:
        return plan


def test_only_who_needs_the_database_is_told_where_it_is(plan: stack_plan.Plan) -> None:
    told = {"CAIRN_DATABASE_URL": "postgresql://outer", "CAIRN_FAULTS_FILE": "/f", "CAIRN_OVERCOMMIT_CPU": "3"}
    programs = stack_programs.programs(plan, told)
    urls = {name: program.env.get("CAIRN_DATABASE_URL") for name, program in programs.items()}
    assert [name for name, url in urls.items() if url] == ["api", "control_worker"]
    assert str(urls["api"]).startswith("postgresql://cairn_api@")
    assert str(urls["control_worker"]).startswith("postgresql://cairn_worker@")
    for program in programs.values():
        assert program.env["CAIRN_FAULTS_FILE"] == "/f"
        assert program.env["CAIRN_OVERCOMMIT_CPU"] == "3"
        assert program.env["CAIRN_OVERCOMMIT_MEMORY"] == "10"


def test_only_who_opens_secrets_has_master_keys(plan: stack_plan.Plan) -> None:
    told = {"CAIRN_MASTER_KEYS": "outer", "CAIRN_MASTER_KEYS_FILE": "/outer", "CAIRN_ADMIN_PASSWORD": "outer"}
    for name, program in stack_programs.programs(plan, told).items():
        known = plan.master_keys if name in ("api", "control_worker") else None
        assert program.env.get("CAIRN_MASTER_KEYS") == known, name
        assert "outer" not in " ".join(program.env.values()), name


def test_agent_serves_this_machine_and_the_simulated_hosts(plan: stack_plan.Plan) -> None:
    agent = stack_programs.programs(plan, {})["host_agent"].env
    known = identity.read(Path(agent["CAIRN_AGENT_IDENTITY"]))
    assert known is not None
    assert known.membership is not None
    assert [(host.name, host.backend) for host in known.membership.hosts] == [
        ("local", "docker"),
        ("sim-1", "simulated"),
        ("sim-2", "simulated"),
    ]
    assert agent["CAIRN_SIMULATOR_URL"] == plan.simulator_url
    assert not (plan.simulator_url or "").endswith(":8099"), "two stacks with simulated hosts would meet"


def test_ids_of_hosts_stay_when_more_are_added(tmp_path: Path) -> None:
    first = data_folder.installation(tmp_path, None, 1)
    second = data_folder.installation(tmp_path, None, 3)
    assert second.installation == first.installation
    assert second.local_host == first.local_host
    assert second.simulated_hosts[:1] == first.simulated_hosts
    assert data_folder.installation(tmp_path, None, 0) == second


def test_folder_of_another_installation_is_refused(tmp_path: Path) -> None:
    data_folder.installation(tmp_path, None, 0)
    with pytest.raises(StackError, match="CAIRN_INSTALLATION"):
        data_folder.installation(tmp_path, new_id(), 0)


def test_deleting_a_folder_leaves_what_is_not_ours(tmp_path: Path) -> None:
    data_folder.make(tmp_path)
    data_folder.kept(tmp_path / "api-key", new_key)
    (tmp_path / "thesis.txt").write_text("precious")
    data_folder.delete(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_same_port_twice_is_refused(tmp_path: Path) -> None:
    port = ports.choose("127.0.0.1", set(), NOTHING)
    settings = Settings(data_dir=tmp_path, api_port=port, temporal_port=port)
    with pytest.raises(StackError, match=f"port {port} is asked for twice"), stack_plan.planned(settings, None):
        pass


def test_chosen_ports_are_no_clients_and_no_instances_ports() -> None:
    taken: set[int] = set()
    chosen = [ports.choose("127.0.0.1", taken, (12_000, 32_767)) for _ in range(50)]
    assert len(set(chosen)) == 50
    assert all(10_000 <= port < 12_000 for port in chosen)


def test_long_folder_names_get_a_short_private_socket_folder(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    sockets = postgres.find(deep).sockets
    assert len(str(sockets)) < 60
    assert postgres.find(tmp_path / ("y" * 120)).sockets != sockets


class TestLeftovers:
    """A killed PostgreSQL leaves a file that names its process; the number may mean nothing any more."""

    @pytest.fixture
    def server(self, tmp_path: Path) -> postgres.Postgres:
        server = postgres.Postgres(tmp_path / "postgres", tmp_path / "run", postgres.find_binaries())
        server.data.mkdir()
        (server.data / "PG_VERSION").touch()
        return server

    def left_by(self, server: postgres.Postgres, pid: int) -> Path:
        lock = server.data / "postmaster.pid"
        lock.write_text(f"{pid}\n{server.data}\n0\n5432\n\n\n  1234567  999999999\nready\n")
        return lock

    def test_of_a_zombie_is_removed(self, server: postgres.Postgres) -> None:
        process = subprocess.Popen([sys.executable, "-c", ""])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        lock = self.left_by(server, process.pid)
        server.prepare()
        assert not lock.exists()
        process.wait()

    def test_of_another_program_with_its_number_is_removed(self, server: postgres.Postgres) -> None:
        lock = self.left_by(server, os.getpid())
        server.prepare()
        assert not lock.exists()

    def test_of_a_living_server_stays(
        self, server: postgres.Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(postgres, "LEFTOVER_SECONDS", 0.3)
        alive = tmp_path / "postgres.py"
        alive.write_text(
            "import ctypes, time\nctypes.CDLL(None).prctl(15, b'postgres')\nprint(flush=True)\ntime.sleep(60)"
        )
        with subprocess.Popen([sys.executable, str(alive)], stdout=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()
            lock = self.left_by(server, process.pid)
            with pytest.raises(StackError, match=f"process {process.pid}"):
                server.prepare()
            assert lock.exists()
            process.kill()


def test_what_a_refused_start_left_is_known_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert not data_folder.is_of_a_refused_start(folder)
    port = ports.choose("127.0.0.1", set(), NOTHING)
    settings = Settings(data_dir=folder, api_port=port, temporal_port=port)
    with pytest.raises(StackError), stack_plan.planned(settings, None):
        pass
    assert data_folder.is_of_a_refused_start(folder)
    (folder / "logs" / "mine.log").touch()
    assert not data_folder.is_of_a_refused_start(folder), "somebody else's"
    (folder / "logs" / "mine.log").unlink()
    (folder / "thesis.txt").touch()
    assert not data_folder.is_of_a_refused_start(folder)
    (folder / "thesis.txt").unlink()
    data_folder.installation(folder, None, 0)
    assert not data_folder.is_of_a_refused_start(folder), "a platform's"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of others")
def test_what_root_writes_in_the_folder_of_an_agent_stays_the_agents(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    path = identity.path_of(folder, "rack-1")
    known = identity.Identity(keys=identity.new_keys("rack-1"))
    identity.write(path, known)
    assert [_owner(one) for one in (path.parent, path)] == [(65534, 65534)] * 2
    # Whose the file is counts, where it is another's than the folder.
    os.chown(path, 10001, 10002)
    identity.write(path, known)
    assert _owner(path) == (10001, 10002)
    assert path.stat().st_mode & 0o777 == 0o600
    with joining._alone(path):
        assert _owner(path.with_suffix(".joining")) == (65534, 65534)


def _owner(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid
