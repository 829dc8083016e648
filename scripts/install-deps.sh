#!/bin/sh
# Installs what building RaftKV needs and this machine lacks; nothing if nothing is missing.
#
# Usage: scripts/install-deps.sh [build|lint|plugins|compare]     (default build)
#
#   build    what `make run` and `make test` need: a C++ compiler and make for RocksDB, libclang for
#            the bindings to it, and ccache along with them, so that RocksDB is compiled once a machine;
#            protoc for etcd's client, which the load generator has
#   lint     that, and cargo-deny
#   plugins  a compiler for wasm32-unknown-unknown
#   compare  what building needs, and etcd's server
#
# It calls apt-get, with sudo unless run by root, and `cargo install`. It never touches the Rust
# toolchain. Exit codes: 0 all there, 2 bad usage, 3 something is missing that it cannot install.
set -eu

cd "$(dirname "$0")/.."
purpose=${1:-build}
cargo_deny_version=0.20.2

say() { echo "install-deps: $*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

# Packages to install, and why.
packages=
need() { # need REASON PACKAGE...
    say "$1: needs $(shift; echo "$*")"
    shift
    packages="$packages $*"
}

check_cargo() {
    if ! has cargo; then
        say "there is no cargo on the PATH. Install Rust with rustup and run this again:"
        say "    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
        say "    . \"\$HOME/.cargo/env\""
        exit 3
    fi
    wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    found=$(rustc --version | cut -d ' ' -f 2)
    oldest=$(printf '%s\n%s\n' "$wanted" "${found%%-*}" | sort -V | head -n 1)
    if [ "$oldest" != "$wanted" ]; then
        say "rustc is $found, RaftKV needs $wanted or later: rustup update stable"
        exit 3
    fi
}

has_libclang() {
    [ -z "${LIBCLANG_PATH:-}" ] || return 0
    # The library alone will not do: its own headers (stddef.h …) are in a package of their own.
    for library in /usr/lib/llvm*/lib/libclang*.so* /usr/lib/*/libclang*.so* /usr/lib64/libclang*.so* \
        /usr/local/lib/libclang*.so*; do
        case $library in *libclang-cpp*) continue ;; esac
        [ -e "$library" ] || continue
        for header in /usr/lib*/llvm*/lib/clang/*/include/stddef.h /usr/lib*/clang/*/include/stddef.h \
            /usr/local/lib/clang/*/include/stddef.h; do
            [ ! -e "$header" ] || return 0
        done
    done
    return 1
}

has_protoc() {
    has protoc &&
        [ -f "$(dirname "$(command -v protoc)")/../include/google/protobuf/descriptor.proto" ]
}

check_build() {
    has c++ && has cc && has make || need "RocksDB is C++" build-essential
    has_libclang || need "the bindings to RocksDB are made by bindgen, with libclang" clang libclang-dev
    # The compiler's own messages, which it finds beside itself, are in a package of their own.
    has_protoc || need "the load generator's client of etcd is made by protoc" \
        protobuf-compiler libprotobuf-dev
}

check_compare() {
    has etcd || need "the comparison is with etcd" etcd-server
}

check_lint() {
    for component in rustfmt clippy; do
        tool=cargo-${component#rust}
        if ! has "$tool" || ! "$tool" --version >/dev/null 2>&1; then
            say "the toolchain lacks $component: rustup component add $component"
            exit 3
        fi
    done
}

has_rustup_wasm() {
    has rustc && [ -d "$(rustc --print sysroot)/lib/rustlib/wasm32-unknown-unknown" ]
}

check_plugins() {
    has_rustup_wasm && return
    # Debian's own compiler, beside rustup's: it brings the source of the standard library.
    [ -x /usr/bin/rustc ] && [ -x /usr/bin/cargo ] && has wasm-ld &&
        [ -f "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library/Cargo.toml" ] && return
    need "plugins are compiled to WebAssembly" rustc-web cargo-web rust-web-src lld
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

install_packages() {
    if ! has apt-get; then
        say "this system has no apt-get. Install what corresponds to these Debian packages:"
        say "   $packages"
        [ "$purpose" != plugins ] || say "or: rustup target add wasm32-unknown-unknown"
        # libclang may be where this script does not look; bindgen says so if it is not.
        case $packages in *build-essential* | *rustc-web*) exit 3 ;; esac
        return
    fi
    if [ "$(id -u)" -ne 0 ] && ! has sudo; then
        say "installing needs root, and there is no sudo. As root:"
        say "    apt-get update && apt-get install -y$packages"
        exit 3
    fi
    # Only along with others, as the build does without it.
    case $packages in *build-essential* | *libclang*) has ccache || packages="$packages ccache" ;; esac
    say "installing$packages with apt-get, a minute or two"
    as_root apt-get update -qq || say "apt-get update failed; going on with the lists that are there"
    # shellcheck disable=SC2086 # the packages are words
    # etcd is started when it is needed, and not by its package.
    as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -o DPkg::Lock::Timeout=300 \
        -o Dpkg::Use-Pty=0 install -qq -y --no-install-recommends $packages >/dev/null || {
        say "apt-get could not install$packages"
        [ "$purpose" != plugins ] || say "another way: rustup target add wasm32-unknown-unknown"
        exit 3
    }
    # Its package looks for compilers before those that come with it are set up.
    if [ -x /usr/sbin/update-ccache-symlinks ]; then as_root /usr/sbin/update-ccache-symlinks; fi
}

install_cargo_deny() {
    if cargo deny --version >/dev/null 2>&1; then return; fi
    say "cargo-deny checks licences and sources of all crates: installing $cargo_deny_version, some minutes"
    cargo install cargo-deny --locked --version "$cargo_deny_version" >&2 || {
        say "cargo install cargo-deny --locked --version $cargo_deny_version failed"
        exit 3
    }
}

case $purpose in
    build) check_cargo; check_build ;;
    lint) check_cargo; check_build; check_lint ;;
    plugins) check_plugins ;;
    compare) check_cargo; check_build; check_compare ;;
    *) echo "usage: scripts/install-deps.sh [build|lint|plugins|compare]" >&2; exit 2 ;;
esac
[ -z "$packages" ] || install_packages
[ "$purpose" != lint ] || install_cargo_deny
