#!/bin/sh
# Prints the SHA-256 of a plugin's sources and of the SDK's, in hex: the hash of the lines
# "<sha256 of the file>  <path>", one a file, sorted by path.
#
# Usage: scripts/plugin-source-hash.sh [CRATE_DIR]     (default plugins/kv, relative to the root)
set -eu
export LC_ALL=C

cd "$(dirname "$0")/.."
crate=${1:-plugins/kv}
crate=${crate%/}
if [ ! -f "$crate/Cargo.toml" ]; then
    echo "plugin-source-hash: $crate holds no Cargo.toml; name a crate relative to $PWD" >&2
    exit 2
fi

find sdk/src sdk/Cargo.toml "$crate/src" "$crate/Cargo.toml" -type f -print0 |
    sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1
