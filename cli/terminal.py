"""A terminal of an instance on this terminal: bytes both ways, its size, and the way out."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cli import render
from cli.errors import UNKNOWN_EXIT, CommandFailed, Exit, of_answer

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

CHUNK = 16384
#: The size of what is no terminal.
NO_TERMINAL = (80, 24)
#: A close code from here on is this and the HTTP status of an error, whose code and message are the reason.
ERRORS = 4000
END_OF_INPUT = b"\x04"
#: Before the end of input is typed again, at first and at most: a program that does not listen yet, or listens to
#: each key by itself from now on, never sees the one that was typed before.
FIRST_AGAIN_SECONDS, MOST_AGAIN_SECONDS = 0.25, 8.0
_RESIZE, _END = b"r", b"e"


class Escapes:
    """Finds ``~.`` at the start of a line in what is typed, as ssh does; ``~~`` there is one ``~``."""

    def __init__(self) -> None:
        self._line_start = True
        self._tilde = False

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """What to pass on, and whether to leave."""
        passed = bytearray()
        for byte in typed:
            if self._tilde:
                self._tilde = False
                if byte == ord("."):
                    return bytes(passed), True
                if byte != ord("~"):
                    passed += b"~"
            elif byte == ord("~") and self._line_start:
                self._tilde = True
                continue
            passed.append(byte)
            self._line_start = byte in b"\r\n"
        return bytes(passed), False


def size() -> tuple[int, int]:
    """Columns and lines of this terminal."""
    try:
        found = os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        return NO_TERMINAL
    # A terminal that nobody has told its size says 0.
    return found.columns or NO_TERMINAL[0], found.lines or NO_TERMINAL[1]


@contextlib.contextmanager
def raw(stdin: int) -> Iterator[bool]:
    """The terminal passes on every key while this lasts, and is as it was afterwards, however it ends.

    Says whether it is a terminal; what is none is left alone.
    """
    if not os.isatty(stdin):
        yield False
        return
    before = termios.tcgetattr(stdin)

    def leave(number: int, _frame: Any) -> None:
        raise SystemExit(128 + number)

    handlers = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(stdin)
        yield True
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def attach(connection: ClientConnection, stdin: int) -> int:
    """Pass everything on until the command ends; its exit code.

    Raises CommandFailed where the connection ends before the command does.
    """
    # All that is sent is sent by one thread. What a signal or the end has to tell it comes through this pipe.
    told, tell = os.pipe()
    os.set_blocking(tell, False)

    def resized(_number: int, _frame: Any) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(tell, _RESIZE)

    with raw(stdin) as is_terminal:
        before = signal.signal(signal.SIGWINCH, resized)
        left = threading.Event()
        sender = threading.Thread(target=_send, args=(connection, stdin, told, is_terminal, left), daemon=True)
        sender.start()
        try:
            return _receive(connection, left)
        finally:
            signal.signal(signal.SIGWINCH, before)
            with contextlib.suppress(BlockingIOError):
                os.write(tell, _END)
            sender.join(5)
            os.close(told)
            os.close(tell)


def _receive(connection: ClientConnection, left: threading.Event) -> int:
    from websockets.exceptions import ConnectionClosed

    out = sys.stdout.buffer
    try:
        while True:
            frame = connection.recv()
            if isinstance(frame, bytes):
                out.write(frame)
                out.flush()
                continue
            told = json.loads(frame)
            if "exit_code" in told:
                return UNKNOWN_EXIT if told["exit_code"] is None else int(told["exit_code"])
    except ConnectionClosed as closed:
        if left.is_set():
            render.say("\r\nleft the terminal")
            return 0
        raise lost(closed) from None


def lost(closed: Any) -> CommandFailed:
    """The failure that a WebSocket which the API closed too early means for a command."""
    code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (0, "")
    if code >= ERRORS:
        name, _, message = reason.partition(": ")
        return of_answer(code - ERRORS, {"code": name, "message": message}, "/instances/ID/terminal")
    message = f"the connection ended: {reason or 'the API, or the agent of the host, went away'}"
    return CommandFailed(message, "connection_lost", Exit.UNREACHABLE, "see how it is: cairn instance list")


def _send(connection: ClientConnection, stdin: int, told: int, is_terminal: bool, left: threading.Event) -> None:
    from websockets.exceptions import ConnectionClosed

    escapes = Escapes()
    sources = [stdin, told]
    again: float | None = None
    try:
        while True:
            ready, _, _ = select.select(sources, [], [], again)
            if not ready and again is not None:
                connection.send(END_OF_INPUT)
                again = min(2 * again, MOST_AGAIN_SECONDS)
            if told in ready:
                if _END in os.read(told, CHUNK):
                    return
                columns, rows = size()
                connection.send(json.dumps({"resize": {"columns": columns, "rows": rows}}))
            if stdin in ready:
                typed = os.read(stdin, CHUNK)
                passed, leave = escapes.feed(typed) if is_terminal else (typed or END_OF_INPUT, False)
                if passed:
                    connection.send(passed)
                if leave:
                    left.set()
                    connection.close()
                    return
                if not typed:
                    sources = [told]
                    again = None if is_terminal else FIRST_AGAIN_SECONDS
    except (ConnectionClosed, OSError):
        return  # the other thread sees it too, and says so
