"""What is in no history, fetched sealed from the API by who needs it: scripts, secrets, logins of registries."""

from __future__ import annotations

import hashlib
from base64 import b64decode
from uuid import UUID

import httpx
import orjson

from drivers.images import Login
from drivers.machines import Secrets
from model.errors import Superseded, Unavailable
from model.images import ImageWanted
from model.instances import MachineSpec
from model.sealing import of_git_login, of_login, of_secrets, of_user_data, unseal
from model.vault import REGISTRY
from model.workspaces import GitLogin, WorkspaceSpec
from worker.identity import Keys, Membership

PATIENCE = 5.0


class Sealed:
    """What an agent is given. All raise Unavailable, Superseded, and SealBroken where it is not for these ``keys``."""

    def __init__(self, membership: Membership, keys: Keys, transport: httpx.BaseTransport | None = None) -> None:
        self._private_key = b64decode(keys.private_key)
        self._http = httpx.Client(
            base_url=membership.api_url,
            headers={"Authorization": f"Bearer {membership.credential}"},
            timeout=PATIENCE,
            trust_env=False,
            transport=transport,
        )

    def script(self, spec: MachineSpec) -> bytes:
        """The script that the spec names, proved by its SHA-256."""
        script = self._fetch(
            f"user-data/{spec.id}", of_user_data(spec.id), f"the user_data of {spec.name}", spec.project_id
        )
        if hashlib.sha256(script).hexdigest() != spec.user_data:
            raise Superseded(f"instance {spec.name} has another user_data by now")
        return script

    def secrets(self, spec: MachineSpec) -> Secrets:
        """The values of the secrets that the spec names, as they were sealed for this placement."""
        values = self._given(spec)
        if missing := spec.secrets.keys() - values.keys():
            raise Superseded(f"instance {spec.name} has other secrets by now: {', '.join(sorted(missing))} are missing")
        return {name: values[name].encode() for name in spec.secrets}

    def login(self, wanted: MachineSpec | ImageWanted) -> Login:
        """With what the image of a machine is pulled, or one that is being imported."""
        if isinstance(wanted, MachineSpec):
            told = self._given(wanted).get(REGISTRY)
            if told is None:
                raise Superseded(f"instance {wanted.name} has no login of a registry any more")
        elif wanted.login_of is None or wanted.project_id is None:
            raise Superseded(f"no login of a registry is given for image {wanted.reference}")
        else:
            path, purpose = f"registry-logins/{wanted.login_of}", of_login(wanted.login_of)
            told = self._fetch(path, purpose, f"the login for image {wanted.reference}", wanted.project_id).decode()
        login: Login = orjson.loads(told)
        return login

    def git_login(self, spec: WorkspaceSpec) -> GitLogin:
        """With what the workspace is fetched."""
        path, purpose = f"git-logins/{spec.id}", of_git_login(spec.id)
        told = self._fetch(path, purpose, f"the credential of workspace {spec.name}", spec.project_id)
        return GitLogin.model_validate_json(told)

    def _given(self, spec: MachineSpec) -> dict[str, str]:
        path, purpose = f"secrets/{spec.id}", of_secrets(spec.id, spec.generation)
        what = f"the secrets of {spec.name}"
        found: dict[str, str] = orjson.loads(
            self._fetch(path, purpose, what, spec.project_id, generation=str(spec.generation))
        )
        return found

    def _fetch(self, path: str, purpose: str, what: str, project_id: UUID, **asked: str) -> bytes:
        try:
            answer = self._http.get(f"/hosts/{path}", params={"project_id": str(project_id), **asked})
            if answer.status_code == httpx.codes.NOT_FOUND:
                raise Superseded(f"{what}: not for this host any more")
            sealed = str(answer.raise_for_status().json()["data"]["sealed"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise Unavailable(f"the API does not give {what}: {error}") from error
        return unseal(sealed, purpose=purpose, private_key=self._private_key)
