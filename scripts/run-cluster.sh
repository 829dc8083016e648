#!/usr/bin/env bash
# Runs a cluster of three nodes in this terminal until Ctrl-C, or until one of them
# ends.
#
# Usage: scripts/run-cluster.sh PROGRAM
#
#   PROGRAM        the program raft-kv
#   CLUSTER_DIR    where the nodes keep their data (default ./data/cluster)
#   CLUSTER_PORT   port of the first node; the others have those after it (default 5001)
#
# Exit codes: 0 stopped by Ctrl-C or SIGTERM, 2 bad usage, 3 a node ended by itself.
set -euo pipefail

program=${1:-}
if [[ ! -x $program ]]; then
    echo "usage: scripts/run-cluster.sh PROGRAM" >&2
    exit 2
fi
folder=${CLUSTER_DIR:-./data/cluster}
port=${CLUSTER_PORT:-5001}

cluster=
for node in 1 2 3; do
    cluster+=${cluster:+,}node$node=127.0.0.1:$((port + node - 1))
done

nodes=()
stopping=
stop() {
    stopping=yes
    # One that has ended already needs no signal.
    ((${#nodes[@]} == 0)) || kill -TERM "${nodes[@]}" 2>/dev/null || true
}
trap stop INT TERM

for node in 1 2 3; do
    # In a process group of its own, so that Ctrl-C reaches the nodes by this script
    # alone. Its lines say whose they are.
    setsid "$program" --node-id "node$node" --data-dir "$folder/node$node" \
        --cluster "$cluster" 2> >(trap '' INT TERM; exec sed -u "s/^/node$node | /" >&2) &
    nodes+=($!)
done
echo "three nodes: http://127.0.0.1:$port to $((port + 2)); Ctrl-C stops them" >&2

code=0
wait -n "${nodes[@]}" || true
if [[ -z $stopping ]]; then
    echo "a node ended; stopping the others" >&2
    code=3
    stop
fi
for node in "${nodes[@]}"; do
    while kill -0 "$node" 2>/dev/null; do wait "$node" || true; done
done
exit "$code"
