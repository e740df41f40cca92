"""What instances use: measured by their agents, kept coarser the older it is."""

from __future__ import annotations

import datetime as dt
from uuid import UUID

from sqlalchemy import BigInteger, Index
from sqlalchemy.orm import Mapped, mapped_column

from model.base import Base, Frozen

#: Agents measure this often.
FINEST = 10
#: Resolution in seconds → how long samples of it are kept.
KEPT = {FINEST: dt.timedelta(hours=1), 60: dt.timedelta(hours=24), 3600: dt.timedelta(days=30)}
#: A sample may come so late; what agents still hold from an outage is older than BUFFERED at no time.
LATE = dt.timedelta(seconds=170)
BUFFERED = dt.timedelta(seconds=120)
#: Clocks of hosts may be ahead by this.
EARLY = dt.timedelta(seconds=30)


class Reading(Frozen):
    """What a running machine has used so far, as its engine says."""

    engine_id: str
    id: UUID
    project_id: UUID
    generation: int
    #: Seconds on the engine's clock: only differences mean something.
    at: float
    #: CPU time since the machine's start, in seconds of one CPU.
    cpu_seconds: float
    #: Without what the kernel may drop (its cache of files).
    memory_bytes: int
    pids: int
    #: Sums since the machine's start.
    rx_bytes: int
    tx_bytes: int
    read_bytes: int
    written_bytes: int


class Sample(Base):
    """The mean over ``seconds`` from ``at`` on; byte counters are sums since the machine's start.

    No foreign key: it would lock instances at every insert, and make samples wait for steps. Only what the
    database finds in ``instances`` is written, and what outlives its instance ends by its age.
    """

    __tablename__ = "samples"

    project_id: Mapped[UUID]
    instance_id: Mapped[UUID] = mapped_column(primary_key=True)
    seconds: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[dt.datetime] = mapped_column(primary_key=True)
    #: Of one CPU: two busy ones are 200.
    cpu_percent: Mapped[float]
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    pids: Mapped[int]
    rx_bytes: Mapped[int] = mapped_column(BigInteger)
    tx_bytes: Mapped[int] = mapped_column(BigInteger)
    read_bytes: Mapped[int] = mapped_column(BigInteger)
    written_bytes: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (Index("ix_samples_age", "seconds", "at"),)
