"""How many requests who may send: the counts that API processes share."""

from __future__ import annotations

import datetime as dt
from typing import Literal, NamedTuple

from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base

#: Of routes: what only looks, what changes something, what makes somebody known, what stays open.
RouteClass = Literal["read", "write", "auth", "streams"]


class Rate(NamedTuple):
    """``most`` requests in ``seconds``."""

    most: int
    seconds: int


class RateLimit(Base):
    """What has been given out of one window of one bucket. Not logged: after a crash of the server counting begins
    anew, and nothing is lost that was worth a write to disk."""

    __tablename__ = "rate_limits"

    bucket: Mapped[str] = mapped_column(primary_key=True)
    #: Requests that processes have taken upon themselves to allow; and how many the last of them took.
    taken: Mapped[int]
    given: Mapped[int]
    ends_at: Mapped[dt.datetime]

    __table_args__ = ({"prefixes": ["UNLOGGED"], "postgresql_with": {"fillfactor": 50}},)


def rate(notation: str) -> Rate | None:
    """Of "600/minute", "10 per 2 seconds"; None of "" and "0", which are no limit. Raises ValueError."""
    if notation.strip() in ("", "0"):
        return None
    from limits import parse  # what it needs is large, and only the API counts requests

    found = parse(notation)
    if found.amount < 1:
        raise ValueError("a rate of none allows nothing; 0 by itself is no limit")
    return Rate(found.amount, found.get_expiry())
