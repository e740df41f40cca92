"""Which webhooks have something to deliver, and the runs that deliver it."""

from __future__ import annotations

import asyncio

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from temporalio.client import Client

from activities.chores import Chore, start
from activities.database import transaction
from model.events import LAST
from model.webhooks import WebhookRef

#: Webhooks that are started at once.
MOST_DUE = 500
# What has something to deliver now, and nobody delivers it; first what has waited longest. Its cursor alone says
# little: most events are not wanted.
_DUE = text(
    """
    SELECT w.project_id, w.id FROM webhooks w
    LEFT JOIN LATERAL (
        SELECT d.next_attempt_at AS since FROM webhook_deliveries d WHERE d.webhook_id = w.id AND d.state = 'pending'
        ORDER BY d.epoch, d.xid, d.event_id LIMIT 1
    ) pending ON true
    LEFT JOIN LATERAL (
        SELECT e.created_at AS since FROM events e, jsonb_array_elements_text(w.events) p
        WHERE pending.since IS NULL
        AND e.project_id = w.project_id AND (e.epoch, e.xid, e.id) > (w.epoch, w.xid, w.number)
        AND (p IN ('*', e.type) OR (right(p, 1) = '.' AND starts_with(e.type, p)))
        ORDER BY e.epoch, e.xid, e.id LIMIT 1
    ) wanted ON true
    WHERE w.active AND (w.in_hand_until < now()) IS NOT FALSE AND coalesce(pending.since, wanted.since) <= now()
    ORDER BY coalesce(pending.since, wanted.since), w.id LIMIT :most
    """
)
# Events that a webhook does not want are passed over here, so that they are looked at once.
_PASS_OVER = text(
    """
    UPDATE webhooks w SET epoch = s.epoch, xid = s.xid, number = :last
    FROM (SELECT current_epoch() AS epoch, pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1 AS xid) s
    WHERE (w.epoch, w.xid) < (s.epoch, s.xid) AND w.id IN (
        SELECT v.id FROM webhooks v WHERE v.active AND EXISTS (
            SELECT FROM events e
            WHERE e.project_id = v.project_id AND (e.epoch, e.xid, e.id) > (v.epoch, v.xid, v.number)
        ) AND NOT EXISTS (
            SELECT FROM events e, jsonb_array_elements_text(v.events) p
            WHERE e.project_id = v.project_id AND (e.epoch, e.xid, e.id) > (v.epoch, v.xid, v.number)
            AND (p IN ('*', e.type) OR (right(p, 1) = '.' AND starts_with(e.type, p)))
        ) FOR UPDATE SKIP LOCKED
    )
    """
)


def due(session: Session) -> list[WebhookRef]:
    """The webhooks that have something to deliver now."""
    session.execute(_PASS_OVER, {"last": LAST})
    return [
        WebhookRef(project_id=row.project_id, webhook_id=row.id) for row in session.execute(_DUE, {"most": MOST_DUE})
    ]


def due_runs(session: Session, *, wake: bool) -> list[Chore]:
    """A run for each of them. ``wake``: one that waits for its next attempt looks again."""
    signal = "look" if wake else None
    return [
        Chore("DeliverWebhook", f"webhook-{ref.webhook_id}", "Deliver events to a webhook", [ref], signal)
        for ref in due(session)
    ]


async def start_due(engine: Engine, client: Client, *, wake: bool) -> int:
    """Start them."""

    def find() -> list[Chore]:
        with transaction(engine) as session:
            return due_runs(session, wake=wake)

    found = await asyncio.to_thread(find)
    for chore in found:
        await start(client, chore)
    return len(found)
