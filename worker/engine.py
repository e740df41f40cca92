"""The Docker engine of this machine: found, or installed and started; and the base image on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from uuid import UUID

import docker
import docker.errors

from drivers.brought import Brought, brought_folder
from drivers.docker_engine import CONFLICT
from drivers.images import is_ours
from drivers.ownership import KIND, PREFIX
from model.settings import Settings
from worker import busybox
from worker.data_folder import StackError, is_alive
from worker.packages import can_install, install

IMAGE = "cairn/base:latest"
SOCKET = "unix:///var/run/docker.sock"
PACKAGES = ("docker.io", "iptables", "busybox-static")
#: Programs for networks, and the packages that they are in. (A process's own PATH may lack their folder.)
NETWORK_PROGRAMS = {"ip": "iproute2", "iptables": "iptables"}
SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"
DAEMON_LOG = Path("/var/log/cairn-dockerd.log")
PID_FILE = Path("/var/run/docker.pid")
#: Where killed engines leave the numbers of their processes; one that still "exists" keeps the next from starting.
PID_FILES = {PID_FILE: "dockerd", Path("/var/run/docker/containerd/containerd.pid"): "containerd"}
ANSWER_SECONDS, START_SECONDS = 5, 45.0
CHANGES = ['CMD ["/bin/busybox","httpd","-f","-p","80","-h","/www"]', "EXPOSE 80"]

Report = Callable[[str], None]


def candidates(settings: Settings, environ: Mapping[str, str] = os.environ) -> tuple[list[str], bool]:
    """Addresses at which the engine may be, and whether the user named the one to use."""
    if "docker_host" in settings.model_fields_set:
        return [settings.docker_host], True
    if environ.get("DOCKER_HOST"):
        return [environ["DOCKER_HOST"]], True
    own = environ.get("XDG_RUNTIME_DIR")
    rootless = [f"unix://{own}/docker.sock"] if own and os.geteuid() else []
    return [SOCKET, *rootless], False


def problem(url: str) -> str | None:
    """Why the engine at ``url`` cannot be used; None when it answers."""
    socket = Path(url.removeprefix("unix://"))
    if url.startswith("unix://") and not socket.exists():
        return "there is no such socket"
    if url.startswith("unix://") and not os.access(socket, os.W_OK):
        return "you may not use that socket: join the group that may, often 'docker'"
    try:
        client = docker.DockerClient(base_url=url, timeout=ANSWER_SECONDS)
        try:
            client.ping()
        finally:
            client.close()
    except (docker.errors.DockerException, OSError) as error:
        return str(error)
    return None


def find(settings: Settings, environ: Mapping[str, str] = os.environ) -> str | None:
    """The address of an engine that answers; None where there is none."""
    return next((url for url in candidates(settings, environ)[0] if problem(url) is None), None)


def serves_allow_lists(url: str) -> bool:
    """Whether an agent that is started as this process was can give instances on that engine an allow-list."""
    from drivers.docker_egress import is_able  # with all that a proxy takes: only who asks for it waits for that

    return is_able(url)


def ensure(settings: Settings, report: Report, environ: Mapping[str, str] = os.environ) -> str:
    """The address of an engine that answers, one installed and started for it if need be and allowed.

    Raises StackError that says what to do. ``report`` hears, in sentences, what changes on this machine.
    """
    found = find(settings, environ)
    if found:
        return found
    urls, named = candidates(settings, environ)
    reason = f"no Docker engine answers at {' or '.join(urls)} ({problem(urls[0])})"
    if named:
        raise StackError(f"{reason}: start it, or correct CAIRN_DOCKER_HOST or DOCKER_HOST")
    if not settings.install_engine:
        raise StackError(f"{reason}: start one, or allow Cairn to with CAIRN_INSTALL_ENGINE=1")
    if os.geteuid():
        raise StackError(
            f"{reason}: install and start Docker (https://docs.docker.com/engine/install), and make sure that you "
            "may use it ('docker info'); or run this as root, which does so by itself on Debian and Ubuntu"
        )
    if not shutil.which("dockerd"):
        _install(reason, report)
    if problem(SOCKET) is not None:  # the package may have started it
        _start(report)
    return SOCKET


def _install(reason: str, report: Report) -> None:
    if not (shutil.which("apt-get") and Path("/etc/debian_version").exists()):
        raise StackError(f"{reason}: install and start Docker (https://docs.docker.com/engine/install)")
    report(f"No Docker engine here: installing {', '.join(PACKAGES)} from the distribution.")
    _apt_install(PACKAGES)


def missing_programs() -> dict[str, str]:
    """Those for networks that are not there: program → package."""
    path = f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_FOLDERS}"
    return {name: package for name, package in NETWORK_PROGRAMS.items() if not shutil.which(name, path=path)}


def ensure_programs(settings: Settings, report: Report) -> None:
    """Install what is missing, where that is possible and allowed; raises StackError where it fails."""
    packages = sorted(missing_programs().values())
    if not packages or not settings.install_engine or not can_install():
        return
    report(f"Installing {', '.join(packages)} from the distribution.")
    _apt_install(packages)


def _apt_install(packages: Iterable[str]) -> None:
    try:
        install(*packages)
    except subprocess.SubprocessError as error:
        said = getattr(error, "stderr", None) or getattr(error, "stdout", None) or str(error)
        raise StackError(f"apt-get failed: {said.strip()[-1500:]}") from error


def _start(report: Report) -> None:
    """Start the engine so that it outlives us and serves everybody, and wait until it answers."""
    if Path("/run/systemd/system").exists():
        subprocess.run(["systemctl", "start", "docker"], check=False, timeout=START_SECONDS, stdin=subprocess.DEVNULL)
        _await(None)
        report(f"Started the Docker engine on {SOCKET}. It stays; stop it with: systemctl stop docker.socket docker")
        return
    for file, program in PID_FILES.items():
        _forget_dead(file, program)
    with DAEMON_LOG.open("ab") as log:
        daemon = subprocess.Popen(
            ["dockerd"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            # Cairn's own settings and secrets are no business of the engine's.
            env={name: value for name, value in os.environ.items() if not name.startswith(("CAIRN_", "DOCKER_"))},
        )
    _await(daemon)
    report(
        f"Started the Docker engine on {SOCKET} (process {daemon.pid}, log {DAEMON_LOG}). "
        f"It stays; stop it with: kill $(cat {PID_FILE})"
    )


def _await(daemon: subprocess.Popen[bytes] | None) -> None:
    given_up = time.monotonic() + START_SECONDS
    while (reason := problem(SOCKET)) is not None:
        if (daemon and daemon.poll() is not None) or time.monotonic() > given_up:
            where = f"; the end of {DAEMON_LOG}:\n{DAEMON_LOG.read_text()[-1500:]}" if daemon else ""
            raise StackError(f"the Docker engine did not start ({reason}){where}")
        time.sleep(0.1)
    if daemon:
        # It is nobody's child to wait for: it stays when we end, and that is meant.
        daemon.returncode = 0


def _forget_dead(file: Path, program: str) -> None:
    try:
        pid = int(file.read_text())
    except (FileNotFoundError, ValueError):
        return
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        name = ""
    if name != program or not is_alive(pid):
        file.unlink(missing_ok=True)


def version(url: str) -> str:
    client = docker.DockerClient(base_url=url, timeout=ANSWER_SECONDS)
    try:
        return str(client.version()["Version"])
    finally:
        client.close()


def has_base_image(url: str) -> bool:
    client = docker.DockerClient(base_url=url, timeout=60)
    try:
        client.images.get(IMAGE)
    except docker.errors.ImageNotFound:
        return False
    finally:
        client.close()
    return True


def ensure_base_image(url: str, report: Report) -> None:
    """Make ``cairn/base:latest`` on the engine, without any registry; nothing happens when it is there."""
    if has_base_image(url):
        return
    with tempfile.TemporaryDirectory(prefix="cairn-") as scratch:
        archive = busybox.root_archive(busybox.find(Path(scratch)))
    report(f"Making the base image {IMAGE} ({len(archive) >> 10} KiB) from busybox.")
    client = docker.DockerClient(base_url=url, timeout=60)
    try:
        name, _, tag = IMAGE.partition(":")
        client.api.import_image_from_data(archive, repository=name, tag=tag, changes=CHANGES)
        client.images.get(IMAGE)
    except docker.errors.DockerException as error:
        raise StackError(f"the engine at {url} did not take the base image: {error}") from error
    finally:
        client.close()


def owned_containers(url: str, installation: str) -> list[str]:
    """Names of the containers, running or not, of this installation.

    Label and name together prove it: what was started from an image of one of them has its labels as well.
    """
    client = docker.DockerClient(base_url=url, timeout=60)
    try:
        found = client.api.containers(all=True, filters={"label": f"{PREFIX}.installation={installation}"})
    finally:
        client.close()
    names = {
        container["Names"][0].lstrip("/"): container["Labels"].get(f"{PREFIX}.id")
        for container in found
        if container["Names"]
    }
    return sorted(name for name, machine in names.items() if name == f"cairn-{KIND}-{machine}")


def brought_images(url: str, folder: Path, host: UUID) -> list[str]:
    """Names of the blob store's images that the installation of this data folder brought to the engine, and that are
    there.

    ``host``: this machine's. What its agent wrote down before it brought it is the proof: other installations on the
    engine have such names too. What came of a registry has a name that anybody may use, and stays.
    """
    client = docker.DockerClient(base_url=url, timeout=60)
    try:
        noted = [image.reference for image in Brought(brought_folder(folder / "agents", host)).all()]
        return sorted(name for name in noted if is_ours(name) and client.images.list(name=name))
    finally:
        client.close()


def forget_images(url: str, names: Iterable[str]) -> None:
    """Take these names from the engine; with its last name an image goes, but for one that a container is of."""
    client = docker.DockerClient(base_url=url, timeout=60)
    try:
        for name in names:
            with contextlib.suppress(docker.errors.NotFound):
                try:
                    client.api.remove_image(name)
                except docker.errors.APIError as error:
                    if error.status_code != CONFLICT:
                        raise
    finally:
        client.close()


def remove_containers(url: str, names: list[str]) -> None:
    """Remove these containers; one that is gone is no error."""
    client = docker.DockerClient(base_url=url, timeout=60)
    try:
        for name in names:
            with contextlib.suppress(docker.errors.NotFound):
                client.api.remove_container(name, force=True, v=True)
    finally:
        client.close()
