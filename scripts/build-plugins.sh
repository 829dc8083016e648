#!/bin/sh
# Builds the default plugin into a WebAssembly module, plugins/dist/kv.wasm.
#
# Usage: scripts/build-plugins.sh [--out DIR]
#
# The module is committed, so that only who changes the plugin or the SDK needs a compiler for
# wasm32. Either of two will do: rustup's, or Debian's packages, which build the standard library
# from source. Exit codes: 0 built, 2 bad usage, 3 no compiler for wasm32.
set -eu

cd "$(dirname "$0")/.."
root=$PWD
out=plugins/dist
while [ $# -gt 0 ]; do
    case $1 in
        --out) [ $# -ge 2 ] || { echo "build-plugins: --out needs a directory" >&2; exit 2; }
               out=$2; shift 2 ;;
        *) echo "usage: scripts/build-plugins.sh [--out DIR]" >&2; exit 2 ;;
    esac
done

target=wasm32-unknown-unknown
debian_rustc=/usr/bin/rustc
debian_cargo=/usr/bin/cargo

has_rustup_target() {
    command -v rustc >/dev/null && command -v cargo >/dev/null &&
        [ -d "$(rustc --print sysroot)/lib/rustlib/$target" ]
}

has_debian_target() {
    [ -x "$debian_rustc" ] && [ -x "$debian_cargo" ] && command -v wasm-ld >/dev/null &&
        [ -f "$("$debian_rustc" --print sysroot)/lib/rustlib/src/rust/library/Cargo.toml" ]
}

if has_rustup_target; then
    cargo=$(command -v cargo)
    sysroot=$(rustc --print sysroot)
    set --
elif has_debian_target; then
    cargo=$debian_cargo
    sysroot=$("$debian_rustc" --print sysroot)
    export RUSTC=$debian_rustc
    # The standard library is built from source, which a stable compiler does only if told so.
    export RUSTC_BOOTSTRAP=1
    export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld
    set -- -Zbuild-std=std,panic_abort -Zbuild-std-features=
else
    cat >&2 <<'ADVICE'
build-plugins: no compiler for wasm32-unknown-unknown here. Get one in either way:
    rustup target add wasm32-unknown-unknown
    apt-get install rustc-web cargo-web rust-web-src lld
ADVICE
    exit 3
fi

# Small and fast modules, whatever the workspace's own profile says.
export CARGO_PROFILE_RELEASE_OPT_LEVEL=3
export CARGO_PROFILE_RELEASE_LTO=fat
export CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1
export CARGO_PROFILE_RELEASE_PANIC=abort
export CARGO_PROFILE_RELEASE_STRIP=true
export CARGO_PROFILE_RELEASE_DEBUG=false
unset CARGO_ENCODED_RUSTFLAGS

# A small stack keeps the memory small; as the first thing in it, its overflow traps instead of
# overwriting data. No path of this machine gets into the module.
export RUSTFLAGS="-Clink-arg=-zstack-size=262144 -Clink-arg=--stack-first \
--remap-path-prefix=$root=. \
--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}/registry/src=registry \
--remap-path-prefix=$sysroot/lib/rustlib/src/rust=rust"

RAFTKV_SOURCE_HASH=$(scripts/plugin-source-hash.sh plugins/kv)
export RAFTKV_SOURCE_HASH

"$cargo" build --release --locked --target "$target" --target-dir target/plugins \
    -p raft-kv-plugin-kv "$@"

mkdir -p "$out"
install -m 644 "target/plugins/$target/release/raft_kv_plugin_kv.wasm" "$out/kv.wasm"
echo "$out/kv.wasm: $(wc -c <"$out/kv.wasm") bytes, source hash $RAFTKV_SOURCE_HASH"
