"""The keys that this API process signs with."""

from __future__ import annotations

from fastapi import FastAPI
from sqlalchemy import select

from model.errors import Unavailable
from model.keyring import Keyring
from model.projects import Installation
from model.settings import Settings
from model.tokens import Tokens


def keyring(settings: Settings) -> Keyring:
    """Raises Unavailable where the process has no master keys."""
    if settings.master_keys is None:
        raise Unavailable("this API has no CAIRN_MASTER_KEYS")
    return Keyring(settings.master_keys.get_secret_value())


async def tokens(app: FastAPI) -> Tokens:
    """Access tokens of this installation. Raises Unavailable where the process has no master keys."""
    settings: Settings = app.state.settings
    found: Tokens | None = getattr(app.state, "signing", None)
    if found is None:
        if settings.master_keys is None:
            raise Unavailable("nobody can log in: this API has no CAIRN_MASTER_KEYS")
        async with app.state.engine.connect() as connection:
            installation = (await connection.execute(select(Installation.id))).scalar_one()
        found = app.state.signing = Tokens(Keyring(settings.master_keys.get_secret_value()), str(installation))
    return found
