"""Scripts of instances, fetched from the API by who is about to put them into a machine: they are in no history."""

from __future__ import annotations

import hashlib
from base64 import b64decode
from collections.abc import Callable

import httpx

from model.errors import Superseded, Unavailable
from model.instances import MachineSpec
from model.sealing import of_user_data, unseal
from worker.identity import Keys, Membership

PATIENCE = 5.0


def fetcher(
    membership: Membership, keys: Keys, transport: httpx.BaseTransport | None = None
) -> Callable[[MachineSpec], bytes]:
    """``fetch(spec)``: the script that the spec names, proved by its SHA-256.

    Raises Unavailable, Superseded, and SealBroken where it is not for who has these ``keys``.
    """
    http = httpx.Client(
        base_url=membership.api_url,
        headers={"Authorization": f"Bearer {membership.credential}"},
        timeout=PATIENCE,
        trust_env=False,
        transport=transport,
    )

    def fetch(spec: MachineSpec) -> bytes:
        try:
            answer = http.get(f"/hosts/user-data/{spec.id}", params={"project_id": str(spec.project_id)})
            if answer.status_code == httpx.codes.NOT_FOUND:
                raise Superseded(f"instance {spec.name} is not on this host any more")
            sealed = str(answer.raise_for_status().json()["data"]["sealed"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise Unavailable(f"the API does not give the user_data of {spec.name}: {error}") from error
        script = unseal(sealed, purpose=of_user_data(spec.id), private_key=b64decode(keys.private_key))
        if hashlib.sha256(script).hexdigest() != spec.user_data:
            raise Superseded(f"instance {spec.name} has another user_data by now")
        return script

    return fetch
