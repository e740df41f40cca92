"""Who needs which file of the blob store.

A file goes when the last row that names it goes. Whoever is about to store one names it in a row first, and whoever
removes one looks at the rows and removes it under the same lock: so a file that somebody is storing again at that
moment is either kept, or stored after it was removed.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from drivers.blobs import Blobs

#: Until the end of the transaction; the number makes the digest's lock differ from what else may be locked so.
HOLD = text("SELECT pg_advisory_xact_lock(1768777063, hashtext(:digest))")
CLAIM = text(
    "UPDATE images SET digest = :digest WHERE id = :id AND (source = 'url' AND status = 'importing') RETURNING id"
)
# One that failed waits again: another state, which its version tells.
CLAIM_UPLOAD = text(
    "UPDATE images SET digest = :digest, status = 'pending', error = NULL, updated_at = now(), "
    "version = version + CASE status WHEN 'error' THEN 1 ELSE 0 END "
    "WHERE id = :id AND source = 'upload' AND status IN ('pending', 'error') RETURNING id"
)
# The database would end a transaction that stands still for a few seconds, and its lock with it, while a store that is
# slow removes the file. It still notices a machine that went away.
_PATIENT = text(
    """
    SELECT set_config('idle_in_transaction_session_timeout', '0', true), set_config('tcp_keepalives_idle', '30', true),
        set_config('tcp_keepalives_interval', '10', true), set_config('tcp_keepalives_count', '3', true)
    """
)
# A failed import needs nothing; what is being deleted is about to need nothing.
_KEPT = "source <> 'registry' AND status IN ('pending', 'importing', 'available', 'deleting')"
_NEEDED = text(
    f"SELECT EXISTS (SELECT FROM images WHERE digest = :digest AND id IS DISTINCT FROM :but AND {_KEPT})"  # noqa: S608 - nothing but text of this module
)
_ALL_NEEDED = text(f"SELECT DISTINCT digest FROM images WHERE digest IS NOT NULL AND {_KEPT}")  # noqa: S608 - likewise


def parameters(image_id: UUID, digest: str) -> dict[str, object]:
    """Of CLAIM."""
    return {"id": image_id, "digest": digest}


def all_needed(session: Session) -> set[str]:
    """Digests of the files that images need at this moment."""
    return set(session.execute(_ALL_NEEDED).scalars())


def remove_unneeded(session: Session, blobs: Blobs, digest: str, but: UUID | None = None) -> bool:
    """Remove a file that no image but ``but`` needs; whether it was removed.

    The one transaction that is held during a call to something else: the lock must outlast the removal, however long
    that takes (stores have time-outs of their own).
    """
    session.execute(HOLD, {"digest": digest})
    if session.execute(_NEEDED, {"digest": digest, "but": but}).scalar_one():
        return False
    session.execute(_PATIENT)
    blobs.remove(digest)
    return True
