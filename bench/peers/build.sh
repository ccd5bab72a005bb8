#!/bin/sh
# Builds the servers that the gateway is measured beside, into bench/peers/target. What a machine lacks is left out:
# `ringmesh-bench peers` measures those that are there.
set -eu
cd "$(dirname "$0")"
target=$PWD/target
mkdir -p "$target/node"

CARGO_TARGET_DIR=$target cargo build --release --locked

# uWebSockets: the crate's C++ sources, compiled as its own makefile does, without TLS and compression.
if command -v g++ >/dev/null; then
    manifest=$(cargo metadata --locked --format-version 1 --features uwebsockets-sources |
        tr ',' '\n' | sed -n 's|.*"manifest_path":"\(.*/libuwebsockets-sys-[^/]*/Cargo.toml\)".*|\1|p' | head -n 1)
    sources=$(dirname "$manifest")/uWebSockets
    flags="-O3 -march=native -DLIBUS_NO_SSL -DUWS_NO_ZLIB -I$sources/src -I$sources/uSockets/src"
    objects=$target/usockets
    mkdir -p "$objects"
    for file in "$sources"/uSockets/src/*.c "$sources"/uSockets/src/eventing/*.c; do
        # shellcheck disable=SC2086
        gcc $flags -c "$file" -o "$objects/$(basename "$file" .c).o"
    done
    # shellcheck disable=SC2086
    g++ $flags -std=c++20 uwebsockets.cpp "$objects"/*.o -o "$target/uwebsockets"
else
    echo "no g++: uWebSockets is left out" >&2
fi

if command -v npm >/dev/null; then
    cp ws-server.cjs "$target/node/"
    npm install --silent --no-fund --no-audit --no-package-lock --prefix "$target/node" ws@8
else
    echo "no npm: Node's ws is left out" >&2
fi
