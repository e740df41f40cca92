"""Commits of a simulated host: folders that are copied, of no repository."""

from __future__ import annotations

import hashlib
import shutil
from uuid import UUID

from drivers import faults, trees
from drivers.machines import Check
from drivers.session_trees import SessionTrees
from drivers.trees import Trees
from model.errors import Unsupported
from model.sessions import CommitSpec, Difference, TextOf


class SimulatedCommits:
    """The commit port; every commit is another."""

    def __init__(self, kept: Trees, sessions: SessionTrees) -> None:
        self._trees = kept
        self._sessions = sessions

    def write(self, spec: CommitSpec, cancelled: Check) -> str | None:
        commit = _id(spec)
        base = self._trees.base(spec.tree.workspace, commit)
        merged, new = self._sessions.mount(spec.tree.session, cancelled), base.with_name(f"{commit}.new")
        if not base.exists():
            trees.clear(new)
            shutil.copytree(merged, new, symlinks=True)
            new.rename(base)
        faults.reached("after_effect")
        return commit

    def publish(self, spec: CommitSpec, commit: str, cancelled: Check) -> None:
        (self._trees.workspace(spec.tree.workspace) / "branch").write_text(commit)
        faults.reached("after_effect")

    def discard(self, spec: CommitSpec, cancelled: Check) -> None:
        base = self._trees.base(spec.tree.workspace, _id(spec))
        for folder in (base, base.with_name(f"{base.name}.new")):
            trees.clear(folder)
        faults.reached("after_effect")

    def diff(
        self, session: UUID, project_id: UUID, base: str, path: str, *, text: TextOf | None, cancelled: Check
    ) -> Difference:
        raise Unsupported("diff", "simulated")


def _id(spec: CommitSpec) -> str:
    return hashlib.sha1(f"{spec.id} {spec.parent}".encode(), usedforsecurity=False).hexdigest()
