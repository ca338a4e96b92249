#!/bin/sh
# Starts a server: the primary, or a replica of the one that the sentinels name. Needs ME, NODES and REDIS_PASSWORD.
set -eu
here=$(dirname "$0")
. "$here/find-primary.sh"
umask 077
data=${DATA:-/data}
config=$data/redis.conf
# Whoever comes back waits until a failover is over: a primary would be empty, and a former one still has replicas that
# have not been told.
test -z "$(named_primary)" || sleep 10
primary=$(find_primary)
{
    cat "$here/redis.conf"
    echo "dir $data"
    echo "requirepass $REDIS_PASSWORD"
    echo "masterauth $REDIS_PASSWORD"
    echo "replica-announce-ip $ME"
    test "$primary" = "$ME" || echo "replicaof $primary 6379"
} > "$config"
exec redis-server "$config"
