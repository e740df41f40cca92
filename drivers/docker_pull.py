"""One pull of an image, which can be called off."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import docker.errors
import requests
import urllib3
from docker import APIClient

from drivers import progress
from drivers.docker_engine import said
from drivers.images import repository
from drivers.machines import Cancelled
from model.errors import CairnError, EngineUnavailable, ImageNotFound, RegistryBusy

#: How long a registry is left alone that asked for it and did not say how long; and at most.
BUSY_SECONDS, LONGEST_SECONDS = 30, 600
PROBE_SECONDS = 3
LOOPBACK = ("localhost", "127.0.0.1", "::1")
HUB = "registry-1.docker.io"
TOO_MANY = 429
#: What the engine says of a registry that may answer better later. It has one status for all, and only its text tells.
MAY_PASS = (
    "unexpected HTTP status: 5",
    "status code 5",
    "received unexpected HTTP status",
    "i/o timeout",
    "TLS handshake timeout",
    "Client.Timeout",
    "context deadline exceeded",
    "connection reset by peer",
    "unexpected EOF",
    ": EOF",
)


class Transfer(threading.Thread):
    """One call to the engine that answers with lines of progress. One that is called off ends with the engine's next
    word, or with its silence."""

    def __init__(self, name: str, client: APIClient) -> None:
        super().__init__(name=name, daemon=True)
        self.client = client
        self.ended, self.called_off = threading.Event(), threading.Event()
        #: What the engine said against it; that it broke off.
        self.failure: str | None = None
        #: What we have against it.
        self.refused: CairnError | None = None
        self.lost: str | None = None
        self._layers: dict[str, tuple[int, int]] = {}

    def lines(self) -> Iterable[dict[str, Any]]:
        """Make the call."""
        raise NotImplementedError

    def run(self) -> None:
        try:
            for line in self.lines():
                if self.called_off.is_set():
                    return
                if "error" in line:
                    self.failure = str(line["error"])[:1000]
                self._note(line)
        except CairnError as error:
            self.refused = error
        except docker.errors.DockerException as error:
            self.failure = said(error)
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            self.lost = said(error)
        except Cancelled:
            pass
        finally:
            self.client.close()
            self.ended.set()

    def _note(self, line: dict[str, Any]) -> None:
        status = str(line.get("status", ""))
        detail = line.get("progressDetail") or {}
        if status == "Downloading" and detail.get("total"):
            self._layers[str(line.get("id"))] = (int(detail["current"]), int(detail["total"]))
        elif status in ("Download complete", "Pull complete") and (layer := self._layers.get(str(line.get("id")))):
            self._layers[str(line["id"])] = (layer[1], layer[1])

    @property
    def said(self) -> str | None:
        """How far it is."""
        layers = list(self._layers.values())
        return progress.of_bytes(sum(done for done, _ in layers), sum(all for _, all in layers)) if layers else None


class Pull(Transfer):
    """``reference`` of a registry: with a tag, a digest, or neither (latest)."""

    def __init__(self, client: APIClient, reference: str) -> None:
        super().__init__(f"pull-{reference}", client)
        self._reference = reference

    def lines(self) -> Iterable[dict[str, Any]]:
        repository, tag = split(self._reference)
        found: Iterable[dict[str, Any]] = self.client.pull(repository, tag=tag, stream=True, decode=True)
        return found


def split(reference: str) -> tuple[str, str]:
    """Repository, and tag or digest."""
    name, _, digest = reference.partition("@")
    found = repository(name)
    return found, digest or name[len(found) + 1 :] or "latest"


def refusal(reference: str, failure: str) -> CairnError:
    """The engine's word about a pull that failed, as an error of ours."""
    if "toomanyrequests" in failure.lower() or "429 Too Many" in failure or f"status: {TOO_MANY}" in failure:
        seconds = retry_after(reference)
        return RegistryBusy(
            f"the registry of {reference} asks to come again in {seconds:g} s: {failure}",
            image=reference,
            retry_after_seconds=seconds,
        )
    if any(sign in failure for sign in MAY_PASS):
        return EngineUnavailable(f"image {reference} could not be pulled: {failure}")
    return ImageNotFound(f"image {reference} is not on the engine, and could not be pulled: {failure}", image=reference)


def retry_after(reference: str) -> float:
    """Seconds that the registry says to wait: the engine keeps its answer's ``Retry-After`` for itself."""
    name, tag = split(reference)
    host, slash, path = name.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, path = HUB, name if slash else f"library/{name}"
    scheme = "http" if host.rpartition(":")[0] in LOOPBACK or host in LOOPBACK else "https"
    try:
        with urllib3.PoolManager(retries=False, timeout=PROBE_SECONDS) as http:
            answer = http.request("HEAD", f"{scheme}://{host}/v2/{path}/manifests/{tag}", redirect=False)
    except (urllib3.exceptions.HTTPError, ValueError):
        return BUSY_SECONDS
    said = answer.headers.get("Retry-After", "")
    asked = answer.status == TOO_MANY and said.isdigit()
    return max(1.0, min(float(said), LONGEST_SECONDS)) if asked else BUSY_SECONDS
