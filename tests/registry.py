"""A small registry (OCI distribution specification, pulls only) that counts what is asked of it."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import docker
import docker.errors

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar with these files."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def config_of(*layers: bytes, cmd: list[str] | None = None) -> bytes:
    """The configuration of an image of these layers, unpacked."""
    rootfs = {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]}
    config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": cmd or ["/run"]}, "rootfs": rootfs}
    return json.dumps(config).encode()


class Registry:
    """Serves images on loopback, where engines ask without encryption."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        #: repository:tag or repository@digest → manifest.
        self.manifests: dict[str, bytes] = {}
        #: GET of manifests and blobs, by path.
        self.requests: Counter[str] = Counter()
        #: Until then requests for manifests are told to come again after ``retry_after`` seconds.
        self.busy_until = 0.0
        self.retry_after: int | None = 2
        #: Seconds that each blob takes; bytes of it that are sent in a second.
        self.delay = 0.0
        self.drip: int | None = None
        #: ``username:password`` that everybody must have (RFC 7617).
        self.login: str | None = None
        #: What every request for a manifest is refused with.
        self.status: int | None = None
        self.refusal = b"{}"
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._serve(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                """Counted, not shown."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def push(self, name: str, files: dict[str, bytes], tag: str = "latest", cmd: list[str] | None = None) -> str:
        """Make ``name:tag`` an image of one layer; its digest."""
        layer = tar_of(files)
        packed = gzip.compress(layer, mtime=0)
        config = config_of(layer, cmd=cmd)
        for blob in (packed, config):
            self.blobs[sha256(blob)] = blob

        def descriptor(kind: str, blob: bytes) -> dict[str, Any]:
            return {"mediaType": kind, "size": len(blob), "digest": sha256(blob)}

        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": descriptor(CONFIG, config),
                "layers": [descriptor(LAYER, packed)],
            }
        ).encode()
        digest = sha256(manifest)
        self.manifests[f"{name}:{tag}"] = self.manifests[f"{name}@{digest}"] = manifest
        return digest

    def pulls(self) -> int:
        """How often an image's configuration was fetched: once in each pull."""
        configs = {json.loads(manifest)["config"]["digest"] for manifest in self.manifests.values()}
        return sum(many for path, many in self.requests.items() if path.rpartition("/")[2] in configs)

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path
        headers: dict[str, str] = {}
        status, body = 404, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'
        if self.login is not None and handler.headers.get("Authorization") != _basic(self.login):
            status, body = 401, b'{"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}'
            headers = {"WWW-Authenticate": 'Basic realm="registry"'}
        elif path == "/v2/":
            status, body = 200, b"{}"
        elif "/manifests/" in path:
            name, _, tag = path.removeprefix("/v2/").partition("/manifests/")
            if self.status is not None:
                status, body = self.status, self.refusal
            elif time.monotonic() < self.busy_until:
                status, body = 429, b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]}'
                headers = {"Retry-After": str(self.retry_after)} if self.retry_after is not None else {}
            elif found := self.manifests.get(f"{name}@{tag}" if ":" in tag else f"{name}:{tag}"):
                status, body = 200, found
                headers = {"Content-Type": MANIFEST, "Docker-Content-Digest": sha256(found)}
        elif (digest := path.rpartition("/")[2]) in self.blobs:
            time.sleep(self.delay)
            status, body = 200, self.blobs[digest]
        if handler.command == "GET":
            with self._lock:
                self.requests[path] += 1
        handler.send_response(status)
        for key, value in ({"Content-Type": "application/json"} | headers).items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command == "GET":
            step = self.drip or max(len(body), 1)
            with contextlib.suppress(OSError):
                for at in range(0, len(body), step):
                    handler.wfile.write(body[at : at + step])
                    time.sleep(1 if self.drip else 0)


def _basic(login: str) -> str:
    return f"Basic {base64.b64encode(login.encode()).decode()}"


@contextlib.contextmanager
def registry_for(engine: docker.DockerClient) -> Iterator[Registry]:
    """An empty one; what was pulled from it goes with it."""
    made = Registry()
    try:
        yield made
    finally:
        made.close()
        for image in engine.api.images():
            if any(name.startswith(made.host) for name in [*(image["RepoTags"] or []), *(image["RepoDigests"] or [])]):
                # A container of a test that is still being cleaned up keeps it: it is forgotten with its stack.
                with contextlib.suppress(docker.errors.APIError):
                    engine.images.remove(image["Id"], force=True)
