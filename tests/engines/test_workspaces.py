"""Workspaces on a real Docker engine: real git in real sandboxes, from a server of the test's own."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import docker
import pytest

from drivers import docker_git, progress
from drivers.docker_workspaces import DockerWorkspaces
from drivers.machines import Cancelled
from drivers.ownership import PREFIX
from drivers.secret_files import SecretFiles
from model.errors import FetchFailed, PathRefused, WorkspaceTooLarge
from model.workspaces import GitLogin, WorkspaceFacts, WorkspaceSpec
from tests.drivers.conftest import never
from tests.engines.conftest import image_driver
from tests.git_server import HOST, GitServer, git, git_server
from worker import engine, git_image

pytestmark = pytest.mark.engine
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
#: ``make chaos`` brings half a gigabyte; a small one is brought each time.
LARGE = os.environ.get("CAIRN_CHAOS") == "all"


class Host:
    """A host with workspaces, and a Git server that it reaches."""

    def __init__(self, server: GitServer, folder: Path, secrets: Path) -> None:
        self.server = server
        self.folder = folder
        self.secrets = secrets
        self.installation, self.id = uuid4(), uuid4()
        self.workspaces = self.driver()

    def driver(self, **more: Any) -> DockerWorkspaces:
        given: dict[str, Any] = {"most_bytes": 2 << 30, "seconds": 600.0, "networks": LOOPBACK}
        return DockerWorkspaces(
            engine.SOCKET,
            installation=self.installation,
            host_id=self.id,
            root=self.folder / "trees",
            images=image_driver(self.folder / "images"),
            image=git_image.IMAGE,
            secrets=SecretFiles(self.secrets, self.id),
            authorities=self.server.certificate.read_bytes(),
            **given | more,
        )

    def bring(self, name: str, login: GitLogin | None = None, kind: str = "open", **more: Any) -> Brought:
        spec = self.spec(git_url=self.server.url(name, kind), login=login is not None, **more)
        return Brought(self, spec, self.workspaces.bring(spec, (lambda: login) if login else None, never))

    def spec(self, **given: Any) -> WorkspaceSpec:
        about = {"id": uuid4(), "project_id": UUID(int=7), "name": "shop"}
        return WorkspaceSpec(**about | given)

    def sandboxes(self) -> list[str]:
        client = docker.APIClient(engine.SOCKET)
        labels = [f"{PREFIX}.host={self.id}", f"{PREFIX}.kind={docker_git.KIND}"]
        found = [one["Names"][0] for one in client.containers(all=True, filters={"label": labels})]
        client.close()
        return found

    def clean(self) -> bool:
        """Nothing works, and nobody's credential is left."""
        return not self.sandboxes() and not [file for file in self.secrets.rglob("*") if file.is_file()]


class Brought:
    def __init__(self, host: Host, spec: WorkspaceSpec, facts: WorkspaceFacts) -> None:
        self.spec, self.facts = spec, facts
        self.folder = host.folder / "trees" / "workspaces" / str(spec.id)
        self.base = self.folder / "bases" / facts.commit


@pytest.fixture
def secrets() -> Iterator[Path]:
    folder = Path(f"/dev/shm/cairn-test-{uuid4().hex[:12]}")  # noqa: S108 - a name that nobody guesses
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server() -> Iterator[GitServer]:
    git_image.image.ensure(engine.SOCKET, lambda _: None)
    with git_server() as made:
        yield made


@pytest.fixture
def host(server: GitServer, tmp_path: Path, secrets: Path) -> Iterator[Host]:
    made = Host(server, tmp_path, secrets)
    server.pace = None
    yield made
    for held in made.workspaces.held():
        made.workspaces.remove(held.id, never)
    assert made.clean()


def login(server: GitServer, secret: str | None = None) -> GitLogin:
    return GitLogin(type="https", host=HOST, username=server.login[0], secret=secret or server.login[1])


