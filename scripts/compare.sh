#!/usr/bin/env bash
# Measures a cluster of three RaftKV nodes beside one of three etcd nodes, on this machine, one after
# the other, with the same load generator, and prints one table.
#
# Usage: scripts/compare.sh FOLDER
#
#   FOLDER              where the programs are: raft-kv and raft-kv-benchmark
#   COMPARE_DURATION    of each measurement (default 5s)
#   COMPARE_CALLERS     numbers of callers (default "1 10 100")
#   COMPARE_VALUE_SIZE  bytes of a value (default 256)
#   COMPARE_KEYS        keys to choose from (default 10000)
#
# The nodes' data is in a temporary folder beside the programs, so that both clusters write to the
# same disk; it is removed at the end. Exit codes: 0 done, 2 bad usage, 3 a cluster does not come up.
set -euo pipefail

programs=${1:-}
if [[ ! -x $programs/raft-kv || ! -x $programs/raft-kv-benchmark ]]; then
    echo "usage: scripts/compare.sh FOLDER, with the programs raft-kv and raft-kv-benchmark in it" >&2
    exit 2
fi
duration=${COMPARE_DURATION:-5s}
callers=${COMPARE_CALLERS:-1 10 100}
value_size=${COMPARE_VALUE_SIZE:-256}
keys=${COMPARE_KEYS:-10000}

work=$(mktemp -d "$programs/compare.XXXXXX")
nodes=()
stop_nodes() {
    ((${#nodes[@]} == 0)) || kill -TERM "${nodes[@]}" 2>/dev/null || true
    ((${#nodes[@]} == 0)) || wait "${nodes[@]}" 2>/dev/null || true
    nodes=()
}
trap 'stop_nodes; rm -rf -- "$work"' EXIT
trap 'exit 130' INT TERM

port=27301
endpoints() { # endpoints: of the three nodes
    echo "http://127.0.0.1:$port,http://127.0.0.1:$((port + 1)),http://127.0.0.1:$((port + 2))"
}

start_etcd() {
    local cluster= node
    for node in 0 1 2; do cluster+=${cluster:+,}etcd$node=http://127.0.0.1:$((port + 10 + node)); done
    for node in 0 1 2; do
        local client=http://127.0.0.1:$((port + node)) peer=http://127.0.0.1:$((port + 10 + node))
        etcd --name "etcd$node" --data-dir "$work/etcd$node" --log-level error \
            --listen-client-urls "$client" --advertise-client-urls "$client" \
            --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" \
            --initial-cluster "$cluster" >"$work/etcd$node.log" 2>&1 &
        nodes+=($!)
    done
}

start_raftkv() {
    local cluster= node
    for node in 0 1 2; do cluster+=${cluster:+,}node$node=127.0.0.1:$((port + node)); done
    for node in 0 1 2; do
        "$programs/raft-kv" --node-id "node$node" --data-dir "$work/node$node" \
            --cluster "$cluster" >"$work/node$node.log" 2>&1 &
        nodes+=($!)
    done
}

wait_until() { # wait_until PATH TEXT: until all nodes answer with the text
    local node tries
    for node in 0 1 2; do
        for ((tries = 0; ; tries++)); do
            if exec 3<>"/dev/tcp/127.0.0.1/$((port + node))"; then
                printf 'GET %s HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n' "$1" >&3
                if grep -q "$2" <&3; then exec 3>&-; break; fi
                exec 3>&-
            fi 2>/dev/null
            if ((tries == 300)); then
                echo "compare: a node does not get ready; what the nodes said last:" >&2
                tail -n 5 "$work"/*.log >&2
                exit 3
            fi
            sleep 0.1
        done
    done
}

measure() { # measure NAME CALLERS ARGUMENT...: a line for each phase
    local name=$1 count=$2
    shift 2
    echo "compare: $name, $count callers" >&2
    # A row of the tool is: phase, operations, a second, errors, mean, p50, p90, p99, …
    "$programs/raft-kv-benchmark" --endpoints "$(endpoints)" --concurrency "$count" \
        --duration "$duration" --value-size "$value_size" --keys "$keys" "$@" 2>/dev/null |
        awk -v name="$name" -v count="$count" \
            '$1 == "put" || $1 == "get" { print name, count, $1, $3, $6, $8, $4 }' >>"$work/rows"
}

start_etcd
wait_until /health '"health":"true"'
for count in $callers; do measure etcd "$count" --target etcd; done
stop_nodes

start_raftkv
wait_until /readyz 'HTTP/1.1 200'
for count in $callers; do
    measure unary "$count"
    measure leader "$count" --route leader --ops get
    measure client "$count" --via client
done
stop_nodes

awk '
    { rate[$1, $2, $3] = $4; p50[$1, $2, $3] = $5; p99[$1, $2, $3] = $6; errors += $7
      if (!seen[$2]++) counts[++n] = $2 }
    function row(way, title, count, op) {
        if (!((way, count, op) in rate)) return
        base = rate["etcd", count, op]
        printf "%-7s %-4s %-28s %9d %7s %9.3f %7s %9.3f %7s\n", count, op, title,
            rate[way, count, op], share(rate[way, count, op], base),
            p50[way, count, op], share(p50[way, count, op], p50["etcd", count, op]),
            p99[way, count, op], share(p99[way, count, op], p99["etcd", count, op])
    }
    function share(a, b) { return b > 0 ? sprintf("%.2f x", a / b) : "-" }
    END {
        printf "%-7s %-4s %-28s %9s %7s %9s %7s %9s %7s\n",
            "CALLERS", "OP", "", "OPS/S", "", "P50 ms", "", "P99 ms", ""
        for (i = 1; i <= n; i++) for (o = 1; o <= 2; o++) {
            op = o == 1 ? "put" : "get"
            row("etcd", "etcd", counts[i], op)
            row("unary", "RaftKV, unary, any node", counts[i], op)
            row("leader", "RaftKV, unary, at the leader", counts[i], op)
            row("client", "RaftKV, client library", counts[i], op)
        }
        print "x: as a multiple of what etcd has in the same line; errors in all: " errors + 0
    }' "$work/rows"
