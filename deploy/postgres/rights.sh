#!/bin/sh
# The rights of the roles, after `referrals migrate`.
set -eu
PGPASSWORD=$(cat /run/secrets/database_owner)
export PGPASSWORD
/deploy/sql 2 | psql --quiet --no-psqlrc --set ON_ERROR_STOP=1
echo "The roles have their rights."
