"""How host agents show who they are.

An agent has a credential of its own, which opens nothing else: it reads and writes its own hosts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request, Response, Security
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api import limits
from api.authentication import check_body, key_of
from model.errors import Unauthenticated
from model.hosts import Host
from model.secrets import digest


class JoiningRoute(APIRoute):
    """Who joins has no API key: what is wrong with its body is said without looking for one."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_joining(request: Request) -> Response:
            request.state.authenticated = True
            return await handle(request)

        return handle_joining


class MemberRoute(APIRoute):
    """For agents that have joined. A body that is no JSON is found before its sender was asked who it is: what is
    wrong with it is said to those only who show a host's credential."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_member(request: Request) -> Response:
            try:
                return await handle(request)
            except (RequestValidationError, HTTPException):
                if not getattr(request.state, "authenticated", False):
                    async with request.app.state.engine.connect() as connection:
                        await _credential(request, connection)
                    request.state.authenticated = True
                raise

        return handle_member


class Agent:
    """An authenticated agent, and its open transaction."""

    def __init__(self, connection: AsyncConnection, credential: bytes) -> None:
        self.connection = connection
        self.credential = credential


async def _connected(request: Request) -> AsyncIterator[AsyncConnection]:
    """A transaction that belongs to no project."""
    engine: AsyncEngine = request.app.state.engine
    request.state.authenticated = True  # by what the agent shows, not by an API key
    await check_body(request)
    connection = engine.connect()
    try:
        yield await connection.start()
        if not connection.closed:
            await connection.commit()
    finally:
        await connection.close()


_documented = HTTPBearer(auto_error=False, scheme_name="HostCredential")


async def _agent(
    request: Request,
    connection: Annotated[AsyncConnection, Depends(_connected, scope="function")],
    _documented_as: Annotated[Any, Security(_documented)],
) -> Agent:
    return Agent(connection, await _credential(request, connection))


async def _credential(request: Request, connection: AsyncConnection) -> bytes:
    """The digest of what the agent shows of itself. Raises Unauthenticated where no host has it, once
    the connection is given back."""
    credential = digest(key_of(request))
    known = await connection.execute(select(Host.id).where(Host.credential == credential).limit(1))
    if known.one_or_none() is None:
        await connection.close()  # nothing is held while the counts are asked for
        await limits.count_stranger(request)
        raise Unauthenticated("the host's credential is not valid: has the host been removed, or joined anew?")
    return credential


Connected = Annotated[AsyncConnection, Depends(_connected, scope="function")]
Authenticated = Annotated[Agent, Depends(_agent, scope="function")]
