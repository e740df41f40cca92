"""The programs' entries: those that stay, loaded without the collector of garbage.

What a program imports stays for as long as it runs, and is some hundred thousand objects. To look through them again
and again while they come costs a seventh of the CPU of a start, and later each full collection would do it once more.
"""

from __future__ import annotations

import gc
from importlib import import_module


def _run(module: str) -> None:
    gc.disable()
    main = import_module(module).main
    gc.freeze()
    gc.enable()
    main()


def api() -> None:
    _run("worker.api")


def control() -> None:
    _run("worker.control")


def agent() -> None:
    _run("worker.agent")
