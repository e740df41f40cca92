#!/bin/sh
# Run once, when the server's folder is made: one role for Temporal, one for cairn-setup. Nothing else connects as
# the superuser, and neither of these is one.
set -eu
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username postgres \
    --set temporal="$(cat /run/secrets/temporal-password)" --set setup="$(cat /run/secrets/setup-password)" <<'SQL'
CREATE ROLE temporal LOGIN CREATEDB PASSWORD :'temporal';
CREATE ROLE cairn_setup LOGIN CREATEROLE CREATEDB PASSWORD :'setup';
SQL
