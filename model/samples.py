"""What instances use: measured by their agents, kept coarser the older it is."""

from __future__ import annotations

import datetime as dt
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base


class Sample(Base):
    """The mean over ``seconds`` from ``at`` on; byte counters are sums since the machine's start."""

    __tablename__ = "samples"

    project_id: Mapped[UUID]
    instance_id: Mapped[UUID] = mapped_column(primary_key=True)
    seconds: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[dt.datetime] = mapped_column(primary_key=True)
    #: Of one CPU: two busy ones are 200.
    cpu_percent: Mapped[float]
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    pids: Mapped[int]
    rx_bytes: Mapped[int] = mapped_column(BigInteger)
    tx_bytes: Mapped[int] = mapped_column(BigInteger)
    read_bytes: Mapped[int] = mapped_column(BigInteger)
    written_bytes: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (
        ForeignKeyConstraint(
            ["project_id", "instance_id"], ["instances.project_id", "instances.id"], ondelete="CASCADE"
        ),
        Index("ix_samples_age", "seconds", "at"),
    )
