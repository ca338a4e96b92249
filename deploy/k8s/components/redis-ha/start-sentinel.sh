#!/bin/sh
# Starts a sentinel, which writes what it learns into its configuration. Needs ME, NODES and REDIS_PASSWORD.
set -eu
here=$(dirname "$0")
. "$here/find-primary.sh"
umask 077
data=${DATA:-/data}
config=$data/sentinel.conf
{
    cat "$here/sentinel.conf"
    echo "dir $data"
    echo "sentinel announce-ip $ME"
    echo "sentinel monitor structkv $(find_primary) 6379 2"
    echo "sentinel auth-pass structkv $REDIS_PASSWORD"
    echo "sentinel down-after-milliseconds structkv 3000"
    echo "sentinel failover-timeout structkv 10000"
} > "$config"
exec redis-server "$config" --sentinel
