#!/bin/sh
# The image reads its password from the environment; it stands there of this process alone.
set -eu
POSTGRES_PWD=$(cat /run/secrets/temporal-password)
export POSTGRES_PWD
exec /etc/temporal/entrypoint.sh
