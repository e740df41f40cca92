"""People of the API's tests: registered over HTTP, with what they log in with."""

from __future__ import annotations

from typing import Any

import httpx

from tests.api.conftest import Api

PASSWORD = "correct horse battery staple"
Json = dict[str, Any]


async def register(api: Api, name: str, **more: Any) -> Json:
    """The user ``<name>@example.org``."""
    body = {"email": f"{name}@example.org", "password": PASSWORD, "name": name} | more
    async with nobody(api) as http:
        answer = await http.post("/v1/auth/register", json=body)
    assert answer.status_code == 201, answer.text
    user: Json = answer.json()["data"]
    return user


async def login(api: Api, name: str, password: str = PASSWORD) -> httpx.Response:
    async with nobody(api) as http:
        return await http.post("/v1/auth/login", json={"email": f"{name}@example.org", "password": password})


async def logged_in(api: Api, name: str) -> Json:
    """The tokens of a user who registers for it."""
    await register(api, name)
    answer = await login(api, name)
    assert answer.status_code == 200, answer.text
    granted: Json = answer.json()["data"]
    return granted


def nobody(api: Api) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=api.url, timeout=30)


def bearing(api: Api, token: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=api.url, headers={"Authorization": f"Bearer {token}"}, timeout=30)
