#!/usr/bin/env bash
# Installs what the tests use and this machine lacks: redis-server, redis-sentinel, nginx with its stream module, HAProxy,
# openssl and shellcheck from Debian's packages, Prometheus and its promtool into target/test-tools, and Python's
# `websockets` and `redis` into target/test-venv. Does nothing when all is there.
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=target/test-venv
requirements=tests/support/requirements.txt

# Installs a Debian package that provides what $1 names.
install() {
    local purpose=$1 package=$2
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "tests need $purpose: install the package $package (as root: apt-get install $package)" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" </dev/null >/dev/null
}

command -v redis-server >/dev/null || install redis-server redis-server
command -v redis-sentinel >/dev/null || install redis-sentinel redis-sentinel
# They lie where root looks, and not everybody.
PATH=$PATH:/usr/sbin:/usr/local/sbin
has_stream_module() {
    nginx -V 2>&1 | grep -q -- '--with-stream\( \|$\)' || ls /etc/nginx/modules-enabled/*stream* >/dev/null 2>&1
}
command -v nginx >/dev/null || install nginx nginx
has_stream_module || install "nginx's stream module" libnginx-mod-stream
command -v haproxy >/dev/null || install haproxy haproxy
command -v openssl >/dev/null || install openssl openssl
command -v shellcheck >/dev/null || install shellcheck shellcheck
command -v python3 >/dev/null || install python3 python3

# Unpacked and not installed: the package would start a server, and these are two programs that need nothing around them.
tools=target/test-tools
if ! PATH="$PATH:$tools/usr/bin" command -v promtool >/dev/null || ! PATH="$PATH:$tools/usr/bin" command -v prometheus >/dev/null; then
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        echo "tests need promtool and prometheus on the PATH: install Prometheus 2.42 or newer" >&2
        exit 1
    fi
    rm -rf "$tools"
    mkdir -p "$tools"
    (
        cd "$tools"
        apt-get download -qq prometheus 2>/dev/null || { apt-get update -qq && apt-get download -qq prometheus; }
        dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool ./usr/bin/prometheus
        rm prometheus_*.deb
    )
fi

# The installed requirements are kept beside the environment, so that a change of them installs anew.
if ! cmp -s "$requirements" "$venv/installed.txt" || ! "$venv/bin/python" -c 'import redis.asyncio, websockets.sync' 2>/dev/null; then
    rm -rf "$venv"
    mkdir -p target
    python3 -c 'import ensurepip' 2>/dev/null || install "python3 -m venv" python3-venv
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-input -r "$requirements"
    cp "$requirements" "$venv/installed.txt"
fi
