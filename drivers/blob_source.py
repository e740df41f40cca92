"""Files of the blob store, as an agent gets them: from the API, by digest, with the host's credential."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from drivers import progress
from drivers.locked_file import LockedFile
from drivers.machines import Cancelled, Check
from model.errors import CairnError, ChecksumMismatch, ImageNotFound, Unauthenticated, Unavailable

PATIENCE = 30.0
CHUNK = 1 << 20


class ApiBlobs:
    """The blob store behind one API."""

    def __init__(self, api_url: str, credential: str) -> None:
        self._api_url = api_url
        self._credential = credential

    def fetch(self, digest: str, into: LockedFile, cancelled: Check) -> None:
        """Write the file into an empty one. Raises Unavailable for what may pass, ChecksumMismatch for what came
        whole and is another, ImageNotFound where this host has no business with it."""
        headers = {"Authorization": f"Bearer {self._credential}"}
        client = httpx.Client(base_url=self._api_url, headers=headers, timeout=PATIENCE, trust_env=False)
        try:
            with client, client.stream("GET", f"/blobs/{digest}") as answer:
                if answer.status_code != httpx.codes.OK:
                    raise _refusal(digest, answer.status_code)
                total = int(answer.headers.get("content-length", 0)) or None
                for piece in answer.iter_bytes(CHUNK):
                    if cancelled():
                        raise Cancelled(f"fetching {digest}")
                    into.write(piece)
                    progress.say(progress.of_bytes(into.size, total))
        except httpx.HTTPError as error:
            raise Unavailable(f"the API broke off while it sent {digest}: {error or type(error).__name__}") from error
        if into.digest != digest:
            raise ChecksumMismatch(
                f"what the API sent for {digest} is {into.digest}", expected=digest, actual=into.digest
            )


def _refusal(digest: str, status: int) -> CairnError:
    kinds: dict[int, Callable[[str], CairnError]] = {401: Unauthenticated, 404: ImageNotFound}
    kind = kinds.get(status, Unavailable)
    return kind(f"the API answered {status} for {digest}")
