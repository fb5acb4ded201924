#!/bin/bash
# Starts PostgreSQL in the image of postgres.Dockerfile, and makes its files at the first start.
set -euo pipefail
data=/var/lib/postgresql/data
programs=$(echo /usr/lib/postgresql/*/bin)
if [ ! -e $data/complete ]; then
    rm -rf ${data:?}/*
    "$programs/initdb" -D $data -U "$POSTGRES_USER" -A scram-sha-256 --pwfile=<(echo "$POSTGRES_PASSWORD")
    echo "host all all all scram-sha-256" >>$data/pg_hba.conf
    echo "CREATE DATABASE $POSTGRES_DB" | "$programs/postgres" --single -D $data postgres
    touch $data/complete
fi
exec "$programs/postgres" -D $data -c listen_addresses='*' -c unix_socket_directories=
