"""The simulated engine: machines that exist only here. Program ``cairn-simulator``.

A process of its own, with durable state, latency and faults, so that crash and scale tests mean something
where no engine runs. It knows nothing of Cairn: names, labels and states, like any engine.

    GET    /hosts/{host}/images/{image}          404 where the image's name contains "missing"
    GET    /hosts/{host}/machines                all of them
    POST   /hosts/{host}/machines/{name}         create; 409 where the name is taken
    GET    /hosts/{host}/machines/{id or name}
    POST   /hosts/{host}/machines/{id}/start     409 {port} where another running machine has the port
    POST   /hosts/{host}/machines/{id}/{stop,pause,resume}
    POST   /hosts/{host}/machines/{id}/resize    {vcpus, memory_mb}; 409 {needs} where the settings say so
    PUT    /hosts/{host}/machines/{id}           change any of its fields
    DELETE /hosts/{host}/machines/{id}           success where it is gone already
    GET    /hosts/{host}/machines/{id}/health    {healthy, started_at}; as its field ``healthy`` says, or the settings
    GET    /hosts/{host}/usage                   of its running machines: made up, and growing with time; its field
                                                 ``load`` is the part of its CPUs that it uses
    PUT    /settings                             {latency_ms, refuse, lose_answers, unhealthy, resize}; resize: 0 at
                                                 any time, 1 only of what is stopped, 2 never
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from model import logs
from model.settings import of_process

Machine = dict[str, Any]
#: Where these verbs lead.
HELD = {"stop": "stopped", "pause": "paused", "resume": "running"}


class Engine:
    """State in memory, every change in SQLite before it is answered: it survives a kill -9."""

    def __init__(self, folder: Path, latency_ms: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._store = sqlite3.connect(folder / "machines.sqlite", isolation_level=None)
        self._store.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;"
            "CREATE TABLE IF NOT EXISTS machines (id TEXT PRIMARY KEY, machine BLOB NOT NULL)"
        )
        self.machines: dict[str, Machine] = {}
        for _, blob in self._store.execute("SELECT id, machine FROM machines"):
            machine = orjson.loads(blob)
            self.machines[machine["id"]] = machine
        self.names = {(m["host"], m["name"]): m["id"] for m in self.machines.values()}
        self.settings: dict[str, float] = {"latency_ms": latency_ms}
        self.settings |= dict.fromkeys(("refuse", "lose_answers", "resize", "unhealthy"), 0)

    def find(self, host: str, id_or_name: str) -> Machine | None:
        machine = self.machines.get(self.names.get((host, id_or_name), id_or_name))
        return machine if machine is not None and machine["host"] == host else None

    def save(self, machine: Machine) -> Machine:
        self._store.execute("REPLACE INTO machines VALUES (?, ?)", (machine["id"], orjson.dumps(machine)))
        self.machines[machine["id"]] = machine
        self.names[machine["host"], machine["name"]] = machine["id"]
        return machine

    def remove(self, machine: Machine) -> None:
        self._store.execute("DELETE FROM machines WHERE id = ?", (machine["id"],))
        del self.machines[machine["id"]]
        del self.names[machine["host"], machine["name"]]

    def holder(self, machine: Machine) -> int | None:
        """A port of ``machine`` that another running machine of its host has."""
        running = [
            m
            for m in self.machines.values()
            if m["host"] == machine["host"] and m["state"] in ("running", "paused") and m["ports"]
        ]
        wanted = {tuple(port) for port in machine["ports"]}
        for other in running:
            if other["id"] != machine["id"] and (clash := wanted & {tuple(port) for port in other["ports"]}):
                return int(next(iter(clash))[0])
        return None


def used(machine: Machine) -> dict[str, Any]:
    """What a running machine has used: a steady load of its own, from its id, unless it was given one."""
    now = time.time()
    seconds = now - machine.get("started_at", 0)
    part = machine.get("load", int(machine["id"][:2], 16) / 256)
    memory = machine.get("memory_mb", 0) << 20
    return {
        "engine_id": machine["id"],
        "name": machine["name"],
        "labels": machine["labels"],
        "at": now,
        "cpu_seconds": seconds * part * machine.get("vcpus", 1),
        "memory_bytes": int(memory * (0.1 + part / 2)),
        "pids": 2,
        "rx_bytes": int(seconds * 1000 * part),
        "tx_bytes": int(seconds * 2000 * part),
        "read_bytes": 0,
        "written_bytes": int(seconds * 100 * part),
    }


def application(engine: Engine) -> Starlette:
    def answer(data: Any, status: int = 200) -> Response:
        return Response(orjson.dumps(data), status, media_type="application/json")

    def missing() -> Response:
        return answer({"error": "not found"}, 404)

    async def image(request: Request) -> Response:
        name = request.path_params["image"]
        if "missing" in name:
            return missing()
        digest = name.rpartition("@")[2] if "@" in name else f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
        return answer({"image": name, "digest": digest, "size_bytes": 1 << 20})

    async def machines(request: Request) -> Response:
        host = request.path_params["host"]
        return answer([m for m in engine.machines.values() if m["host"] == host])

    async def usage(request: Request) -> Response:
        host = request.path_params["host"]
        running = [m for m in engine.machines.values() if m["host"] == host and m["state"] == "running"]
        return answer([used(m) for m in running])

    async def machine(request: Request) -> Response:
        host, name = request.path_params["host"], request.path_params["name"]
        wanted = orjson.loads(await request.body() or b"{}")  # before the look: nothing comes between it and the change
        found = engine.find(host, name)
        if request.method == "GET":
            return answer(found) if found else missing()
        if request.method == "PUT":
            return answer(engine.save(found | wanted)) if found else missing()
        if request.method == "DELETE":
            if found:
                engine.remove(found)
            return answer({})
        if found:
            return answer({"error": "the name is taken"}, 409)
        number = len(engine.machines) + 1
        address = f"10.{number // 65536 % 256}.{number // 256 % 256}.{number % 256}"
        made = {"id": uuid.uuid4().hex, "host": host, "name": name, "state": "created", "ip": address}
        return answer(engine.save(made | wanted), 201)

    async def health(request: Request) -> Response:
        found = engine.find(request.path_params["host"], request.path_params["name"])
        if not found:
            return missing()
        healthy = found.get("healthy", not engine.settings["unhealthy"])
        return answer({"healthy": healthy, "started_at": found.get("started_at")})

    async def act(request: Request) -> Response:
        verb, asked = request.path_params["verb"], orjson.loads(await request.body() or b"{}")
        found = engine.find(request.path_params["host"], request.path_params["name"])
        if not found:
            return missing()
        if verb == "resize":
            if (how := engine.settings["resize"]) and (how > 1 or found["state"] in ("running", "paused")):
                return answer({"needs": "recreate" if how > 1 else "stop"}, 409)
            return answer(engine.save(found | asked))
        if verb in HELD:
            return answer(engine.save(found | {"state": HELD[verb]}))
        if (port := engine.holder(found)) is not None:
            return answer({"error": "the port is taken", "port": port}, 409)
        return answer(engine.save(found | {"state": "running", "started_at": time.time()}))

    async def settings(request: Request) -> Response:
        engine.settings |= orjson.loads(await request.body())
        return answer(engine.settings)

    def simulated(handler: Any) -> Any:
        """With the latency, and the faults that the settings ask for."""

        async def handle(request: Request) -> Response:
            if engine.settings["latency_ms"]:
                await asyncio.sleep(engine.settings["latency_ms"] / 1000)
            if engine.settings["refuse"] > 0:
                engine.settings["refuse"] -= 1
                return answer({"error": "refused, as the settings ask"}, 503)
            response: Response = await handler(request)
            if request.method != "GET" and engine.settings["lose_answers"] > 0:
                engine.settings["lose_answers"] -= 1
                return answer({"error": "done, and the answer lost"}, 504)
            return response

        return handle

    return Starlette(
        routes=[
            Route("/settings", settings, methods=["PUT"]),
            Route("/hosts/{host}/images/{image:path}", simulated(image)),
            Route("/hosts/{host}/machines", simulated(machines)),
            Route("/hosts/{host}/usage", simulated(usage)),
            Route("/hosts/{host}/machines/{name}", simulated(machine), methods=["GET", "POST", "PUT", "DELETE"]),
            Route("/hosts/{host}/machines/{name}/health", simulated(health)),
            Route("/hosts/{host}/machines/{name}/{verb}", simulated(act), methods=["POST"]),
        ]
    )


def main() -> None:
    settings = of_process()
    logs.configure(settings.log_level, settings.log_format, "simulator", settings.log_limit)
    uvloop.install()
    folder = Path(os.environ.get("CAIRN_SIMULATOR_DATA", settings.data_dir / "simulator"))
    address = urlsplit(settings.simulator_url)
    uvicorn.run(
        application(Engine(folder, settings.simulator_latency_ms)),
        host=address.hostname or "127.0.0.1",
        port=address.port or 80,
        log_config=None,
        access_log=False,
        http="httptools",
    )


if __name__ == "__main__":
    main()
