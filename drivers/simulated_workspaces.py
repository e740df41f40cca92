"""Workspaces of a simulated host: folders of one file each, of no repository."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from drivers import faults
from drivers.machines import Check
from drivers.session_trees import SessionTrees
from drivers.simulated_commits import SimulatedCommits
from drivers.trees import Trees
from drivers.workspaces import Held
from model.errors import FetchFailed
from model.workspaces import GitLogin, WorkspaceFacts, WorkspaceSpec


class SimulatedWorkspaces:
    """The workspace port; it has whatever is asked for, but what is called "missing"."""

    name = "simulated"

    def __init__(self, root: Path) -> None:
        self._trees = Trees(root, None)

    def bring(self, spec: WorkspaceSpec, login: Callable[[], GitLogin] | None, cancelled: Check) -> WorkspaceFacts:
        source = spec.git_url or spec.path or ""
        secret = login().secret if login is not None else ""
        if "missing" in source or "wrong" in secret:
            raise FetchFailed(f"{source} could not be read: there is no such repository")
        self._trees.begin(spec.id, spec.project_id)
        (self._trees.incoming(spec.id) / "README").write_text(source)
        commit = hashlib.sha1(f"{source} {spec.ref}".encode(), usedforsecurity=False).hexdigest()
        self._trees.settle(spec.id, commit, spec.keep)
        faults.reached("after_effect")
        return WorkspaceFacts(commit=commit, ref=spec.ref or "main", size_bytes=len(source))

    def remove(self, workspace: UUID, cancelled: Check) -> None:
        self._trees.remove(workspace)
        faults.reached("after_effect")

    def commits(self, sessions: SessionTrees) -> SimulatedCommits:
        return SimulatedCommits(self._trees, sessions)

    def held(self) -> list[Held]:
        return self._trees.held()

    def tidy(self) -> None:
        """Nothing is ever left."""
