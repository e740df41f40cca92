"""What is said to the agent of a session: stored first, then delivered by a workflow; answers as they come."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import orjson
import structlog
from fastapi import APIRouter, Request, Response
from sqlalchemy import ColumnElement, case, func, insert, literal_column, select, text
from sqlalchemy.exc import SQLAlchemyError

from api.accept import Acceptance, Show
from api.authentication import may
from api.bells import Bells, wait_for
from api.caller import Caller
from api.chat_schemas import ChatCreate, ChatView, MessageView
from api.envelope import Envelope, Nothing, answer
from api.errors import RESPONSES, also
from api.open_streams import Held, OpenStreams
from api.paging import Paging, page_of
from api.resources import one
from api.streamed import Bounded
from api.work_session_changes import begin, check_status, order_of_session
from api.work_session_rows import lock, mine
from api.workflows import WorkflowView, ask_to_end
from api.workflows import find as find_workflow
from api.workflows import view as workflow_view
from model.base import new_id
from model.chat import CHAT, END, OPEN, Message, MessageStatus, Role
from model.errors import InvalidState, ValidationFailed
from model.sessions import SessionStatus, WorkSession
from model.settings import Settings

router = APIRouter(prefix="/v1/sessions/{session_id}", tags=["sessions"], responses=RESPONSES)

#: Characters of an answer that a list shows.
SHOWN = 65_536
#: Events that are read at once; the next only when these were taken.
BATCH = 64
LOOK_SECONDS, QUIET_SECONDS = 1.0, 15.0
_ID = re.compile(r"(\d{1,9})\.(\d{1,9})")
_SAID: ColumnElement[str] = literal_column(
    "(SELECT string_agg(c.said, '' ORDER BY c.number) FROM (SELECT number, data ->> 'text' AS said,"
    " coalesce(sum(length(data ->> 'text')) OVER (ORDER BY number ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)"
    " AS before FROM message_chunks WHERE message_id = messages.id AND kind = 'text') c"
    " WHERE c.before <= 65536)"  # SHOWN: one more piece says that there is more
)
_content = func.coalesce(case((Message.role == Role.USER, Message.content), else_=_SAID), "")
_query = select(
    *(column for column in Message.__table__.c if column.name != "content"),
    func.left(_content, SHOWN).label("content"),
    (func.length(_content) > SHOWN).label("truncated"),
)
# In the order in which they were committed: a prompt comes before what answers it, and a turn after the other.
_EVENTS = text(
    """
    SELECT number, 0 AS part, 'prompt' AS kind, jsonb_build_object('text', content) AS data FROM messages
    WHERE session_id = :session AND role = 'user' AND (number, 0) > (:number, :part)
    UNION ALL
    SELECT m.number, c.number, c.kind, c.data FROM messages m JOIN message_chunks c ON c.message_id = m.id
    WHERE m.session_id = :session AND m.number >= :number AND (m.number, c.number) > (:number, :part)
    ORDER BY 1, 2 LIMIT :most
    """
)
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}},
    202: {"model": Envelope[ChatView]},
}
log = structlog.get_logger()


class Position(NamedTuple):
    """Of an event of a session."""

    number: int
    part: int


@router.post(
    "/chat",
    response_class=Response,
    responses=_ANSWERS | also(409, 429),
)
async def chat(
    request: Request, session_id: UUID, caller: Annotated[Caller, may("sessions:use")], body: ChatCreate
) -> Response:
    """Tell the session's agent something, and follow what it answers, as server-sent events, to the end of that.

    The prompt is stored before it is delivered, and delivered once; the answer comes also where nobody follows it: what
    breaks off goes on with `GET …/stream` and `Last-Event-ID`. With `Accept: application/json` it is 202 at once, with
    both messages.
    """
    acceptance = Acceptance(request, caller)
    session = await lock(caller, session_id)
    if (answered := await acceptance.answered_before(session_id, body.model_dump())) is None:
        if session.agent_id is None:
            raise InvalidState(
                f"session {session.name} has no agent: make one with agent_id (POST /v1/workspaces/{{id}}/sessions)",
                state="no_agent",
            )
        await check_status(caller, session, {SessionStatus.READY})
        order = order_of_session(request, caller, acceptance, CHAT, session_id, session.name)
        await _insert(caller, session_id, order.workflow_id, body.prompt)
        await begin(caller, acceptance, session, order, SessionStatus.RUNNING, SessionStatus.RUNNING)
    workflow_id = acceptance.workflow_id if answered is None else answered.workflow_id
    held = None if _wants_json(request) else _hold(request, caller)
    try:
        told = await _both(caller, workflow_id)
        accepted = await acceptance.answer(_showing(workflow_id), answered, told)
    except BaseException:
        if held is not None:
            held.close()
        raise
    if held is None:
        return accepted
    number = told["prompt"]["number"]
    events = _events(request, caller, session_id, Position(number, -1), held, until=number + 1)
    streamed = Bounded(events, "text/event-stream", held.close)
    streamed.headers["location"] = accepted.headers["location"]
    return streamed


@router.get("/stream", response_class=Response, responses=also(429))
async def stream(request: Request, session_id: UUID, caller: Annotated[Caller, may("sessions:use")]) -> Response:
    """What is said in the session, as server-sent events: prompts, and the events of their answers, each of which ends
    with `end`. From after `Last-Event-ID`; without it from the turn that is under way, else from now on. `0.0`: all.
    """
    await one(caller, select(WorkSession.id).where(mine(caller, session_id)), "session", session_id)
    position = _asked(request) or await _now(caller, session_id)
    await caller.commit()
    held = _hold(request, caller)
    return Bounded(_events(request, caller, session_id, position, held), "text/event-stream", held.close)


@router.get("/messages", response_model=Envelope[list[MessageView]])
async def messages(
    request: Request, session_id: UUID, caller: Annotated[Caller, may("sessions:use")], page: Paging
) -> Response:
    """Prompts and answers of the session, newest first."""
    await one(caller, select(WorkSession.id).where(mine(caller, session_id)), "session", session_id)
    found = _query.where(Message.project_id == caller.project_id, Message.session_id == session_id)
    return await page_of(request, caller, found, Message.__table__.c.id, page, _view)


@router.post("/chat/cancel", status_code=202, response_model=Envelope[WorkflowView], responses=also(409))
async def cancel(
    request: Request, session_id: UUID, caller: Annotated[Caller, may("sessions:use")], body: Nothing | None = None
) -> Response:
    """Call off the turn that is under way: its agent is told so, and what it has said until then stays."""
    session = await lock(caller, session_id)
    its = (Message.project_id == caller.project_id) & (Message.session_id == session_id)
    open_ = select(Message.workflow_id).where(its, Message.status.in_(OPEN))
    workflow_id = (await caller.execute(open_)).scalar_one_or_none()
    if workflow_id is None:
        raise InvalidState(f"the agent of session {session.name} has nothing to do", state=session.status)
    caller.changed("session", session_id, after={"name": session.name, "chat": "cancelled"}, workflow_id=workflow_id)
    row = await ask_to_end(request, caller, await find_workflow(caller, workflow_id))
    settings: Settings = request.app.state.settings
    headers = {"Location": f"/v1/workflows/{workflow_id}"}
    return answer(request, workflow_view(row, settings), 202, headers=headers, workflow_id=str(workflow_id))


async def _insert(caller: Caller, session_id: UUID, workflow_id: UUID, prompt: str) -> None:
    """The prompt and its answer, behind all that was said. The caller has locked the session."""
    last = select(func.coalesce(func.max(Message.number), 0)).where(Message.session_id == session_id)
    number = (await caller.execute(last)).scalar_one()
    both = {"project_id": caller.project_id, "session_id": session_id, "workflow_id": workflow_id}
    await caller.execute(
        insert(Message).values(
            **both,
            id=new_id(),
            number=number + 1,
            role=Role.USER,
            content=prompt,
            status=MessageStatus.COMPLETED,
            finished_at=func.now(),
        )
    )
    await caller.execute(
        insert(Message).values(**both, id=new_id(), number=number + 2, role=Role.AGENT, status=MessageStatus.PENDING)
    )


def _showing(workflow_id: UUID) -> Show:
    async def show(caller: Caller, _session_id: UUID) -> dict[str, Any]:
        return await _both(caller, workflow_id)

    return show


async def _both(caller: Caller, workflow_id: UUID) -> dict[str, Any]:
    its = (Message.project_id == caller.project_id) & (Message.workflow_id == workflow_id)
    prompt, said = await caller.execute(_query.where(its).order_by(Message.number))
    return {"prompt": _view(prompt), "answer": _view(said)}


def _view(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in MessageView.model_fields}


def _wants_json(request: Request) -> bool:
    accepts = request.headers.get("accept", "")
    return "application/json" in accepts and "text/event-stream" not in accepts


def _hold(request: Request, caller: Caller) -> Held:
    streams: OpenStreams = request.app.state.open_streams
    return streams.hold(caller, "sessions:use", events=True)


def _asked(request: Request) -> Position | None:
    """Raises ValidationFailed."""
    told = request.headers.get("last-event-id")
    if not told:
        return None
    found = _ID.fullmatch(told)
    if found is None:
        problem = "expected the id of an event of this stream, as 3.14"
        raise ValidationFailed(f"Last-Event-ID: {problem}", fields=[{"field": "Last-Event-ID", "message": problem}])
    return Position(int(found[1]), int(found[2]))


async def _now(caller: Caller, session_id: UUID) -> Position:
    """Before the prompt whose answer is still to come; else behind all that was said."""
    its = (Message.project_id == caller.project_id) & (Message.session_id == session_id)
    open_ = select(Message.number).where(its, Message.status.in_(OPEN))
    if (number := (await caller.execute(open_)).scalar_one_or_none()) is not None:
        return Position(number - 1, -1)
    last = select(func.coalesce(func.max(Message.number), 0)).where(its)
    return Position((await caller.execute(last)).scalar_one() + 1, -1)


async def _events(
    request: Request, caller: Caller, session_id: UUID, position: Position, held: Held, until: int | None = None
) -> AsyncIterator[bytes]:
    """What comes behind ``position``, read only as fast as it is taken. ``until``: to the end of this message."""
    bells: Bells = request.app.state.bells
    quiet = 0.0
    yield b"retry: 1000\n\n"
    with bells.listening(str(session_id)) as bell:
        while not (request.app.state.stopping.is_set() or held.revoked.is_set()):
            gone = False
            try:
                async with caller.again() as connection:
                    state = select(WorkSession.status).where(WorkSession.id == session_id)
                    status = (await connection.execute(state)).scalar_one_or_none()
                    about = {"session": session_id, "most": BATCH, **position._asdict()}
                    rows = (await connection.execute(_EVENTS, about)).all()
                    gone = status in (None, SessionStatus.REMOVED) and not rows
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.info("chat.database_away", error=str(error).partition("\n")[0])
                rows = []
            for row in rows:
                position = Position(row.number, row.part)
                told = (row.number, row.part, row.kind.encode(), orjson.dumps(row.data))
                yield b"id: %d.%d\nevent: %s\ndata: %s\n\n" % told
                if row.kind == END and row.number == until:
                    return
            if gone:
                return
            if rows or await wait_for(bell, LOOK_SECONDS):
                quiet = 0.0
            else:
                quiet += LOOK_SECONDS
            if quiet >= QUIET_SECONDS:
                quiet = 0.0
                yield b": still here\n\n"
