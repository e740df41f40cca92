"""``cairn up``, ``down`` and ``reset``: the embedded stack of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import CommandFailed, Exit
from cli.settings import read_settings
from model import logs
from model.settings import Settings
from worker import data_folder
from worker.data_folder import Endpoint, StackError

START_SECONDS = 120.0
STOP_SECONDS = 120.0
TAIL_LINES = 25

Detach = Annotated[bool, typer.Option("--detach", "-d", help="Run in the background; return when all is ready.")]
Docker = Annotated[bool, typer.Option(help="Use a Docker engine. Without: simulated hosts alone.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def cannot_start(error: StackError) -> CommandFailed:
    return CommandFailed(str(error), "cannot_start", Exit.FAILED)


def up(detach: Detach = False, docker: Docker = True) -> None:
    """Start the platform on this machine and keep it running: PostgreSQL, Temporal, API, workers."""
    from worker import agent_image, engine, git_image, haproxy_image, stack, stack_plan

    settings = read_settings()
    folder = settings.data_dir.absolute()
    try:
        pid = data_folder.owner(folder)
        if pid:
            raise StackError(
                f"a platform runs on {folder} already (process {pid}): variables that are given now have no effect on"
                " it; stop it with 'cairn down' and start it again with them, or choose another folder with"
                " CAIRN_DATA_DIR"
            )
        docker_host = engine.ensure(settings, _say) if docker else None
        if docker_host:
            engine.ensure_base_image(docker_host, _say)
            os.environ.setdefault("CAIRN_SESSION_IMAGE", engine.IMAGE)
            if haproxy_image.image.offer(docker_host, _say):
                os.environ.setdefault("CAIRN_LB_IMAGE", haproxy_image.IMAGE)
            if git_image.image.offer(docker_host, _say):
                os.environ.setdefault("CAIRN_GIT_IMAGE", git_image.IMAGE)
            agent_image.image.offer(docker_host, _say)
        os.umask(0o077)  # what this and its children write is for this user alone
        if detach:
            _show(_start_detached(data_folder.make(folder), docker), "cairn down")
            return
        logs.configure(settings.log_level, "console" if sys.stderr.isatty() else settings.log_format, "supervisor")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with stack_plan.planned(settings, docker_host) as plan:
            asyncio.run(stack.run(plan, lambda endpoint: _show(endpoint, "Ctrl-C")))
    except StackError as error:
        raise cannot_start(error) from None
    _say("Stopped. Instances keep running; 'cairn up' goes on where this ended.")


def _start_detached(folder: Path, docker: bool) -> Endpoint:
    """A supervisor of its own session; its endpoint, once everything is ready."""
    log = folder / "logs" / data_folder.SUPERVISOR_LOG
    before = log.stat().st_size if log.exists() else 0
    command = [str(Path(sys.executable).with_name("cairn")), "up", "--docker" if docker else "--no-docker"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    given_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < given_up:
        endpoint = data_folder.read_endpoint(folder)
        if endpoint and endpoint.pids.get("supervisor") == process.pid:
            return endpoint
        time.sleep(0.05)
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with log.open("rb") as written:
        written.seek(before)
        lines = written.read().decode(errors="replace").splitlines()
    if lines and lines[0].startswith("error: "):  # all that it said: it was refused before anything was started
        said = lines[0].removeprefix("error: ").removesuffix(" (cannot_start)")
        raise StackError("\n".join([said, *lines[1:]]))
    tail = "\n".join(lines[-TAIL_LINES:])
    raise StackError(f"the stack did not start; the end of {log}:\n{tail}")


def _show(endpoint: Endpoint, how_to_stop: str) -> None:
    root = endpoint.api_url.removesuffix("/v1")
    admin = read_settings().admin_email
    for name, value in {
        "API": endpoint.api_url,
        "API docs": f"{root}/docs",
        "Temporal UI": endpoint.temporal_ui_url,
        "Log in": f"cairn login --email {admin}, with the password in {endpoint.data_dir}/admin-password",
        "Key": f"in {endpoint.data_dir}/endpoint.json, where the cairn program finds it",
        "Stop": how_to_stop,
    }.items():
        _say(f"{name:<12} {value}")


def _say(line: str) -> None:
    print(line, flush=True)


def down() -> None:
    """Stop the platform of this data folder. Instances keep running."""
    folder = read_settings().data_dir.absolute()
    pid = data_folder.owner(folder)
    if pid is None:
        _say(f"No platform runs on {folder}.")
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    given_up = time.monotonic() + STOP_SECONDS
    while data_folder.is_alive(pid):
        if time.monotonic() > given_up:
            raise CommandFailed(f"process {pid} does not end: kill it with 'kill -9 {pid}'", "timed_out", Exit.FAILED)
        time.sleep(0.05)
    _say("Stopped. Instances keep running; 'cairn up' goes on where this ended.")


def reset(yes: Yes = False) -> None:
    """Delete the data folder, this installation's containers and the images it brought, after showing what goes."""
    settings = read_settings()
    folder = settings.data_dir.absolute()
    left = data_folder.is_of_a_refused_start(folder)
    if data_folder.read_installation(folder) is None and not left:
        # Without the file that only we write, nothing proves that the folder is ours.
        _say(f"Nothing to delete: no stack ever ran on {folder}.")
        return
    try:
        held = data_folder.lock(folder)
    except StackError:
        message = f"a platform runs on {folder} (process {data_folder.owner(folder) or 'unknown'}); nothing was deleted"
        raise CommandFailed(message, "running", Exit.REFUSED, "stop it first: cairn down (make down)") from None
    try:
        if left:
            data_folder.delete(folder)
            _say(f"Deleted what a start that was refused had left in {folder}: no stack ever ran on it.")
            return
        _reset(settings, folder, yes)
    finally:
        os.close(held)


def _reset(settings: Settings, folder: Path, yes: bool) -> None:
    from drivers import secret_files
    from worker import engine

    identity = data_folder.read_installation(folder)
    known = data_folder.read_endpoint(folder)
    docker_host = known.docker_host if known and known.docker_host else engine.find(settings)
    containers: list[str] = []
    images: list[str] = []
    if identity and docker_host and engine.problem(docker_host) is None:
        containers = engine.owned_containers(docker_host, str(identity.installation))
        images = engine.brought_images(docker_host, folder, identity.local_host)
    elif identity and docker_host:
        # The id of the installation is what proves that containers are ours: it stays while they may.
        message = f"the Docker engine at {docker_host} does not answer: containers of this installation may be there"
        raise CommandFailed(message, "engine_unavailable", Exit.REFUSED, "start it, then repeat; see cairn doctor")
    _say("This will be deleted:")
    inside = "database, Temporal's state, keys, uploaded images, files of workspaces and sessions, logs"
    _say(f"  folder     {folder} ({inside})")
    for name in containers:
        _say(f"  container  {name}")
    for name in images:
        _say(f"  image      {name}")
    if not yes and not (sys.stdin.isatty() and typer.confirm("Delete all of it?")):
        raise CommandFailed("nothing was deleted", "not_confirmed", Exit.REFUSED, "confirm with --yes (make: YES=1)")
    if identity and docker_host and containers:
        engine.remove_containers(docker_host, containers)
        secret_files.forget(settings.secrets_dir or secret_files.default_folder(), containers)
    if docker_host and images:
        engine.forget_images(docker_host, images)
    data_folder.delete(folder)
    _say("Deleted.")
