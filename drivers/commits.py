"""The commit port: what sessions have changed, as commits of their workspace. Rules as in ``drivers.machines``."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

from drivers.machines import Check
from model.sessions import CommitSpec, Difference, TextOf


class Commits(Protocol):
    """Those of one host. Every error of git's is EngineRefused, with its words."""

    def write(self, spec: CommitSpec, cancelled: Check) -> str | None:
        """Write the session's files as a commit beside the workspace's, with its files for sessions to come; its id.

        None: they are as they were in the parent. Repeated, the same commit, whatever was changed since.
        Raises NotFound, EngineRefused, WorkspaceTooLarge.
        """

    def publish(self, spec: CommitSpec, commit: str, cancelled: Check) -> None:
        """Let the workspace's branch be at the commit."""

    def discard(self, spec: CommitSpec, cancelled: Check) -> None:
        """Remove what ``write`` has made. Success when there is nothing."""

    def diff(
        self, session: UUID, project_id: UUID, base: str, path: str, *, text: TextOf | None, cancelled: Check
    ) -> Difference:
        """What the session has changed since a commit, below a path; untracked files too. ``text``: as git writes it.

        Raises NotFound, EngineRefused.
        """
