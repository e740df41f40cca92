"""TCP ports of the embedded servers: checked before anything is started, or chosen."""

from __future__ import annotations

import errno
import random
import socket
from pathlib import Path

from worker.data_folder import StackError

#: Chosen ports come from here. Not from the ephemeral range, which ``bind(0)`` uses: while a server is
#: away a client's retry could be given the server's own port as its source, connect to itself, and hold it.
FIRST, LAST = 10_000, 32_767


def is_free(address: str, port: int) -> bool:
    """Whether a server could listen there now; leftovers of closed connections do not count."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, socket.EAI_NONAME):
                raise StackError(f"this machine has no address {address}: correct CAIRN_API_HOST") from None
            return False
    return True


def require(address: str, port: int, setting: str) -> int:
    """``port`` itself, when a server can have it."""
    if not is_free(address, port):
        raise StackError(
            f"port {port} on {address} is taken: stop what listens there, or set {setting} (0 chooses a free one)"
        )
    return port


def choose(address: str, avoid: set[int], reserved: tuple[int, int]) -> int:
    """A free port that is not in ``avoid``, not one of the instances', and not ephemeral; added to ``avoid``."""
    ephemeral = _ephemeral()
    candidates = [
        port
        for port in range(FIRST, LAST + 1)
        if port not in avoid and port not in ephemeral and not reserved[0] <= port <= reserved[1]
    ]
    random.shuffle(candidates)
    for port in candidates:
        if is_free(address, port):
            avoid.add(port)
            return port
    raise StackError(f"no port of {FIRST}-{LAST} is free on {address}")


def _ephemeral() -> range:
    try:
        first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    except (OSError, ValueError):
        return range(0)
    return range(int(first), int(last) + 1)
