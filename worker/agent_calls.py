"""What an agent serves of the agents of work sessions: requests into sandboxes; see ``model.streams``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from drivers.calls import Answer, Calls
from model.errors import NotFound, ValidationFailed
from model.streams import Call
from model.tickets import Ticket

Pull = Callable[[Any], AsyncIterator[Any]]
#: Opens a stream of a thing, and answers with what is pulled from it.
Stream = Callable[[UUID, Callable[[], Any], Pull], Awaitable[Response]]


class CallRoutes:
    """``calls``: by host."""

    def __init__(self, calls: Mapping[UUID, Calls]) -> None:
        self._calls = calls

    def routes(
        self,
        check: Callable[[Request, Ticket], None],
        read: Callable[[Request], Awaitable[bytes]],
        streamed: Stream,
        pulled: Pull,
    ) -> list[Route]:
        """``check``: raises Unauthenticated where the request's ticket is for something else."""

        async def call(request: Request) -> Response:
            machine: UUID = request.path_params["instance"]
            check(request, Ticket(instance=machine, verb="call"))
            host = request.path_params["host"]
            if host not in self._calls:
                raise NotFound("this agent does not serve this host")
            try:
                asked = Call.model_validate_json(await read(request))
            except ValidationError as error:
                raise ValidationFailed(f"body: {error.errors()[0]['msg']}", fields=[]) from None
            opened: list[Answer] = []

            def start() -> Answer:
                opened.append(self._calls[host].call(machine, asked))
                return opened[0]

            answer = await streamed(machine, start, pulled)
            answer.headers["x-call-status"] = str(opened[0].status)
            return answer

        return [Route("/hosts/{host:uuid}/instances/{instance:uuid}/call", call, methods=["POST"])]
