"""One pull of an image, which can be called off."""

from __future__ import annotations

import threading

import docker.errors
import requests
from docker import APIClient
from docker.utils import parse_repository_tag

from drivers.docker_engine import said


class Pull(threading.Thread):
    """One pull. One that is called off ends with the engine's next word, or with its silence."""

    def __init__(self, client: APIClient, image: str) -> None:
        super().__init__(name=f"pull-{image}", daemon=True)
        self._client = client
        self._image = image
        self.ended, self.called_off = threading.Event(), threading.Event()
        self.failure: str | None = None

    def run(self) -> None:
        repository, tag = parse_repository_tag(self._image)
        try:
            for line in self._client.pull(repository, tag=tag or "latest", stream=True, decode=True):
                if self.called_off.is_set():
                    return
                if "error" in line:
                    self.failure = str(line["error"])[:1000]
        except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
            self.failure = said(error)
        finally:
            self._client.close()
            self.ended.set()
