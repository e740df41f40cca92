"""What lies sealed in a database, opened for a test."""

from __future__ import annotations

from typing import Any

from model.envelope import Encrypted, decrypt, unwrap
from model.keyring import Keyring
from model.vault import SealedValue
from tests.services import Database


def sealed_value(database: Database, keyring: Keyring, owner: Any) -> str:
    """What this webhook or cron job signs with, or the script of this instance or group. Fails where there is not just
    one."""
    row = database.one(
        "SELECT s.*, k.master_key_id, k.wrapped FROM sealed_values s JOIN data_keys k ON k.id = s.data_key_id"
        " WHERE %s IN (s.webhook_id, s.instance_id, s.cron_job_id, s.group_id)",
        owner,
    )
    key = unwrap(keyring, row["master_key_id"], row["wrapped"], project_id=row["project_id"], key_id=row["data_key_id"])
    of = {name: row[name] for name in ("id", "project_id", "webhook_id", "instance_id", "cron_job_id", "group_id")}
    return decrypt(key, Encrypted(row["nonce"], row["ciphertext"]), SealedValue(**of).what).decode()
