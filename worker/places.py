"""Places of what an agent has open at once: so many of all, of one project, and of one instance or session."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from uuid import UUID

from model.errors import TooManyStreams
from model.tickets import Ticket


class Places:
    """Used on one event loop."""

    def __init__(self, of_all: int, of_project: int, of_one: int) -> None:
        self._of_all = of_all
        self._of_project = of_project
        self._of_one = of_one
        self._open: Counter[UUID] = Counter()
        self._of_projects: Counter[UUID] = Counter()

    def take(self, ticket: Ticket) -> Callable[[], None]:
        """What gives the place back, to be called once. Raises TooManyStreams."""
        full = self._open.total() >= self._of_all or self._open[ticket.instance] >= self._of_one
        if ticket.project is not None:
            full = full or self._of_projects[ticket.project] >= self._of_project
        if full:
            raise TooManyStreams("as many as are allowed are open on this host already: close some, and try again")
        counted = [(self._open, ticket.instance)]
        if ticket.project is not None:
            counted.append((self._of_projects, ticket.project))
        for counter, one in counted:
            counter[one] += 1

        def give_back() -> None:
            for counter, one in counted:
                counter[one] -= 1
                if not counter[one]:
                    del counter[one]

        return give_back

    @contextlib.contextmanager
    def one(self, ticket: Ticket) -> Iterator[None]:
        """Raises TooManyStreams."""
        give_back = self.take(ticket)
        try:
            yield
        finally:
            give_back()
