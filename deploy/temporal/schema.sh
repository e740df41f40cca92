#!/bin/sh
# Temporal's databases and their schemas; what is there already is left, and brought up to date.
set -eu
SQL_PASSWORD=$(cat /run/secrets/temporal-password)
export SQL_PASSWORD
until nc -z "$SQL_HOST" "$SQL_PORT"; do sleep 1; done
for part in temporal visibility; do
    case $part in temporal) name=temporal ;; *) name=temporal_visibility ;; esac
    temporal-sql-tool --db "$name" create
    # Writes version 0.0, and fails where there is one: then it was done before.
    temporal-sql-tool --db "$name" setup-schema -v 0.0 || true
    temporal-sql-tool --db "$name" update-schema -d "/etc/temporal/schema/postgresql/v12/$part/versioned"
done
