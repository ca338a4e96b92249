#!/bin/sh
# Whether a server is what the sentinels take it for. They never tell a replica whose primary died before they had heard
# of it; it must start anew. Needs ME, NODES and REDIS_PASSWORD.
set -eu
. "$(dirname "$0")/find-primary.sh"
named=$(named_primary)
test -n "$named" || exit 0
followed=$(REDISCLI_AUTH=$REDIS_PASSWORD timeout 2 redis-cli -h "$ME" -p 6379 --raw info replication | tr -d '\r' | sed -n 's/^master_host://p')
test "${followed:-$ME}" = "$named"