def test_clone_has_the_files_of_its_ref_and_a_second_one_fetches_nothing_twice(host: Host) -> None:
    server = host.server
    first = server.repository(
        "one", {"README.md": b"# One\n", "src/run.sh": b"#!/bin/sh\n", "big": os.urandom(3 << 20)}
    )
    made = host.bring("one")
    assert (made.facts.commit, made.facts.ref) == (first, "main")
    assert made.facts.size_bytes > 6 << 20
    assert (made.base / "README.md").read_bytes() == b"# One\n"
    assert sorted(path.name for path in made.base.iterdir()) == ["README.md", "big", "src"]
    assert sorted(path.name for path in made.folder.iterdir()) == ["bases", "project", "repo.git"]
    assert host.clean()
    work = server.folder / "work" / "open" / "one"
    git("checkout", "-q", "-b", "topic/x", at=work)
    topic = server.commit("one", {"README.md": b"# Topic\n"})
    git("tag", "-a", "-m", "v1", "v1", at=work)
    server.push("one", "topic/x", "v1")
    server.asked.clear()
    there = host.bring("one", ref="topic/x")
    assert (there.facts.commit, there.facts.ref) == (topic, "topic/x")
    assert (there.base / "README.md").read_bytes() == b"# Topic\n"
    tagged, whole = host.bring("one", ref="v1"), host.bring("one", ref=first)
    assert (tagged.facts.commit, whole.facts.commit, whole.facts.ref) == (topic, first, None)
    # The packs are the mirror's own.
    packs = [file for file in (there.folder / "repo.git" / "objects" / "pack").glob("*.pack")]
    assert packs and all(file.stat().st_nlink >= 3 for file in packs)
    assert git("log", "--format=%H", "workspace", at=there.folder / "repo.git").split() == [topic, first]
    with pytest.raises(FetchFailed, match="no branch and no tag 'nowhere'"):
        host.bring("one", ref="nowhere")


def test_sync_brings_what_is_new_beside_what_sessions_have(host: Host) -> None:
    first = host.server.repository("two", {"a": b"1"})
    made = host.bring("two")
    second = host.server.commit("two", {"b": b"2"})
    host.server.push("two", "main")
    spec = made.spec.model_copy(update={"keep": [first]})
    facts = host.workspaces.bring(spec, None, never)
    assert facts.commit == second
    bases = made.folder / "bases"
    assert sorted(path.name for path in bases.iterdir()) == sorted([first, second])
    assert not (bases / first / "b").exists()
    # Again, nothing is new; what nobody keeps goes.
    assert host.workspaces.bring(made.spec, None, never).commit == second
    assert [path.name for path in bases.iterdir()] == [second]


def test_shallow_clone_and_submodules_of_the_same_server(host: Host) -> None:
    inner = host.server.repository("inner", {"inside": b"yes"})
    host.server.repository("outer", {"a": b"1"})
    work = host.server.folder / "work" / "open" / "outer"
    git("submodule", "add", "-q", str(host.server.folder / "open" / "inner.git"), "lib", at=work)
    (work / ".gitmodules").write_text('[submodule "lib"]\n\tpath = lib\n\turl = ../inner.git\n')
    git("commit", "-qam", "with a submodule", at=work)
    host.server.push("outer", "main")
    made = host.bring("outer", submodules=True, depth=1)
    assert (made.base / "lib" / "inside").read_bytes() == b"yes"
    assert not list(made.base.rglob(".git")), inner
    assert len(git("log", "--format=%H", "workspace", at=made.folder / "repo.git").split()) == 1
    plain = host.bring("outer")
    assert not list((plain.base / "lib").iterdir())
    # Of another server there is none.
    (work / ".gitmodules").write_text('[submodule "lib"]\n\tpath = lib\n\turl = https://example.org/inner.git\n')
    git("commit", "-qam", "elsewhere", at=work)
    host.server.push("outer", "main")
    with pytest.raises(FetchFailed, match="its submodules could not be fetched"):
        host.bring("outer", submodules=True)


