#!/bin/sh
# Before a server ends: if it is the primary, have another one named. Needs ME and NODES.
set -eu
. "$(dirname "$0")/find-primary.sh"
test "$(named_primary)" = "$ME" || exit 0
for node in $NODES; do
    test "$node" != "$ME" || continue
    timeout 2 redis-cli -h "$node" -p 26379 sentinel failover structkv 2>/dev/null | grep -q OK && break
done
for _ in 1 2 3 4 5 6 7 8 9 10; do
    test "$(named_primary)" != "$ME" && exit 0
    sleep 1
done
