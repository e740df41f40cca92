"""The plan of a turn: a prompt is delivered to the agent of a session, and answered."""

from __future__ import annotations

from temporalio import workflow

from workflows.options import REMOVE, on_chats, on_control, remaining
from workflows.saga import Saga, Undo, carry_out
from workflows.sessions import settling

with workflow.unsafe.imports_passed_through():
    from activities.chats import ChatCalls, ChatRecords
    from model.workflows import Order


@workflow.defn
class ChatTurn:
    """Whatever dies meanwhile, the prompt is delivered once, and the answer goes on where it was. Called off or out of
    time, the agent is told so."""

    @workflow.run
    async def run(self, order: Order) -> None:
        async def plan(saga: Saga) -> None:
            turn = await saga.step(ChatRecords.begin, order, on_control(remaining(order)))
            # What is left of it in the sandbox ends with that, at the latest.
            stop = Undo(ChatCalls.cancel, turn, on_chats(REMOVE), may_fail=True)
            # An activity of an event loop: as a method, what it answers would have to be awaited.
            _: object = await saga.step(ChatCalls.deliver, turn, on_chats(remaining(order)), undo=[stop])

        await carry_out(order, plan, settling(order))


PLANS = [ChatTurn]
