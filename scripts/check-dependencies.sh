#!/bin/sh
# Checks the crates depended on against deny.toml: licences, sources, who may use what, and known
# vulnerabilities.
#
# Usage: scripts/check-dependencies.sh
#
# Vulnerabilities come from RustSec's database, which cargo-deny keeps in a copy. Where it can be had
# neither anew nor from an earlier time, that check is left out, and said so. Exit code: 0 if nothing
# was found, cargo-deny's otherwise.
set -eu
cd "$(dirname "$0")/.."

cargo deny check bans licenses sources

if timeout 120 cargo deny --log-level off fetch db >/dev/null 2>&1; then
    cargo deny check advisories
elif ls -d "${CARGO_HOME:-$HOME/.cargo}"/advisory-dbs/*/crates >/dev/null 2>&1; then
    echo "check-dependencies: RustSec's database cannot be reached; using the copy that is here" >&2
    cargo deny --offline check advisories
else
    echo "check-dependencies: RustSec's database cannot be reached; vulnerabilities were NOT checked" >&2
fi
