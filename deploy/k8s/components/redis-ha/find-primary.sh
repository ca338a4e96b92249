# To be sourced. Needs NODES (the servers' names, the first to begin with) and the tools of Redis.

# Print who the sentinels say is the primary; nothing where none of them knows.
named_primary() {
    for node in $NODES; do
        named=$(timeout 2 redis-cli -h "$node" -p 26379 --raw sentinel get-master-addr-by-name structkv 2>/dev/null | head -n 1) || named=
        case "$named" in
            "" | *[!A-Za-z0-9.-]*) ;;
            *) echo "$named"; return ;;
        esac
    done
}

# The same, or the first server where there are no sentinels yet.
find_primary() {
    named=$(named_primary)
    echo "${named:-${NODES%% *}}"
}
