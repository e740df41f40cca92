"""The reference agent: a program for sessions' sandboxes that keeps to docs/agents.md, without a model.

It says again what it is told, word by word; a line that begins with ``$ `` it runs, and tells what that wrote. It needs
Python 3.10 and nothing else, so it is also a template: replace ``Turn.work``. Run: ``python3 reference_agent.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_KEY = re.compile(r"[0-9a-f-]{36}")
MOST_PROMPT = 2 << 20
#: Somebody who waits for the next event is told now and then that there is none yet.
QUIET_SECONDS = 15.0
LAST = frozenset({"done", "error"})
OK, BAD, NOT_FOUND, CONFLICT = 200, 400, 404, 409


class Turn:
    """One prompt and the events of its answer: in memory, and in a file, so that a new process knows them too."""

    def __init__(self, file: Path, events: list[tuple[str, dict[str, Any]]]) -> None:
        self._file = file
        self._events = events
        self._changed = threading.Condition()
        self._child: subprocess.Popen[str] | None = None
        self.cancelled = threading.Event()

    @classmethod
    def read(cls, file: Path) -> Turn:
        """One of an earlier process: what it had not ended stays so."""
        events: list[tuple[str, dict[str, Any]]] = []
        with contextlib.suppress(ValueError):  # the last line may have been cut off
            for line in file.read_text().splitlines():
                kind, data = json.loads(line)
                events.append((kind, data))
        found = cls(file, events)
        if not found.ended:
            found.say("error", message="the agent was started again, and does not go on with what it had begun")
        return found

    @property
    def ended(self) -> bool:
        return bool(self._events) and self._events[-1][0] in LAST

    def say(self, kind: str, **data: Any) -> None:
        with self._changed:
            with self._file.open("a") as file:
                file.write(json.dumps([kind, data]) + "\n")
            self._events.append((kind, data))
            self._changed.notify_all()

    def after(self, number: int) -> Iterator[bytes]:
        """Its events behind this one, as they come, until the last."""
        while True:
            with self._changed:
                if number >= len(self._events) and not self.ended:
                    self._changed.wait(QUIET_SECONDS)
                news, ended = self._events[number:], self.ended
            for kind, data in news:
                number += 1
                yield f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()
            if ended:
                return
            if not news:
                yield b": working\n\n"

    def cancel(self) -> None:
        self.cancelled.set()
        with self._changed:
            child = self._child
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    def work(self, prompt: str, *, commands: bool, delay: float) -> None:
        """Answer. This is what another agent does otherwise."""
        try:
            for line in prompt.splitlines():
                if commands and line.startswith("$ "):
                    self._run(line.removeprefix("$ "))
                    continue
                for word in re.findall(r"\S+\s*", line + "\n"):
                    if self.cancelled.wait(delay):
                        break
                    self.say("text", text=word)
            if self.cancelled.is_set():
                self.say("error", message="it was called off")
            else:
                self.say("done")
        except Exception as error:
            self.say("error", message=f"{type(error).__name__}: {error}")

    def _run(self, command: str) -> None:
        self.say("tool", name="shell", input=command)
        with subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as child:
            with self._changed:
                self._child = child
            if self.cancelled.is_set():
                self.cancel()
            for line in child.stdout or ():
                self.say("tool_output", name="shell", text=line[:16384])
            code = child.wait()
        with self._changed:
            self._child = None
        self.say("tool_result", name="shell", exit_code=code)


class Agent:
    """``commands``: whether it runs any. ``folder``: where it keeps its answers."""

    def __init__(self, folder: Path, *, commands: bool = True, delay: float = 0) -> None:
        self._folder = folder
        self._commands = commands
        self._delay = delay
        self._turns: dict[str, Turn] = {}
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def turn(self, key: str, prompt: str) -> Turn | None:
        """The turn of this key: begun, where there is none. None: another is not at its end."""
        with self._lock:
            if (known := self.known(key)) is not None:
                return known
            if any(not turn.ended for turn in self._turns.values()):
                return None
            file = self._folder / f"{key}.jsonl"
            file.touch(exist_ok=False)
            made = self._turns[key] = Turn(file, [])
        about = {"commands": self._commands, "delay": self._delay}
        threading.Thread(target=made.work, args=(prompt,), kwargs=about, daemon=True).start()
        return made

    def known(self, key: str) -> Turn | None:
        file = self._folder / f"{key}.jsonl"
        if key not in self._turns and file.is_file():
            self._turns[key] = Turn.read(file)
        return self._turns.get(key)


class Handler(BaseHTTPRequestHandler):
    """GET /health, POST /chat, POST /cancel."""

    agent: Agent

    def do_GET(self) -> None:
        self._answer(OK if self.path == "/health" else NOT_FOUND, {"status": "ready"})

    def do_POST(self) -> None:
        try:
            length = int(self.headers.get("Content-Length", "0"))
            body = json.loads(self.rfile.read(min(length, MOST_PROMPT)) or b"{}")
            key = self.headers.get("Idempotency-Key", "") if self.path == "/chat" else str(body["id"])
            last = int(self.headers.get("Last-Event-ID") or 0)
            prompt = str(body["prompt"]) if self.path == "/chat" else ""
        except (ValueError, KeyError, TypeError):
            self._answer(BAD, {"error": "expected JSON, with prompt or id"})
            return
        if not _KEY.fullmatch(key):
            self._answer(BAD, {"error": "expected a UUID as the turn's key"})
        elif self.path == "/cancel":
            if (known := self.agent.known(key)) is not None:
                known.cancel()
            self._answer(OK, {})
        elif self.path == "/chat":
            self._chat(key, prompt, last)
        else:
            self._answer(NOT_FOUND, {"error": "there is no such path"})

    def _chat(self, key: str, prompt: str, last: int) -> None:
        if last and self.agent.known(key) is None:
            self._answer(CONFLICT, {"error": "this turn is not known: what it had said is lost"})
        elif (turn := self.agent.turn(key, prompt)) is None:
            self._answer(CONFLICT, {"error": "another turn is not at its end"})
        else:
            self.send_response(OK)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            with contextlib.suppress(OSError):  # who asks for the rest later, with Last-Event-ID, gets it
                for event in turn.after(last):
                    self.wfile.write(event)

    def _answer(self, status: int, data: dict[str, Any]) -> None:
        said = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(said)

    def log_message(self, format: str, *args: Any) -> None:
        print(f"{time.strftime('%H:%M:%S')} {format % args}", flush=True)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, agent: Agent) -> None:
        super().__init__(("127.0.0.1", port), type("Handler", (Handler,), {"agent": agent}))


def main() -> None:
    folder = Path(os.environ.get("CAIRN_AGENT_STATE", "/tmp/cairn-agent"))  # noqa: S108 - in a sandbox of its own
    agent = Agent(folder, delay=float(os.environ.get("CAIRN_AGENT_DELAY", "0")))
    port = int(os.environ.get("CAIRN_AGENT_PORT", "8480"))
    print(f"the reference agent listens on 127.0.0.1:{port}", flush=True)
    Server(port, agent).serve_forever()


if __name__ == "__main__":
    main()
