"""Whose an engine object is: deterministic names, and labels that prove ownership."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from drivers.images import engine_reference
from model.base import Frozen
from model.errors import ForeignObject, Superseded
from model.health import HealthCheck
from model.instances import MachineSpec
from model.networks import OPEN, Network

PREFIX = "io.cairn"
USER_PREFIX = f"{PREFIX}.user"
KIND = "instance"
FENCED = f"{PREFIX}.fenced"
#: Its name when it was made: an instance may be given another.
NAME = f"{PREFIX}.name"
#: Its health check, as JSON: agents know from it what to look at.
HEALTH = f"{PREFIX}.health"
#: It runs a script first: the SHA-256 of that.
USER_DATA = f"{PREFIX}.user-data"

#: The names of its variables that stand for secrets, with commas between them.
SECRETS = f"{PREFIX}.secrets"
#: It is the proxy of the load balancer of this id.
BALANCER = f"{PREFIX}.load-balancer"
#: What it reaches, as JSON, where that is not everything: agents know from it whom to serve a proxy.
NETWORK = f"{PREFIX}.network"
#: What its image was called: it is made of the image's id.
IMAGE = f"{PREFIX}.image-name"


def told(labels: Mapping[str, str]) -> dict[str, Any]:
    """What a machine's labels say of what it was made from, as fields of FoundMachine."""
    health = labels.get(HEALTH)
    network = labels.get(NETWORK)
    try:
        project = UUID(labels.get(f"{PREFIX}.project", ""))
    except ValueError:
        project = None
    return {
        "project_id": project,
        "name": labels.get(NAME),
        "fenced": FENCED in labels,
        "labels": {n.removeprefix(f"{USER_PREFIX}."): v for n, v in labels.items() if n.startswith(f"{USER_PREFIX}.")},
        "health_check": HealthCheck.model_validate_json(health) if health else None,
        "network": Network.model_validate_json(network) if network else OPEN,
    }


def machine_name(machine: UUID) -> str:
    """The same name at every attempt: a second create finds the first."""
    return f"cairn-{KIND}-{machine}"


class Owner(Frozen):
    """An installation's host: all that one agent may touch on an engine."""

    installation: UUID
    host_id: UUID

    def labels(self, spec: MachineSpec) -> dict[str, str]:
        """What a machine of ours carries. Users' labels get a prefix of their own."""
        return {f"{USER_PREFIX}.{name}": value for name, value in spec.labels.items()} | {
            f"{PREFIX}.installation": str(self.installation),
            f"{PREFIX}.host": str(self.host_id),
            f"{PREFIX}.kind": KIND,
            f"{PREFIX}.project": str(spec.project_id),
            f"{PREFIX}.id": str(spec.id),
            f"{PREFIX}.generation": str(spec.generation),
            IMAGE: engine_reference(spec.wanted_image),
            NAME: spec.name,
            **({FENCED: "true"} if spec.fenced else {}),
            **({HEALTH: spec.health_check.model_dump_json(exclude_defaults=True)} if spec.health_check else {}),
            **({USER_DATA: spec.user_data} if spec.user_data else {}),
            **({SECRETS: ",".join(sorted(spec.secrets))} if spec.secrets else {}),
            **({BALANCER: str(spec.balancer)} if spec.balancer else {}),
            **({NETWORK: spec.network.model_dump_json()} if spec.network != OPEN else {}),
        }

    def filters(self) -> list[str]:
        """The labels that every machine of this owner carries, as ``name=value``."""
        return [
            f"{PREFIX}.installation={self.installation}",
            f"{PREFIX}.host={self.host_id}",
            f"{PREFIX}.kind={KIND}",
        ]

    def owned(self, name: str, labels: Mapping[str, str]) -> tuple[UUID, int] | None:
        """The id and generation of a machine of this name with these labels, where they prove that it is ours.

        The name is part of the proof: an image that somebody made of a machine of ours has its labels, and so
        has whatever is started from it.
        """
        if not all(labels.get(name) == value for name, _, value in (f.partition("=") for f in self.filters())):
            return None
        try:
            machine, generation = UUID(labels.get(f"{PREFIX}.id", "")), int(labels.get(f"{PREFIX}.generation", ""))
        except ValueError:
            return None
        return (machine, generation) if name == machine_name(machine) else None

    def owned_of(self, name: str, labels: Mapping[str, str]) -> tuple[UUID, int, UUID] | None:
        """The same, and the project that it was made for."""
        ours = self.owned(name, labels)
        try:
            return (*ours, UUID(labels.get(f"{PREFIX}.project", ""))) if ours else None
        except ValueError:
            return None

    def check_adoptable(self, spec: MachineSpec, labels: Mapping[str, str]) -> bool:
        """True: the found object is ``spec``'s own; False: an older one of ours, to be replaced.

        Raises ForeignObject where it is not ours, Superseded where it is newer than the caller.
        """
        found = self.owned(machine_name(spec.id), labels)
        if found is None and self._before_the_move(spec, labels):
            return False
        if found is None:
            raise ForeignObject(
                f"the engine has an object named {machine_name(spec.id)} that this installation did not make; "
                "it was left as it is: remove or rename it, and launch again",
                name=machine_name(spec.id),
            )
        if found[1] > spec.generation:
            raise Superseded(f"generation {found[1]} of {machine_name(spec.id)} is newer than {spec.generation}")
        return found[1] == spec.generation

    def _before_the_move(self, spec: MachineSpec, labels: Mapping[str, str]) -> bool:
        """Whether it is this instance on another host of ours that has the same engine, as an earlier placement."""
        try:
            other = Owner(installation=self.installation, host_id=UUID(labels.get(f"{PREFIX}.host", "")))
        except ValueError:
            return False
        found = other.owned(machine_name(spec.id), labels)
        return found is not None and found[1] < spec.generation
