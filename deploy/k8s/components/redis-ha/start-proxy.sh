#!/bin/sh
# Starts the proxy with the domain of its namespace's services, which is the first that a pod's programs search.
set -eu
DOMAIN=$(sed -n 's/^search[[:space:]]*\([^[:space:]]*\).*/\1/p' "${RESOLV_CONF:-/etc/resolv.conf}")
test -n "$DOMAIN" || { echo "no search domain in /etc/resolv.conf: the servers' names cannot be completed" >&2; exit 1; }
export DOMAIN
exec haproxy -W -db -f "$(dirname "$0")/haproxy.cfg"
