#!/bin/sh
# Makes what is missing among the secrets, each a file of its own:
#
#     deploy/secrets.sh [FOLDER]     deploy/secrets by default
#
# The folder keeps others out; the files can be read by whatever number a container runs as.
# relay_password is yours to fill in: the relay's operator gives it to you.
set -eu
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 0700 "$folder"
for name in database_superuser database_owner database_page database_worker database_reader \
    web_metrics_token; do
    [ -s "$folder/$name" ] && continue
    head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$folder/$name"
    chmod 0444 "$folder/$name"
    echo "Made $folder/$name"
done
if [ ! -s "$folder/relay_password" ]; then
    : >"$folder/relay_password"
    chmod 0444 "$folder/relay_password"
    echo "Write the relay's password into $folder/relay_password (printf %s, without a line's end)."
fi