def test_credential_opens_its_server_and_is_left_nowhere(host: Host) -> None:
    host.server.repository("kept", {"a": b"1"}, kind="private")
    made = host.bring("kept", login(host.server), kind="private")
    assert (made.base / "a").read_bytes() == b"1"
    secret = host.server.login[1].encode()
    assert not [file for file in host.folder.rglob("*") if file.is_file() and secret in file.read_bytes()]
    with pytest.raises(FetchFailed, match=r"could not be read: .*Authentication failed") as refused:
        host.bring("kept", login(host.server, "wrong-value-1234"), kind="private")
    assert "wrong-value" not in refused.value.message
    with pytest.raises(FetchFailed, match=r"could not read Username|terminal prompts disabled"):
        host.bring("kept", kind="private")
    # It is for another server.
    other = login(host.server).model_copy(update={"host": "example.org"})
    with pytest.raises(FetchFailed, match=r"is for https to example\.org"):
        host.bring("kept", other, kind="private")
    # A redirect leads nowhere.
    host.server.moved_to = f"https://{HOST}:{host.server.port}/private/"
    host.server.shown.clear()
    with pytest.raises(FetchFailed):
        host.bring("kept", login(host.server), kind="moved")


def test_nothing_of_a_repository_runs_and_no_other_server_is_asked(host: Host) -> None:
    files = {
        ".gitattributes": b"* filter=evil\n",
        "a": b"1",
        "hooks/post-checkout": b"#!/bin/sh\ntouch /workspace/evil\n",
    }
    host.server.repository("evil", files)
    made = host.bring("evil")
    assert (made.base / "a").read_bytes() == b"1"
    assert not list((made.folder / "repo.git").glob("hooks/*"))
    # What the agent does not let users' URLs lead to is not reached, though it is this same server.
    strict = host.driver(networks=())
    with pytest.raises(FetchFailed, match=r"could not be read: localhost is no public address"):
        strict.bring(host.spec(git_url=host.server.url("evil")), None, never)


def test_a_server_that_is_not_reached_is_named_with_the_reason(host: Host) -> None:
    with socket.socket() as mute:  # nobody else can listen there, and it does not
        mute.bind(("127.0.0.1", 0))
        port = mute.getsockname()[1]
        url = f"https://{HOST}:{port}/a.git"
        with pytest.raises(FetchFailed) as failed:
            host.workspaces.bring(host.spec(git_url=url), None, never)
    reason = f"'{HOST}' port {port} cannot be reached: Connection refused"
    assert failed.value.message.startswith(f"{url} could not be read: {reason} (fatal: ")


@contextmanager
def seen_inside(host: Host) -> Iterator[dict[str, Any]]:
    """What the engine says of a sandbox while it works."""
    found: dict[str, Any] = {}
    client = docker.APIClient(engine.SOCKET)
    yield found
    (name,) = host.sandboxes()
    found.update(client.inspect_container(name.removeprefix("/")))
    client.close()


def test_cancel_ends_the_sandbox_and_leaves_nothing(host: Host) -> None:
    host.server.repository("slow", {"big": os.urandom(8 << 20)})
    host.server.pace = 200_000
    spec = host.spec(git_url=host.server.url("slow"))
    cancelled, failed = threading.Event(), list[BaseException]()

    def bring() -> None:
        try:
            host.workspaces.bring(spec, None, cancelled.is_set)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=bring)
    thread.start()
    until = time.monotonic() + 20
    while not list(host.folder.glob("trees/mirrors/*/*/objects/pack/tmp_pack*")) and time.monotonic() < until:
        time.sleep(0.1)
    with seen_inside(host) as sandbox:
        pass
    config = sandbox["HostConfig"]
    assert (config["NetworkMode"], config["ReadonlyRootfs"], config["CapDrop"]) == ("none", True, ["ALL"])
    assert (config["SecurityOpt"], config["PidsLimit"]) == (["no-new-privileges"], docker_git.PIDS)
    assert sandbox["Config"]["User"].split(":")[0] == str(65534 if os.geteuid() == 0 else os.geteuid())
    assert {mount["Destination"] for mount in sandbox["Mounts"]} == {"/mirror", "/run/cairn"}
    cancelled.set()
    began = time.monotonic()
    thread.join(15)
    assert time.monotonic() - began < 8
    assert isinstance(failed[0], Cancelled)
    assert host.clean()
    host.workspaces.remove(spec.id, never)
    assert host.workspaces.held() == []
    assert not [path for path in host.folder.glob("trees/**/*") if path.is_file()]
    # The mirror is whole again with the next one.
    host.server.pace = None
    assert (host.bring("slow").base / "big").stat().st_size == 8 << 20


