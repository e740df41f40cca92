"""An S3-compatible service of a test's own: OpenStack Swift from the distribution, on one disk."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import boto3
import httpx
from botocore.config import Config

from tests.services import child, until
from worker import packages

ACCESS_KEY, SECRET_KEY, BUCKET = "cairn:images", "a-secret", "images"
PACKAGES = ("swift-proxy", "swift-account", "swift-container", "swift-object", "memcached")
LAYERS = ("account", "container", "object")
PROXY = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
user = root
workers = 0
log_name = proxy
[pipeline:main]
pipeline = gatekeeper healthcheck proxy-logging cache s3api tempauth copy slo dlo versioned_writes proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
min_segment_size = 1
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{cache}
[filter:tempauth]
use = egg:swift#tempauth
user_cairn_images = a-secret .admin
""" + "".join(
    f"[filter:{name}]\nuse = egg:swift#{name.replace('-', '_')}\n"
    for name in ("gatekeeper", "healthcheck", "proxy-logging", "copy", "slo", "dlo", "versioned_writes")
)
SERVER = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
devices = {folder}/disks
mount_check = false
user = root
workers = 0
log_name = {name}
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""


def is_installed() -> bool:
    return all(shutil.which(name) for name in ("swift-proxy-server", "swift-object-server", "memcached"))


def install() -> None:
    """From the distribution, as root; raises where that is not possible."""
    packages.install(*PACKAGES)


class Swift:
    """The service, with an empty bucket."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="csw-"))
        (self.folder / "disks" / "d1").mkdir(parents=True)
        (self.folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = cairn\n")
        self.processes: list[subprocess.Popen[bytes]] = []
        for name in LAYERS:
            port = _free_port()
            self._ring(name, port)
            self._start(name, SERVER.format(port=port, folder=self.folder, name=name))
        cache = _free_port()
        argv = ["memcached", "-u", "root", "-l", "127.0.0.1", "-p", str(cache), "-m", "16"]
        self.processes.append(child(argv, self.folder / "memcached.log"))
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._start("proxy", PROXY.format(port=port, folder=self.folder, cache=cache))
        assert until(self._answers, 30), (self.folder / "proxy.log").read_text()[-3000:]
        self.client.create_bucket(Bucket=BUCKET)

    @property
    def client(self) -> Any:
        keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}
        config = Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", config=config, **keys)

    def _ring(self, name: str, port: int) -> None:
        builder = str(self.folder / f"{name}.builder")
        for words in (["create", "4", "1", "0"], ["add", f"r1z1-127.0.0.1:{port}/d1", "1"], ["rebalance"]):
            subprocess.run(["swift-ring-builder", builder, *words], check=True, capture_output=True, timeout=30)

    def _start(self, name: str, config: str) -> None:
        path = self.folder / f"{name}.conf"
        path.write_text(config)
        program = [f"/usr/bin/swift-{name}-server", str(path), "-v"]
        environ = ["env", f"SWIFT_DIR={self.folder}"]
        self.processes.append(child([*environ, *program], self.folder / f"{name}.log"))

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthcheck").is_success
        except httpx.TransportError:
            return False

    def remove(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
