"""Lists: newest first, by keyset, so that a page costs the same however long the list is."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Query, Request, Response
from sqlalchemy import ColumnElement, Row, Select

from api.caller import Caller
from api.envelope import answer

#: 16 bytes in base64, as ``_encode`` writes them.
_CURSOR = r"^[A-Za-z0-9_-]{21}[AQgw]$"


class Page:
    """``?limit=`` (1 to 500, default 50) and ``?cursor=`` (a ``meta.next_cursor``)."""

    def __init__(
        self,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        cursor: Annotated[str | None, Query(pattern=_CURSOR)] = None,
    ) -> None:
        self.limit = limit
        self.before = _decode(cursor) if cursor is not None else None


Paging = Annotated[Page, Depends()]
#: ``?name=``: only what is called just so.
OfName = Annotated[str | None, Query(max_length=63, pattern=r"^[^\x00]*$")]

#: ``?label=k=v``.
WithLabel = Annotated[str | None, Query(max_length=320, pattern=r"^[^=\x00]+=[^\x00]*$")]


def labelled(label: str) -> dict[str, str]:
    """What has a label that was asked for contains this."""
    key, _, value = label.partition("=")
    return {key: value}


async def page_of(
    request: Request,
    caller: Caller,
    query: Select[Any],
    key: ColumnElement[UUID],
    page: Page,
    view: Any,
    *,
    first: Sequence[Any] = (),
) -> Response:
    """Answer one page of ``query``, ordered by ``key``; ``view`` turns a row into its JSON. ``first``: what stands
    before the first row, on its page."""
    if page.before is not None:
        query = query.where(key < page.before)
    rows = (await caller.execute(query.order_by(key.desc()).limit(page.limit + 1))).all()
    more = len(rows) > page.limit
    rows = rows[: page.limit]
    cursor = _encode(rows[-1]) if more else None
    return answer(request, [*(first if page.before is None else ()), *map(view, rows)], next_cursor=cursor)


def _encode(row: Row[Any]) -> str:
    return base64.urlsafe_b64encode(row.id.bytes).decode().rstrip("=")


def _decode(cursor: str) -> UUID:
    return UUID(bytes=base64.urlsafe_b64decode(cursor + "=="))
