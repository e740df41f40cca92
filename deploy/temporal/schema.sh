#!/bin/sh
# Temporal's databases and their schemas; what is there already is left, and brought up to date.
set -eu
SQL_PASSWORD=$(cat /run/secrets/temporal-password)
export SQL_PASSWORD
until nc -z "$SQL_HOST" "$SQL_PORT"; do sleep 1; done
for part in temporal visibility; do
    name=temporal
    if [ "$part" = visibility ]; then name=temporal_visibility; fi
    temporal-sql-tool --db "$name" create
    temporal-sql-tool --db "$name" setup-schema -v 0.0
    temporal-sql-tool --db "$name" update-schema -d "/etc/temporal/schema/postgresql/v12/$part/versioned"
done
