"""Machines with a network of their own: namespaces behind a cable each, that can be cut, and second Docker engines.

Everything made here is gone after ``remove``. What a run that was killed left behind goes when the next one begins.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from functools import partial
from pathlib import Path

from tests.stack import wait_for
from worker import engine
from worker.children import die_with_parent
from worker.data_folder import is_alive

PREFIX = "cairn-t"
#: A /28 for each process that tests: 10.231.X.Y, with a /30 for each of its cables.
CABLES = 4
END_SECONDS = 20


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20).stdout


class Namespace:
    """A network namespace with a cable to ours; it has no other way out."""

    def __init__(self, number: int) -> None:
        sweep()
        pid = os.getpid()
        self.name = f"{PREFIX}-{pid}-{number}"
        base = f"10.231.{pid >> 4 & 255}"
        last = (pid & 15) * 16 + number * 4
        #: Our end of the cable, and its own.
        self.outside, self.inside = f"{base}.{last + 1}", f"{base}.{last + 2}"
        assert number < CABLES
        ours, its = f"ct{pid}o{number}", f"ct{pid}i{number}"
        try:
            ip("netns", "add", self.name)
            ip("link", "add", ours, "type", "veth", "peer", "name", its, "netns", self.name)
            ip("address", "add", f"{self.outside}/30", "dev", ours)
            ip("link", "set", ours, "up")
            ip("-n", self.name, "address", "add", f"{self.inside}/30", "dev", its)
            for device in ("lo", its):
                ip("-n", self.name, "link", "set", device, "up")
            ip("-n", self.name, "route", "add", "default", "via", self.outside)
        except BaseException:
            self.remove()
            raise

    @property
    def enter(self) -> list[str]:
        """What a command begins with that is to run inside. (``ip netns exec`` would hide the control groups.)"""
        return ["nsenter", f"--net=/run/netns/{self.name}", "--"]

    def cut(self, port: int) -> None:
        """Drop all that is on its way to this TCP port of ours, or back."""
        for chain, which in (("OUTPUT", "--dport"), ("INPUT", "--sport")):
            self._iptables("--append", chain, "--protocol", "tcp", which, str(port), "--jump", "DROP")

    def mend(self) -> None:
        self._iptables("--flush")

    def _iptables(self, *arguments: str) -> None:
        subprocess.run(
            [*self.enter, "iptables", "--wait", *arguments], check=True, capture_output=True, text=True, timeout=20
        )

    def remove(self) -> None:
        """With everything that still runs inside; the cable goes with it."""
        _remove(self.name)


def sweep() -> None:
    """Remove what test runs that are dead have left."""
    for line in ip("netns", "list").splitlines():
        found = re.match(rf"{PREFIX}-(\d+)-\d+", line)
        if found and not is_alive(int(found[1])):
            _remove(found[0])


def _remove(name: str) -> None:
    if name not in ip("netns", "list").split():
        return
    inside = [int(pid) for pid in ip("netns", "pids", name).split()]
    # The containers of an engine are in namespaces of their own: its shims are their parents.
    for pid in [*(child for parent in inside for child in _children(parent)), *inside]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(f"{name} is empty", lambda: not ip("netns", "pids", name).split(), END_SECONDS)
    ip("netns", "delete", name)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


class Engine:
    """A Docker engine with files of its own, in a namespace: another in ours would take the bridge of the first."""

    def __init__(self, namespace: Namespace) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ce-"))
        self.url = f"unix://{self.folder}/docker.sock"
        self._log = self.folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *namespace.enter,
                    "dockerd",
                    *("--host", self.url, "--pidfile", str(self.folder / "pid")),
                    *("--data-root", str(self.folder / "data"), "--exec-root", str(self.folder / "exec")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - it does two system calls
            )
        try:
            wait_for("the second engine answers", self._answers, 60)
            engine.ensure_base_image(self.url, print)
        except BaseException:
            self.remove()
            raise

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()[-3000:]
        return engine.problem(self.url) is None

    def remove(self) -> None:
        """The containers on it must be gone, or their namespace be removed next."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith(f"{self.folder}/")), reverse=True):
            subprocess.run(["umount", "--lazy", "--", mount], check=False, capture_output=True, timeout=20)
        shutil.rmtree(self.folder, ignore_errors=True)


class Relay:
    """A TCP port at an address of ours that leads to the same port of our loopback, as a tunnel would."""

    def __init__(self, address: str, port: int) -> None:
        self._port = port
        self._server = socket.create_server((address, port), backlog=64)
        self._server.settimeout(0.2)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._server.accept()
            except TimeoutError:
                continue
            try:
                target = socket.create_connection(("127.0.0.1", self._port), timeout=5)
            except OSError:
                client.close()
                continue
            for ends in ((client, target), (target, client)):
                ends[0].settimeout(None)
                threading.Thread(target=_pump, args=ends, daemon=True).start()

    def remove(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._server.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
