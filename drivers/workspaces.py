"""The workspace port: repositories and folders, as trees of files on one host. Rules as in ``drivers.machines``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol
from uuid import UUID

from drivers.machines import Check
from model.workspaces import GitLogin, WorkspaceFacts, WorkspaceSpec


class Held(NamedTuple):
    """A workspace that a host holds files of."""

    id: UUID
    project_id: UUID


class Workspaces(Protocol):
    """Workspaces of one host."""

    def bring(self, spec: WorkspaceSpec, login: Callable[[], GitLogin] | None, cancelled: Check) -> WorkspaceFacts:
        """Fetch what the spec names, as it is now, and check it out beside what was checked out before.

        Complete, or not there: what was begun and not ended is no part of it. Files of other commits than the new one
        and those of ``spec.keep`` go. ``login`` is asked for only where the source is fetched.
        Raises FetchFailed with the words of git, PathRefused, WorkspaceTooLarge.
        """

    def remove(self, workspace: UUID, cancelled: Check) -> None:
        """Remove all of it, and end what works on it. Success when it is absent."""

    def held(self) -> list[Held]:
        """All of which anything is here."""

    def tidy(self) -> None:
        """End sandboxes that nobody waits for any more; forget repositories that nothing was fetched from for long."""
