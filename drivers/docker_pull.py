"""One pull of an image, which can be called off."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import docker.errors
import requests
import structlog
import urllib3
from docker import APIClient

from drivers import progress
from drivers.docker_engine import said
from drivers.images import Login
from drivers.machines import Cancelled
from drivers.outbound import Networks
from drivers.registries import HUB, check, place, retry_after, split
from model.errors import CairnError, EngineUnavailable, ImageNotFound, RegistryBusy

#: How long a registry is left alone that asked for it and did not say how long; and at most.
BUSY_SECONDS, LONGEST_SECONDS = 30.0, 600.0
#: What the engine says of a registry that may answer better later. It has one status for all, and only its text tells.
BUSY = ("toomanyrequests", "429 too many", "status: 429")
MAY_PASS = (
    "unexpected http status: 5",
    "status code 5",
    "received unexpected http status",
    "i/o timeout",
    "tls handshake timeout",
    "client.timeout",
    "context deadline exceeded",
    "connection reset by peer",
    "unexpected eof",
    ": eof",
)
#: Why it will not, in our words.
NOT_SHOWN = "it has no such image, or shows it to nobody without a login"
UNKNOWN_HOST = "its host {} is not known: is it written right?"
FINAL = {
    NOT_SHOWN: (
        *("manifest unknown", "not found", "name unknown", "does not exist"),
        *("denied", "unauthorized", "authentication required", "no basic auth"),
    ),
    UNKNOWN_HOST: ("no such host",),
    "it does not speak TLS, or has a certificate that the host does not know": (
        *("x509", "certificate", "http response to https client"),
    ),
    "it refuses connections": ("connection refused",),
    "it has nothing for this host's platform": ("no matching manifest", "no match for platform"),
}
#: A registry that sends less than so many bytes a second, over so many seconds, is given up for this attempt.
LEAST_RATE, RATE_SECONDS = 64 << 10, 60.0
log = structlog.get_logger()


class Transfer(threading.Thread, ABC):
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
        self._paced = time.monotonic(), 0

    @abstractmethod
    def lines(self) -> Iterable[dict[str, Any]]:
        """Make the call."""

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

    def is_too_slow(self) -> bool:
        """Whether what it waits for comes at less than the least rate. To be asked now and then."""
        now, layers = time.monotonic(), list(self._layers.values())
        since, had = self._paced
        came = sum(done for done, _ in layers)
        if now - since < RATE_SECONDS and any(done < all for done, all in layers):
            return False
        self._paced = now, came
        return came - had < LEAST_RATE * RATE_SECONDS and now - since >= RATE_SECONDS and bool(layers)


class Pull(Transfer):
    """``reference`` of a registry: with a tag, a digest, or neither (latest)."""

    def __init__(self, client: APIClient, reference: str, allow: Networks, login: Login | None = None) -> None:
        super().__init__(f"pull-{reference}", client)
        self._reference = reference
        self._allow = allow
        self._login = login

    def lines(self) -> Iterable[dict[str, Any]]:
        check(self._reference, self._allow)
        repository, tag = split(self._reference)
        login = dict(self._login) if self._login else None
        found: Iterable[dict[str, Any]] = self.client.pull(
            repository, tag=tag, stream=True, decode=True, auth_config=login
        )
        return found


class Look(Pull):
    """Whether the registry shows the image to who has this login: nothing is brought, and nothing that is there is
    believed."""

    def lines(self) -> Iterable[dict[str, Any]]:
        check(self._reference, self._allow)
        login = dict(self._login) if self._login else None
        self.client.inspect_distribution(self._reference, auth_config=login)  # type: ignore[no-untyped-call]
        return []


def refusal(reference: str, failure: str, allow: Networks, login: Login | None = None) -> CairnError:
    """The engine's word about a pull that failed, as an error of ours.

    Its text stays here: it quotes what the registry answered, which is whatever a user made us ask.
    """
    log.warning("image.not_pulled", image=reference, said=failure)
    known = failure.lower()
    if any(sign in known for sign in BUSY):
        seconds = max(1.0, min(retry_after(reference, allow) or BUSY_SECONDS, LONGEST_SECONDS))
        said = f"the registry of {reference} asks to come again in {seconds:g} s"
        return RegistryBusy(said, image=reference, retry_after_seconds=seconds)
    if any(sign in known for sign in MAY_PASS):
        return EngineUnavailable(f"image {reference} could not be pulled: its registry does not answer as it should")
    why = next((why for why, signs in FINAL.items() if any(sign in known for sign in signs)), "it cannot be had there")
    if why == UNKNOWN_HOST:
        why = why.format(place(reference).registry or HUB)
    if login is not None and why == NOT_SHOWN:
        why = "it has no such image, or does not show it to who has this login"
    return ImageNotFound(
        f"image {reference} is not on the engine, and could not be pulled from its registry: {why}", image=reference
    )
