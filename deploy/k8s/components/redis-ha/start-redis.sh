#!/bin/sh
# Starts a server: the primary, or a replica of the one that the sentinels name. Needs ME, NODES and REDIS_PASSWORD.
set -eu
here=$(dirname "$0")
. "$here/find-primary.sh"
umask 077
config=${CONFIG_FOLDER:-/data}/redis.conf
primary=$(find_primary)
{
    cat "$here/redis.conf"
    echo "requirepass $REDIS_PASSWORD"
    echo "masterauth $REDIS_PASSWORD"
    echo "replica-announce-ip $ME"
    test "$primary" = "$ME" || echo "replicaof $primary 6379"
} > "$config"
exec redis-server "$config"
