"""Being logged in: the tokens that a context keeps, and how they are renewed."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from typing import Any

import httpx

from cli import config
from cli.errors import CommandFailed, Exit, of_answer

#: A token that ends sooner is renewed before it is used.
SPARE_SECONDS = 30
#: In a context's table.
FIELDS = ("access_token", "refresh_token", "expires_at", "email")
#: The same, of one that a login chose: what was chosen before, "" for nothing.
CHOSEN_OVER = "chosen_over"


class SessionAuth(httpx.Auth):
    """Sends the access token of a context, and renews it when it ends, or is refused.

    A refresh token is good for one use, and a second use ends the session: so of several programs that renew at once
    one does, holding the lock of the file, and the others take what it got.
    """

    def __init__(self, api_url: str, context: config.Context) -> None:
        self._url = api_url
        self._name = context.name
        self.access = context.access_token or ""
        self._ends = float(context.expires_at or 0)

    @property
    def ends_soon(self) -> bool:
        return time.time() > self._ends - SPARE_SECONDS

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if self.ends_soon:
            yield from self._renew()
        request.headers["Authorization"] = f"Bearer {self.access}"
        answer = yield request
        if answer.status_code == httpx.codes.UNAUTHORIZED and _is_repeatable(request):
            yield from self._renew()
            request.headers["Authorization"] = f"Bearer {self.access}"
            yield request

    def _renew(self) -> Generator[httpx.Request, httpx.Response, None]:
        """Raises CommandFailed where the session has ended."""
        refused: CommandFailed | None = None
        with config.changing() as document:
            kept: Any = document.get("contexts", {}).get(self._name, {})
            if not kept.get("refresh_token"):
                raise _ended()
            if kept.get("access_token") == self.access:
                answer = yield httpx.Request(
                    "POST", f"{self._url}/auth/refresh", json={"refresh_token": str(kept["refresh_token"])}
                )
                # Read, in a flow whose other answers may be streams.
                answer.read()
                if answer.status_code == httpx.codes.OK:
                    kept.update(fields(answer.json()["data"]))
                else:
                    refused = _refused(answer)
                    if answer.status_code == httpx.codes.UNAUTHORIZED:
                        forget(kept)
            self.access, self._ends = str(kept.get("access_token", "")), float(kept.get("expires_at", 0))
        if refused is not None:
            raise refused


def fields(granted: dict[str, Any]) -> dict[str, str]:
    """What a context keeps of the answer to a login or a refresh."""
    return {
        "access_token": granted["access_token"],
        "refresh_token": granted["refresh_token"],
        "expires_at": str(int(time.time()) + int(granted["expires_in"])),
        "email": granted["user"]["email"],
    }


def forget(kept: Any) -> None:
    """Take the session out of a context's table."""
    for name in FIELDS:
        kept.pop(name, None)


def _is_repeatable(request: httpx.Request) -> bool:
    """Not what was read from a file and is gone."""
    try:
        return request.content is not None
    except httpx.RequestNotRead:
        return False


def _refused(answer: httpx.Response) -> CommandFailed:
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        return _ended()
    try:
        return of_answer(answer.status_code, json.loads(answer.content)["error"] or {})
    except (ValueError, KeyError, TypeError):
        return of_answer(answer.status_code, {})


def _ended() -> CommandFailed:
    return CommandFailed("you are not logged in any more", "unauthenticated", Exit.UNREACHABLE, "cairn login")