def test_a_sandbox_of_an_agent_that_died_is_ended_and_its_work_done_anew(host: Host) -> None:
    host.server.repository("left", {"a": b"1"})
    made = host.bring("left")
    dead = host.driver()
    with dead._git.opened(made.spec.id, made.spec.project_id, git_image.IMAGE, {"/workspace": made.folder}, never):
        assert len(host.sandboxes()) == 1
        assert host.workspaces.bring(made.spec, None, never).commit == made.facts.commit
        assert not host.sandboxes()
    with dead._git.opened(made.spec.id, made.spec.project_id, git_image.IMAGE, {"/workspace": made.folder}, never):
        host.workspaces.tidy()
        assert not host.sandboxes()


def test_credentials_of_an_agent_that_died_are_swept_and_none_stays_of_what_could_not_begin(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, works, new = uuid4(), uuid4(), uuid4()
    files = SecretFiles(host.secrets, host.id)
    with host.workspaces._git.opened(works, UUID(int=7), host.workspaces._usable(never), {}, never):
        for workspace in (dead, works):
            os.utime(files.write(workspace, 0, {"login": b"secret"}), (0, 0))
        files.write(new, 0, {"login": b"secret"})
        host.workspaces.tidy()
        left = {path.parent.name for path in host.secrets.rglob("login")}
        assert left == {f"{works}.0", f"{new}.0"}, "neither what works nor what is new"
    files.remove(new)
    write = SecretFiles.write

    def dies(*arguments: Any) -> Path:
        write(*arguments)
        raise OSError("no room")

    monkeypatch.setattr(SecretFiles, "write", dies)
    with pytest.raises(OSError), host.workspaces._git.opened(new, UUID(int=7), git_image.IMAGE, {}, never):
        pass
    assert host.clean()


def test_what_would_take_too_much_is_refused_as_it_comes(host: Host) -> None:
    host.server.repository("large", {"big": os.urandom(4 << 20)})
    small = host.driver(most_bytes=1 << 20)
    spec = host.spec(git_url=host.server.url("large"))
    with pytest.raises(WorkspaceTooLarge):
        small.bring(spec, None, never)
    assert host.clean()


@pytest.mark.parametrize("depth", [None, 1], ids=["whole", "shallow"])
def test_a_sync_that_is_too_large_leaves_the_workspace_as_it_was(
    host: Host, depth: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"grows-{depth}"
    first = host.server.repository(name, {"a": b"1"})
    made = host.bring(name, depth=depth)
    before = everything(made.folder)
    # As much packed as allowed, but not with its files beside it.
    host.server.commit(name, {"big": os.urandom(1 << 20)})
    host.server.push(name, "main")
    spec = made.spec.model_copy(update={"keep": [first]})
    small = host.driver(most_bytes=1_900_000)
    with pytest.raises(WorkspaceTooLarge, match="CAIRN_WORKSPACE_MAX_BYTES"):
        small.bring(spec, None, never)
    assert everything(made.folder) == before
    assert host.clean()
    # Also where the limit is met while its files are written.
    checks_out, large = DockerWorkspaces._check_out, host.driver()

    def too_large(*given: Any) -> None:
        checks_out(large, *given)
        assert (made.folder / "index").exists()
        (made.folder / "index.lock").touch()
        raise WorkspaceTooLarge("as its files are written")

    with monkeypatch.context() as patched:
        patched.setattr(large, "_check_out", too_large)
        with pytest.raises(WorkspaceTooLarge, match="as its files are written"):
            large.bring(spec, None, never)
    assert everything(made.folder) == before
    assert host.workspaces.bring(spec, None, never).commit != first
    assert (made.base / "a").read_bytes() == b"1"


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(one.relative_to(folder)): one.read_bytes() if one.is_file() else None for one in folder.rglob("*")}


def test_a_mirror_is_held_no_longer_than_needed_and_goes_with_its_project_s_last_workspace(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.server.repository("shared", {"a": b"1"})
    check_out, free = DockerWorkspaces._check_out, list[Path]()

    def checked_out(self: DockerWorkspaces, *arguments: Any) -> None:
        for mirror in host.folder.glob("trees/mirrors/*/*"):
            with self._alone_at(mirror, lambda: True):
                free.append(mirror)
        check_out(self, *arguments)

    monkeypatch.setattr(DockerWorkspaces, "_check_out", checked_out)
    made = host.bring("shared")
    other = host.bring("shared", project_id=UUID(int=8))
    assert len(set(free)) == 2
    mirrors = [host.workspaces._trees.mirror(one.spec.project_id, one.spec.git_url or "") for one in (made, other)]
    host.workspaces.tidy()
    assert [mirror.exists() for mirror in mirrors] == [True, True]
    host.workspaces.remove(other.spec.id, never)
    with host.workspaces._alone_at(mirrors[1], never):
        host.workspaces.tidy()
    assert mirrors[1].exists(), "somebody works on it"
    host.workspaces.tidy()
    assert [mirror.exists() for mirror in mirrors] == [True, False]
    assert not mirrors[1].parent.exists()
    git("fsck", at=made.folder / "repo.git")


def test_folder_of_the_host_is_copied_where_its_operator_allows(host: Host, tmp_path: Path) -> None:
    allowed = tmp_path / "projects"
    (allowed / "shop" / "src").mkdir(parents=True)
    (allowed / "shop" / "src" / "a.txt").write_text("a")
    (allowed / "shop" / "link").symlink_to("/etc/passwd")
    (allowed / "shop" / "folder-link").symlink_to("/etc")
    (allowed / "shop" / ".git").mkdir()
    (allowed / "shop" / ".git" / "config").write_text("[core]\n")
    os.mkfifo(allowed / "shop" / "pipe")
    (allowed / "way-out").symlink_to("/etc")
    host.workspaces = host.driver(paths=(str(allowed),))
    spec = host.spec(path=str(allowed / "shop"))
    masked = os.umask(0o077)
    try:
        facts = host.workspaces.bring(spec, None, never)
    finally:
        os.umask(masked)
    base = host.folder / "trees" / "workspaces" / str(spec.id) / "bases" / facts.commit
    assert sorted(path.name for path in base.iterdir()) == ["folder-link", "link", "src"]
    assert (base / "link").is_symlink()
    assert stat.S_IMODE((base / "src").stat().st_mode) == 0o755
    assert host.workspaces.bring(spec, None, never).commit == facts.commit, "the same files are the same commit"
    for path in ("/etc", str(allowed / "way-out"), str(allowed / "nowhere"), str(tmp_path), f"{allowed}x"):
        with pytest.raises(PathRefused):
            host.workspaces.bring(host.spec(path=path), None, never)
    with pytest.raises(PathRefused):
        host.driver().bring(spec, None, never)


@pytest.mark.skipif(not LARGE, reason="half a gigabyte: make chaos")
@pytest.mark.timeout(1200)
def test_second_clone_of_half_a_gigabyte_takes_less_than_a_third(host: Host) -> None:
    host.server.repository("huge", {f"blob-{n}": os.urandom(25 << 20) for n in range(20)})
    # Called off in the middle, of which it tells, nothing of it is left.
    told, spec = progress.begin(), host.spec(git_url=host.server.url("huge"))
    with pytest.raises(Cancelled):
        host.workspaces.bring(spec, None, lambda: re.match(r"receiving objects [2-9]\d%", told.said or "") is not None)
    host.workspaces.remove(spec.id, never)
    assert host.clean() and not [path for path in host.folder.glob("trees/**/*") if path.is_file()]
    began = time.monotonic()
    first = host.bring("huge")
    once = time.monotonic() - began
    began = time.monotonic()
    second = host.bring("huge")
    again = time.monotonic() - began
    print(f"first {once:.1f} s, second {again:.1f} s")
    assert again <= 0.3 * once, (once, again)
    assert digest(first.base) == digest(second.base)


def digest(folder: Path) -> str:
    made = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        made.update(str(path.relative_to(folder)).encode() + (path.read_bytes() if path.is_file() else b""))
    return made.hexdigest()
