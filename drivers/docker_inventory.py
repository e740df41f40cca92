"""What is ours on a Docker engine: all of it for an inventory, and what runs for samples."""

from __future__ import annotations

import time
from typing import Any

import docker.errors
import orjson
from docker import APIClient
from docker.utils import convert_filters

from drivers import docker_usage
from drivers.docker_details import Details
from drivers.docker_engine import CALL_SECONDS, DockerEngine
from drivers.ownership import FENCED
from model.instances import OwnedMachine
from model.samples import Reading


class DockerInventory:
    """Of one engine, for one owner. ``details``: what is remembered of containers between two inventories."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine
        self._listening: APIClient | None = None
        self.details = Details()
        self._asked_at = int(time.time())

    def machines(self) -> list[OwnedMachine]:
        self._forget_updated()
        client, owner = self._engine.client, self._engine.owner
        seen: set[str] = set()
        machines = []
        for found in client.containers(all=True, filters={"label": owner.filters()}):
            ours = owner.owned(found["Names"][0].removeprefix("/"), found["Labels"] or {})
            if ours is None:
                continue
            details = self.details.get(found["Id"])
            if details is None:
                try:
                    inspected = client.inspect_container(found["Id"])
                except docker.errors.NotFound:
                    continue
                details = self.details.note(found["Id"], inspected)
            seen.add(found["Id"])
            machines.append(
                OwnedMachine(
                    engine_id=found["Id"],
                    id=ours[0],
                    generation=ours[1],
                    running=found["State"] in ("running", "restarting"),
                    fenced=FENCED in found["Labels"],
                    paused=found["State"] == "paused",
                    **details,
                )
            )
        self.details.keep(seen)
        return machines

    def _forget_updated(self) -> None:
        """Look anew at what the engine says was updated: a list of containers does not show their limits."""
        client = self._engine.client
        now = int(time.time())
        since, self._asked_at = self._asked_at, now
        filters: dict[str, Any] = {"type": "container", "event": "update", "label": self._engine.owner.filters()}
        asked: dict[str, Any] = {"since": since - 1, "until": now, "filters": convert_filters(filters)}
        # Not the SDK's own call: it would wait for a silent engine for ever.
        url = f"{client.base_url}/v{client.api_version}/events"
        answer = client.get(url, params=asked, timeout=CALL_SECONDS)
        answer.raise_for_status()
        for line in answer.content.splitlines():
            self.details.forget(orjson.loads(line)["id"])

    def sample(self) -> list[Reading]:
        client, owner = self._engine.client, self._engine.owner
        ours = {}
        for found in client.containers(filters={"label": owner.filters(), "status": "running"}):
            owned = owner.owned_of(found["Names"][0].removeprefix("/"), found["Labels"] or {})
            if owned is not None:
                ours[str(found["Id"])] = owned
        if self._listening is None:
            # Of its own: many streams at once would put the connections of steps out of their pool.
            self._listening = APIClient(
                self._engine.base_url, version=client.api_version, max_pool_size=docker_usage.AT_ONCE
            )
        return [
            Reading(engine_id=engine_id, id=id, generation=generation, project_id=project_id, **usage)
            for engine_id, usage in docker_usage.read(self._listening, list(ours))
            for id, generation, project_id in [ours[engine_id]]
        ]
