"""Stand-ins for the activities of turns, on the stage of the other plans."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio import activity

from model.base import new_id
from model.chat import Turn
from model.workflows import Order

if TYPE_CHECKING:
    from tests.workflows.stage import Stage


class ChatControl:
    """Of the control queue."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @activity.defn(name="chat.begin")
    async def begin(self, order: Order) -> Turn:
        await self._stage.play()
        return Turn(order=order, message_id=new_id())


class ChatApi:
    """Of the APIs' queue of turns."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @activity.defn(name="chat.deliver")
    async def deliver(self, turn: Turn) -> None:
        await self._stage.play()

    @activity.defn(name="chat.cancel")
    async def cancel(self, turn: Turn) -> None:
        await self._stage.play()
