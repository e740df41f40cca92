"""The network namespaces of containers of a Docker engine, to be entered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import docker.errors

from drivers import namespaces
from drivers.docker_engine import NOT_FOUND, DockerEngine, calling
from model.errors import EngineUnavailable


class Place(NamedTuple):
    """A container's first process, the number of its namespace, and that, open."""

    pid: int
    inode: int
    namespace: int


@contextmanager
def entered(engine: DockerEngine, engine_id: str) -> Iterator[Place]:
    """Raises OSError, EngineUnavailable."""
    before = _process(engine, engine_id)
    namespace = os.open(f"/proc/{before[0]}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # One process from before until now: the number was not given to another meanwhile.
        if _process(engine, engine_id) != before:
            raise EngineUnavailable("it was started again meanwhile")
        inode = os.fstat(namespace).st_ino
        if inode == namespaces.inode("self"):
            raise EngineUnavailable("it is in the network of the host, not in one of its own")
        yield Place(before[0], inode, namespace)
    finally:
        os.close(namespace)


def _process(engine: DockerEngine, engine_id: str) -> tuple[int, str]:
    with calling():
        try:
            state = engine.client.inspect_container(engine_id)["State"]
        except docker.errors.APIError as error:
            if error.status_code == NOT_FOUND:
                raise EngineUnavailable("it has gone") from error
            raise
    if not state["Running"] or not state["Pid"]:
        raise EngineUnavailable("it does not run")
    return int(state["Pid"]), str(state["StartedAt"])
