"""Values of secrets, fetched sealed from the API by who is about to start a machine with them: in no history."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable

import httpx
import orjson

from drivers.machines import Secrets
from model.errors import Superseded, Unavailable
from model.instances import MachineSpec
from model.sealing import of_secrets, unseal
from worker.identity import Keys, Membership
from worker.user_data import PATIENCE


def fetcher(
    membership: Membership, keys: Keys, transport: httpx.BaseTransport | None = None
) -> Callable[[MachineSpec], Secrets]:
    """``fetch(spec)``: the values of the secrets that the spec names, as they were sealed for this placement.

    Raises Unavailable, Superseded, and SealBroken where they are not for who has these ``keys``.
    """
    http = httpx.Client(
        base_url=membership.api_url,
        headers={"Authorization": f"Bearer {membership.credential}"},
        timeout=PATIENCE,
        trust_env=False,
        transport=transport,
    )

    def fetch(spec: MachineSpec) -> Secrets:
        try:
            asked = {"project_id": str(spec.project_id), "generation": str(spec.generation)}
            answer = http.get(f"/hosts/secrets/{spec.id}", params=asked)
            if answer.status_code == httpx.codes.NOT_FOUND:
                raise Superseded(f"instance {spec.name} is not on this host any more")
            sealed = str(answer.raise_for_status().json()["data"]["sealed"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise Unavailable(f"the API does not give the secrets of {spec.name}: {error}") from error
        purpose = of_secrets(spec.id, spec.generation)
        values: dict[str, str] = orjson.loads(unseal(sealed, purpose=purpose, private_key=b64decode(keys.private_key)))
        if missing := spec.secrets.keys() - values.keys():
            raise Superseded(f"instance {spec.name} has other secrets by now: {', '.join(sorted(missing))} are missing")
        return {name: values[name].encode() for name in spec.secrets}

    return fetch
