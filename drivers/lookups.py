"""Names that users gave, looked up so that slow ones keep nobody else waiting.

The system's resolver blocks a thread for as long as a name server is silent, and cannot be called off: the few
threads that an event loop has for it would soon all wait for one user's names. So each lookup has a thread of its own,
and each owner only a few at once.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Hashable
from concurrent.futures import Future
from typing import Any

#: Lookups that one owner may have under way in a process; a further one waits for its turn.
AT_ONCE = 2
TURN_SECONDS = 0.02

_under_way: Counter[Hashable] = Counter()
_counting = threading.Lock()


async def look_up(owner: Hashable, host: str, port: int, family: socket.AddressFamily) -> list[tuple[Any, ...]]:
    """As ``socket.getaddrinfo`` for TCP. May be given up at any time: its thread ends when the system answers.
    Raises OSError."""
    while not _begin(owner):  # noqa: ASYNC110 - threads, and other loops, give turns back
        await asyncio.sleep(TURN_SECONDS)
    found: Future[list[tuple[Any, ...]]] = Future()
    found.set_running_or_notify_cancel()  # from here on nobody can cancel it: it is answered, whoever listens
    # A daemon: a process that stops does not wait for name servers.
    threading.Thread(target=_run, args=(owner, found, host, port, family), name="lookup", daemon=True).start()
    return await asyncio.wrap_future(found)


def _begin(owner: Hashable) -> bool:
    with _counting:
        if _under_way[owner] >= AT_ONCE:
            return False
        _under_way[owner] += 1
        return True


def _run(
    owner: Hashable, found: Future[list[tuple[Any, ...]]], host: str, port: int, family: socket.AddressFamily
) -> None:
    try:
        answers = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except (OSError, UnicodeError) as error:
        found.set_exception(error if isinstance(error, OSError) else OSError(f"not a name: {host}"))
    except BaseException as error:
        found.set_exception(error)
    else:
        found.set_result(list(answers))
    finally:
        with _counting:
            _under_way[owner] -= 1
            if not _under_way[owner]:
                del _under_way[owner]
