"""What is said to agents, and what they answer, as clients write and read it."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.instance_schemas import Text

MOST_PROMPT = 100_000


class ChatCreate(BaseModel):
    """``POST /v1/sessions/{id}/chat``."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"prompt": "Make the tests of src/login.py pass."}]}
    )

    prompt: Annotated[Text, Field(min_length=1, max_length=MOST_PROMPT)]


class ChatError(BaseModel):
    code: str
    message: str


class MessageView(BaseModel):
    id: str
    session_id: str
    #: In its session; an answer follows its prompt. Events of the stream have it at the beginning of their ids.
    number: int
    role: Literal["user", "agent"]
    #: Of an answer, the texts of its events, one behind the other, as far as they have come.
    content: str
    #: There is more than the 65,536 characters that are shown: the stream has all of it.
    truncated: bool
    status: Literal["pending", "running", "completed", "failed", "cancelled"]
    error: ChatError | None
    workflow_id: str
    created_at: dt.datetime
    finished_at: dt.datetime | None


class ChatView(BaseModel):
    """A prompt, and the answer to it."""

    prompt: MessageView
    answer: MessageView
