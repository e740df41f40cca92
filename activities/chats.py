"""The steps of turns: claim, deliver the prompt, store the answer, call it off."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sqlalchemy import Engine, exists, func, insert, select
from sqlalchemy.orm import Session
from temporalio import activity

from activities.database import transaction
from activities.runs import RunEnded, claim
from activities.shares import Shares
from model.chat import END, OPEN, Chunk, Message, MessageStatus, Role, Turn
from model.sessions import WorkSession
from model.workflows import NEVER_STARTED, TERMINAL, Failure, Order, Outcome, Workflow

#: The queue of turns, which APIs take up: they alone speak with agents of hosts. It is not that of cron jobs, whose
#: requests are short.
CHATS = "chats"
#: Answers of one project that a process waits for at once; another asks again after so many seconds.
TURNS_OF_PROJECT, TURN_SECONDS = 50, 2.0


class ChatRecords:
    """Turns in the database. Runs on the control queue."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @activity.defn(name="chat.begin")
    def begin(self, order: Order) -> Turn:
        """Claim the run: its prompt is being delivered from now on."""
        with transaction(self._engine, order.project_id) as session:
            claim(session, order)
            answer = find_answer(session, order)
            if answer is None or answer.status not in OPEN:
                raise RunEnded(f"no answer waits for workflow {order.workflow_id}")
            answer.status = MessageStatus.RUNNING
            return Turn(order=order, message_id=answer.id)


class ChatCalls:
    """Turns on their way to agents and back. Runs on the APIs' queue of turns."""

    def __init__(self, deliver: Callable[[Turn], Awaitable[None]], cancel: Callable[[Turn], Awaitable[None]]) -> None:
        self._deliver = deliver
        self._cancel = cancel
        self._places = Shares(TURNS_OF_PROJECT, TURN_SECONDS, "the project's agents answer as much as they may at once")

    @activity.defn(name="chat.deliver")
    async def deliver(self, turn: Turn) -> None:
        """Have the agent answer, and store what it says as it comes. Repeated, it goes on behind what is stored: the
        agent knows the turn by its id, and works on it once.

        Raises AgentFailed, InvalidState, Unsupported, RunEnded; AgentUnavailable, HostUnreachable, OthersFirst.
        """
        with self._places.one(turn.order.project_id):
            await self._deliver(turn)

    @activity.defn(name="chat.cancel")
    async def cancel(self, turn: Turn) -> None:
        """Tell the agent that nobody waits for the turn any more. Success where there is no agent."""
        await self._cancel(turn)


def find_answer(session: Session, order: Order) -> Message | None:
    """The answer's row, which nobody else changes until the commit."""
    its = (Message.project_id == order.project_id) & (Message.workflow_id == order.workflow_id)
    return session.scalars(select(Message).where(its, Message.role == Role.AGENT).with_for_update()).one_or_none()


def settle_answer(session: Session, order: Order, outcome: Outcome, failure: Failure | None) -> None:
    """End the answer of a turn, once."""
    answer = find_answer(session, order)
    if answer is not None and answer.status in OPEN:
        _end(session, answer, outcome, failure)


def call_off_answer(session: Session, work: WorkSession) -> None:
    """End the answer that a session still waits for, whose turn was called off before it had started: by a delete, say,
    that was called off itself."""
    its = (Message.project_id == work.project_id) & (Message.session_id == work.id) & Message.status.in_(OPEN)
    goes_on = exists().where(Workflow.id == Message.workflow_id, Workflow.state.not_in(TERMINAL))
    for answer in session.scalars(select(Message).where(its, ~goes_on).with_for_update()):
        _end(session, answer, "cancelled", NEVER_STARTED)


def _end(session: Session, answer: Message, outcome: Outcome, failure: Failure | None) -> None:
    """With an event of its own behind all others."""
    error = None if failure is None else {"code": failure.code, "message": failure.message}
    answer.status, answer.error, answer.finished_at = MessageStatus(outcome), error, func.now()
    last = select(func.coalesce(func.max(Chunk.number), 0)).where(Chunk.message_id == answer.id)
    end = {
        "message_id": answer.id,
        "number": session.scalars(last).one() + 1,
        "project_id": answer.project_id,
        "kind": END,
        "data": {"status": outcome, "error": error},
    }
    session.execute(insert(Chunk).values(**end))
    session.execute(select(func.pg_notify("cairn", str(answer.session_id))))
