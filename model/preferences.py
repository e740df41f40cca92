"""What a user wants remembered from one program or device to the next: small JSON values by key."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, Now

#: Keys of a user; bytes of a value, as JSON.
MOST_KEYS, MOST_VALUE = 100, 8192


class Preference(Base):
    __tablename__ = "preferences"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Any] = mapped_column(JSONB())
    updated_at: Mapped[Now]
