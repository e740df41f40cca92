"""Another API process on the database of a test: ``second.py DATABASE_URL TEMPORAL``. Tells its port."""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import uvicorn
from temporalio.client import Client

from api.app import create_app
from drivers.blobs import FileBlobs
from model.keyring import new_master_key
from model.settings import Settings
from worker.database import connect_async


async def main(url: str, temporal: str) -> None:
    settings = Settings(database_url=url, master_keys=new_master_key("test"), mailer="log")  # type: ignore[arg-type]
    engine = connect_async(url, 5)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener, tempfile.TemporaryDirectory() as folder:
        app = create_app(settings, engine, await Client.connect(temporal, lazy=True), FileBlobs(Path(folder)))
        print(listener.getsockname()[1], flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on"))
        await server.serve(sockets=[listener])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
