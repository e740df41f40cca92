"""``cairn doctor``: what the platform needs of this machine, whether it is there, and how to get it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from pydantic import BaseModel

from cli import render
from cli.errors import CommandFailed, Exit
from cli.settings import read_settings
from model.settings import Settings
from worker import agent_image, data_folder, engine, git_image, haproxy_image, ports, postgres, temporal
from worker.data_folder import StackError

OLDEST_PYTHON = (3, 11)
NEEDED_MIB, WANTED_MIB = 500, 2048
CHECK_SECONDS, CONNECT_SECONDS = 20, 3
#: Made here, each with what only needs it where no registry is reachable.
PROGRAM_IMAGES = (
    ("load balancer image", haproxy_image.image, "load balancers with no registry"),
    ("git image", git_image.image, "workspaces with no registry"),
    ("agent image", agent_image.image, "the reference agent of sessions"),
)

Install = Annotated[bool, typer.Option("--install", help="First install and start a Docker engine, make the image.")]


class Finding(BaseModel):
    """One thing that is needed."""

    name: str
    found: bool
    works: bool
    version: str | None = None
    detail: str | None = None
    #: How to get it, or get it to work; None when it works.
    fix: str | None = None
    required: bool = True


def examine(settings: Settings) -> list[Finding]:
    """Everything that the embedded stack needs, looked at now. Changes nothing."""
    return [
        _python(),
        _postgres(),
        *_namespaces(),
        _temporal(),
        *_docker(settings),
        *_network_programs(),
        _disk(settings.data_dir),
        *_ports(settings),
    ]


def doctor(install: Install = False, output: render.Output = render.Format.TABLE) -> None:
    """Check each dependency and engine: found, version, works, how to get it."""
    settings = read_settings()
    if install:
        try:
            url = engine.ensure(settings, render.say)
            engine.ensure_base_image(url, render.say)
            for _, image, _ in PROGRAM_IMAGES:
                image.offer(url, render.say)
            engine.ensure_programs(settings, render.say)
        except StackError as error:
            raise CommandFailed(str(error), "cannot_install", Exit.FAILED) from None
    findings = examine(settings)
    if output is render.Format.JSON:
        render.print_json([finding.model_dump() for finding in findings])
    else:
        rows = [
            (f.name, "yes" if f.found else "no", "yes" if f.works else "no", f.version or "", f.fix or f.detail or "")
            for f in findings
        ]
        render.print_table(("NEEDED", "FOUND", "WORKS", "VERSION", "NOTE"), rows)
    missing = [finding.name for finding in findings if finding.required and not finding.works]
    if missing:
        raise CommandFailed(f"not ready: {', '.join(missing)}", "not_ready", Exit.FAILED)


def _version(command: list[str]) -> tuple[str | None, str | None]:
    """What the program says of its version, or why it does not."""
    try:
        result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=CHECK_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        return None, str(error)
    return result.stdout.strip().splitlines()[0], None


def _python() -> Finding:
    works = sys.version_info[:2] >= OLDEST_PYTHON
    fix = None if works else "install Python 3.11 or newer"
    return Finding(
        name="python", found=True, works=works, version=platform.python_version(), detail=sys.executable, fix=fix
    )


def _postgres() -> Finding:
    try:
        program = postgres.find_binaries() / "postgres"
    except StackError as error:
        return Finding(name="postgresql", found=False, works=False, fix=str(error))
    version, reason = _version([str(program), "--version"])
    fix = f"install the package again: {reason}" if reason else None
    return Finding(
        name="postgresql", found=True, works=not reason, version=version, detail=str(program.parent), fix=fix
    )


def _namespaces() -> Iterator[Finding]:
    """PostgreSQL does not run as root; then it needs a user namespace of its own."""
    if os.geteuid():
        return
    found = shutil.which("unshare")
    fix = "install util-linux" if not found else None
    if found:
        try:
            subprocess.run([*postgres.as_user(), "true"], check=True, capture_output=True, timeout=CHECK_SECONDS)
        except (OSError, subprocess.SubprocessError):
            fix = "run as another user than root, or let root make user namespaces (a container: seccomp=unconfined)"
    yield Finding(name="user namespaces", found=bool(found), works=fix is None, detail=found, fix=fix)


def _temporal() -> Finding:
    try:
        program = temporal.find_binary()
    except StackError as error:
        return Finding(name="temporal", found=False, works=False, fix=str(error))
    version, reason = _version([str(program), "--version"])
    fix = f"install the package again: {reason}" if reason else None
    return Finding(name="temporal", found=True, works=not reason, version=version, detail=str(program), fix=fix)


def _docker(settings: Settings) -> Iterator[Finding]:
    url = engine.find(settings)
    if url is None:
        first = engine.candidates(settings)[0][0]
        installed = shutil.which("dockerd")
        how = f"{engine.problem(first)}: 'cairn doctor --install' as root, or start an engine yourself"
        yield Finding(name="docker engine", found=bool(installed), works=False, detail=first, fix=how)
        return
    yield Finding(name="docker engine", found=True, works=True, version=engine.version(url), detail=url)
    there = engine.has_base_image(url)
    fix = None if there else "'cairn up' makes it; 'cairn doctor --install' too"
    yield Finding(name="base image", found=there, works=there, detail=engine.IMAGE, fix=fix, required=False)
    for name, image, use in PROGRAM_IMAGES:
        there = image.is_there(url)
        fix = None if there else f"only for {use}: 'cairn up' or 'cairn doctor --install' make it"
        yield Finding(name=name, found=there, works=there, detail=image.reference, fix=fix, required=False)
    yield _allow_lists(url)


def _allow_lists(url: str) -> Finding:
    works = engine.serves_allow_lists(url)
    fix = (
        None
        if works
        else "only for instances with an allow-list: the agent needs CAP_SYS_ADMIN and CAP_SYS_PTRACE, on the engine's "
        "machine and where its processes are seen (docs/hosts.md)"
    )
    return Finding(name="networks with an allow-list", found=works, works=works, fix=fix, required=False)


def _network_programs() -> Iterator[Finding]:
    """A platform does without: tests give hosts networks of their own."""
    missing = engine.missing_programs()
    for name, package in engine.NETWORK_PROGRAMS.items():
        found = name not in missing
        fix = None if found else f"only for tests: 'cairn doctor --install' as root, or install {package}"
        yield Finding(name=name, found=found, works=found, fix=fix, required=False)


def _disk(folder: Path) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free >> 20
    fix = f"make room on the disk of {there}: {WANTED_MIB} MiB are wanted" if free < WANTED_MIB else None
    return Finding(name="disk space", found=True, works=free >= NEEDED_MIB, version=f"{free} MiB free", fix=fix)


def _ports(settings: Settings) -> Iterator[Finding]:
    """What runs for this data folder, and where; else whether the ports that it would have are free."""
    folder = settings.data_dir.absolute()
    running, known = data_folder.owner(folder), data_folder.read_endpoint(folder)
    if running and known and any(known.pids.values()):
        yield from _running(known, running)
        return
    for address, port, setting in (
        (settings.api_host, settings.api_port, "CAIRN_API_PORT"),
        (temporal.ADDRESS, settings.temporal_port, "CAIRN_TEMPORAL_PORT"),
        (temporal.ADDRESS, settings.temporal_ui_port, "CAIRN_TEMPORAL_UI_PORT"),
    ):
        free = bool(running) or not port or ports.is_free(address, port)
        fix = None if free else f"stop what listens there, or set {setting} (0 chooses a free one)"
        detail = f"{setting}; a stack is starting or stopping (process {running})" if running else setting
        name = f"port {port}" if port else f"a port for {setting}"
        yield Finding(name=name, found=True, works=free, detail=detail, fix=fix)


def _running(known: data_folder.Endpoint, supervisor: int) -> Iterator[Finding]:
    """Where it says that it is: the settings of this shell may be others than those that it was started with."""
    whose = f"of the stack in {known.data_dir} (process {supervisor})"
    for name, url in (
        ("API", known.api_url),
        ("Temporal", f"tcp://{known.temporal_address}"),
        ("Temporal UI", known.temporal_ui_url),
    ):
        answers = _listens(url)
        fix = None if answers else f"nothing answers there; see {known.data_dir}/logs"
        where = url.removeprefix("tcp://")
        yield Finding(name=name, found=True, works=answers, version=where, detail=f"runs, {whose}", fix=fix)


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 0), CONNECT_SECONDS):
            return True
    except OSError:
        return False
