"""Images on a Docker engine."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Callable
from typing import Any

import docker.errors
from docker import APIClient

from drivers import docker_names, faults, progress
from drivers.brought import Brought
from drivers.docker_engine import CONFLICT, NOT_FOUND, calling, connect
from drivers.docker_load import Load, plain
from drivers.docker_pull import LEAST_RATE, Look, Pull, Transfer, refusal
from drivers.images import Login, engine_reference, familiar, is_ours, repository
from drivers.locked_file import LockedFile, sweep
from drivers.locks import alone, of_engine, together
from drivers.machines import Cancelled, Check
from drivers.outbound import Networks
from model.errors import EngineRefused, EngineUnavailable, ImageNotFound, RegistryBusy
from model.images import CachedImage, ImageFound, ImageWanted

POLL_SECONDS = 0.05
#: An engine may be silent for so long between two lines of progress; the last layer of a load may take long.
PULL_SECONDS, LOAD_SECONDS = 60, 600

#: Writes a file of the blob store, by its digest, into a file here. Raises CairnError.
Fetch = Callable[[str, LockedFile, Check], None]


class DockerImages:
    """The image port on one Docker engine."""

    def __init__(self, base_url: str, *, brought: Brought, fetch: Fetch, allow: Networks) -> None:
        """``allow``: networks of registries that may be asked although they are not public."""
        self._base_url = base_url
        self._allow = allow
        self._brought = brought
        self._fetch = fetch
        self._connected: APIClient | None = None

    @property
    def _client(self) -> APIClient:
        if self._connected is None:
            self._connected = connect(self._base_url)
        return self._connected

    def find(self, wanted: ImageWanted) -> ImageFound | None:
        # Under the lock, though shared: what is about to be removed is not found.
        reference = engine_reference(wanted)
        with calling(), together(of_engine(self._base_url, reference)) as free:
            return self._found(wanted) if free and self._is_for(wanted) else None

    def _is_for(self, wanted: ImageWanted) -> bool:
        """Whether what is there of its repository is there for who wants it."""
        return wanted.format is not None or self._brought.is_for(_repository(wanted), wanted.project_id)

    def _found(self, wanted: ImageWanted) -> ImageFound | None:
        # First it is used: whoever would remove it looks at that, and has the lock.
        self._brought.touch(engine_reference(wanted))
        found = docker_names.find(self._client, wanted)
        return ImageFound(digest=_digest(found, wanted), size_bytes=found.get("Size")) if found else None

    def ensure(self, wanted: ImageWanted, cancelled: Check, login: Callable[[], Login] | None = None) -> ImageFound:
        if (found := self.find(wanted)) is not None:
            return found
        reference = engine_reference(wanted)
        with calling(), alone(of_engine(self._base_url, reference), cancelled) as lock:
            if self._is_for(wanted) and (found := self._found(wanted)) is not None:
                return found
            return self._bring(wanted, reference, login() if login else None, lock, cancelled)

    def _bring(
        self, wanted: ImageWanted, reference: str, login: Login | None, lock: int, cancelled: Check
    ) -> ImageFound:
        """Pull or load it. The lock's file says when a registry that was too busy may be asked again."""
        _check_wait(lock, reference)
        if wanted.format is None and is_ours(reference):
            raise ImageNotFound(f"image {reference} is no image of a registry", image=reference)
        is_there = docker_names.find(self._client, wanted) is not None
        if not is_there:
            self._brought.note(reference)
        try:
            if wanted.format is not None:
                self._load(wanted, cancelled)
            else:
                self._pull(wanted, reference, login, cancelled, only_look=is_there)
            faults.reached("after_effect")
            found = self._found(wanted)
            if found is None:
                raise EngineUnavailable(f"image {reference} was brought to the engine, and is not there")
        except RegistryBusy as busy:
            os.pwrite(lock, f"{time.time() + busy.details['retry_after_seconds']:.3f}\n".encode(), 0)
            raise
        finally:
            if self._find_quietly(wanted) is None:
                self._brought.forget(reference)
        os.ftruncate(lock, 0)
        return found

    def _find_quietly(self, wanted: ImageWanted) -> object:
        """Whether it is there; as far as one knows it is, where the engine does not answer."""
        try:
            with calling():
                return docker_names.find(self._client, wanted)
        except (EngineRefused, EngineUnavailable):  # the error that is on its way is the one that counts
            return wanted

    def _pull(
        self, wanted: ImageWanted, reference: str, login: Login | None, cancelled: Check, *, only_look: bool
    ) -> None:
        # Of what it has the engine takes manifests and layers without asking: whose they are is asked before.
        steps: list[type[Pull]] = [] if self._is_for(wanted) else [Look]
        if not only_look:
            steps.append(Pull)
            if login is not None:
                self._brought.restrict(_repository(wanted))
        for step in steps:
            # In a thread of its own: a registry that is silent would be deaf to a cancel.
            transfer = step(self._new_client(PULL_SECONDS), reference, self._allow, login)
            self._carry_out(transfer, reference, cancelled)
            if transfer.failure is not None:
                raise refusal(reference, transfer.failure, self._allow, login)
        self._brought.admit(_repository(wanted), wanted.project_id)

    def _load(self, wanted: ImageWanted, cancelled: Check) -> None:
        """Fetch the file, and hand it to the engine under our name alone, whatever names it carries."""
        if wanted.format is None or wanted.digest is None or wanted.format == "qcow2":
            raise EngineRefused(f"a container cannot be made of an image of the format {wanted.format}")
        sweep(self._brought.incoming)
        with LockedFile(self._brought.incoming) as packed:
            self._fetch(wanted.digest, packed, cancelled)
            with plain(packed.path, self._brought.incoming, cancelled) as tar:
                load = Load(self._new_client(LOAD_SECONDS), tar, wanted.format, wanted.reference)
                self._carry_out(load, wanted.reference, cancelled)
        if load.failure is not None:
            raise EngineRefused(f"the engine did not take image {wanted.reference}: {load.failure}")

    def _new_client(self, seconds: int) -> APIClient:
        return APIClient(self._base_url, version=self._client.api_version, timeout=seconds)

    @staticmethod
    def _carry_out(transfer: Transfer, reference: str, cancelled: Check) -> None:
        transfer.start()
        while not transfer.ended.wait(POLL_SECONDS):
            if (said := transfer.said) is not None:
                progress.say(said)
            if cancelled():
                transfer.called_off.set()
                raise Cancelled(f"bringing {reference}")
            if transfer.is_too_slow():
                transfer.called_off.set()
                raise EngineUnavailable(f"the registry of {reference} sends less than {LEAST_RATE >> 10} KiB/s")
        if transfer.lost is not None:
            raise EngineUnavailable(f"the engine broke off while it brought {reference}: {transfer.lost}")
        if transfer.refused is not None:
            raise transfer.refused

    def collect(self, unused_for: dt.timedelta, cancelled: Check) -> list[CachedImage]:
        with calling():
            used = {str(container["ImageID"]) for container in self._client.containers(all=True)}
            left = []
            for image in self._brought.all():
                with alone(of_engine(self._base_url, image.reference), cancelled):
                    kept = self._keep(image.reference, used, unused_for)
                if kept is not None:
                    left.append(kept)
            sweep(self._brought.incoming)
            return left

    def _keep(self, reference: str, used: set[str], unused_for: dt.timedelta) -> CachedImage | None:
        """The image, where it stays; None where it has gone. Under its lock: it may have been used until a moment
        ago."""
        found = docker_names.named(self._client, reference)
        used_at = self._brought.used_at(reference)
        if found is None or used_at is None:
            self._brought.forget(reference)
            return None
        now = dt.datetime.now(dt.UTC)
        kept = CachedImage(
            reference=reference, digest=_digest(found, ImageWanted(reference=reference)), used_at=used_at
        )
        if found["Id"] in used:
            self._brought.touch(reference)
            return kept.model_copy(update={"used_at": now})
        if now - used_at <= unused_for:
            return kept
        try:
            # By its name, and not by force: what has another name, or a container, stays.
            self._client.remove_image(reference)
        except docker.errors.APIError as error:
            if error.status_code not in (NOT_FOUND, CONFLICT):
                raise
            return kept if error.status_code == CONFLICT else None
        faults.reached("after_effect")
        self._brought.forget(reference)
        return None


def _repository(wanted: ImageWanted) -> str:
    return familiar(repository(wanted.reference))


def _check_wait(lock: int, reference: str) -> None:
    said = os.pread(lock, 64, 0).decode(errors="replace").strip()
    try:
        wait = float(said or 0) - time.time()
    except ValueError:
        wait = 0
    if wait > 0:
        raise RegistryBusy(
            f"the registry of {reference} asked to come again in {wait:.0f} s",
            image=reference,
            retry_after_seconds=round(wait, 1),
        )


def _digest(found: dict[str, Any], wanted: ImageWanted) -> str | None:
    """Of the manifest, in the repository that it was asked for by; of a file, the file's."""
    if wanted.digest is not None:
        return wanted.digest
    if "@" in wanted.reference:
        return wanted.reference.partition("@")[2]
    name = familiar(repository(wanted.reference))
    for known in found.get("RepoDigests") or []:
        known_name, _, digest = known.partition("@")
        if familiar(known_name) == name:
            return str(digest)
    return None
