#!/bin/sh
# Builds plugins into WebAssembly modules.
#
# Usage: scripts/build-plugins.sh [--out DIR] [--all | PLUGIN...]
#
#   PLUGIN     a folder of plugins/, such as `lock`; `kv`, the default plugin, unless given
#   --all      all of them; a plugin in C only if there is a clang that builds for wasm32
#   --out DIR  where the modules go, plugins/dist unless given. That folder is for kv.wasm alone, so
#              that other plugins need it.
#
# kv.wasm is committed, so that only who changes the plugin or the SDK needs a compiler for
# wasm32. Either of two will do: rustup's, or Debian's packages, which build the standard library
# from source. Exit codes: 0 built, 2 bad usage, 3 no compiler for wasm32.
set -eu

cd "$(dirname "$0")/.."
root=$PWD
out=
all=
plugins=

usage() {
    echo "usage: scripts/build-plugins.sh [--out DIR] [--all | PLUGIN...]" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
        --out) [ $# -ge 2 ] || { echo "build-plugins: --out needs a directory" >&2; exit 2; }
               out=$2; shift 2 ;;
        --all) all=yes; shift ;;
        -* | '' | */*) usage ;;
        *) if [ ! -f "plugins/$1/Cargo.toml" ] && [ ! -f "plugins/$1/Makefile" ]; then
               echo "build-plugins: there is no plugin $1 in $root/plugins" >&2
               exit 2
           fi
           plugins="$plugins $1"; shift ;;
    esac
done
[ -z "$all" ] || [ -z "$plugins" ] || usage
if [ -n "$all" ]; then
    for folder in plugins/*/; do
        name=$(basename "$folder")
        [ ! -f "$folder/Cargo.toml" ] && [ ! -f "$folder/Makefile" ] || plugins="$plugins $name"
    done
fi
plugins=${plugins:-kv}
if [ -z "$out" ]; then
    case $plugins in
        kv | ' kv') out=plugins/dist ;;
        *) echo "build-plugins: plugins/dist is for kv.wasm alone; say where the others go with --out" >&2
           exit 2 ;;
    esac
fi

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

# Finds a compiler and sets how it is called, once.
cargo=
build_std=
find_rust() {
    [ -z "$cargo" ] || return 0
    if has_rustup_target; then
        cargo=$(command -v cargo)
        sysroot=$(rustc --print sysroot)
    elif has_debian_target; then
        cargo=$debian_cargo
        sysroot=$("$debian_rustc" --print sysroot)
        export RUSTC=$debian_rustc
        # The standard library is built from source, which a stable compiler does only if told so.
        export RUSTC_BOOTSTRAP=1
        export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld
        build_std="-Zbuild-std=std,panic_abort -Zbuild-std-features="
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
}

has_clang() {
    command -v make >/dev/null && command -v wasm-ld >/dev/null &&
        "${CLANG:-clang}" --print-targets 2>/dev/null | grep -qw wasm32
}

build_rust() { # build_rust PLUGIN
    find_rust
    RAFTKV_SOURCE_HASH=$(scripts/plugin-source-hash.sh "plugins/$1")
    export RAFTKV_SOURCE_HASH
    # shellcheck disable=SC2086 # the options are words
    "$cargo" build --release --locked --target "$target" --target-dir target/plugins \
        -p "raft-kv-plugin-$1" $build_std
    install -m 644 "target/plugins/$target/release/raft_kv_plugin_$1.wasm" "$out/$1.wasm"
    echo "$out/$1.wasm: $(wc -c <"$out/$1.wasm") bytes, source hash $RAFTKV_SOURCE_HASH"
}

build_c() { # build_c PLUGIN
    if ! has_clang; then
        if [ -n "$all" ]; then
            echo "build-plugins: $1 is left out, it needs make, wasm-ld and a clang for wasm32" >&2
            return
        fi
        echo "build-plugins: $1 needs a compiler: apt-get install clang lld make" >&2
        exit 3
    fi
    absolute=$(cd "$out" && pwd)
    make --no-print-directory -s -C "plugins/$1" "OUT=$absolute"
    echo "$out/$1.wasm: $(wc -c <"$out/$1.wasm") bytes"
}

mkdir -p "$out"
for plugin in $plugins; do
    if [ -f "plugins/$plugin/Cargo.toml" ]; then build_rust "$plugin"; else build_c "$plugin"; fi
done
