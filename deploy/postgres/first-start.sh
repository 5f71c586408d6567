#!/bin/sh
# Run by the postgres image on an empty volume: the roles, each with the password that lies among
# the secrets. psql reads them itself, so that no list of processes ever shows one.
set -eu
say() { psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB"; }
/deploy/sql 1 | say
for role in owner page worker reader; do
    say <<SQL
\\set password \`cat /run/secrets/database_$role\`
ALTER ROLE referrals_$role PASSWORD :'password';
SQL
done
