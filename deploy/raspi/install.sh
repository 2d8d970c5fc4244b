#!/bin/sh
# Install, upgrade, roll back or remove the agent on a Debian or Raspberry Pi OS machine. Run it as often as you like.
#
#   sudo ./install.sh [PACKAGE]     PACKAGE: what pip shall install; default: hedgerow[agent,jit]. A wheel with kernels
#                                   built ahead of time needs no jit: ./hedgerow-0.1.0-py3-none-any.whl[agent]
#   sudo ./install.sh --rollback    the program that was there before the last upgrade
#   sudo ./install.sh --remove      the program and its units; keys, configuration and samples stay
#
# Each installation has a directory of its own, and /opt/hedgerow points to the one in use: an upgrade that fails half-way
# changes nothing, and one whose agent does not start is rolled back by itself. Exit status: 0 done, 1 not, with one line.
set -eu

HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
ROOT=${HEDGEROW_ROOT:-} # for trials: everything goes below this directory
OPT=$ROOT/opt
LINK=$OPT/hedgerow
UNITS=$ROOT/etc/systemd/system
KEPT=2 # installations: the one in use, and the one before

fail() {
    echo "install.sh: $1" >&2
    exit 1
}

has_systemd() {
    [ -z "$ROOT" ] && [ -d /run/systemd/system ]
}

use() { # the installation in $1, at one stroke
    ln -sfn "$1" "$LINK.new"
    mv -T "$LINK.new" "$LINK"
}

restart() { # true when the agent says that it is ready, or has no configuration to start with yet
    has_systemd || return 0
    systemctl daemon-reload
    systemctl enable --quiet edge-agent.service edge-agent-enroll.service edge-agent-renew.timer
    systemctl restart edge-agent.service
}

installations() { # newest first
    find "$OPT" -maxdepth 1 -type d -name 'hedgerow-*' 2>/dev/null | sort -r
}

before() { # the newest installation that is not in use
    installations | grep -vxF "$(readlink "$LINK" || true)" | head -n 1
}

roll_back() {
    OLD=$(before)
    [ -n "$OLD" ] || fail "there is no earlier installation under $OPT to go back to"
    use "$OLD"
    restart || fail "$OLD does not start either: journalctl -u edge-agent"
    echo "the agent is $("$LINK/bin/edge-agent" --version) again"
}

remove() {
    if has_systemd; then
        systemctl disable --now --quiet edge-agent.service edge-agent-enroll.service edge-agent-renew.timer || true
    fi
    for unit in "$HERE"/edge-agent*; do
        rm -f "$UNITS/${unit##*/}"
    done
    rm -f "$LINK"
    installations | xargs -r rm -rf
    if has_systemd; then
        systemctl daemon-reload
    fi
    echo "removed; /etc/hedgerow and /var/lib/hedgerow are as they were"
}

install_it() {
    case $(uname -m) in
    aarch64 | x86_64) ;;
    *) fail "$(uname -m) is no 64-bit machine: install the 64-bit Raspberry Pi OS" ;;
    esac
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed: Debian 12"
    python3 -c 'import ensurepip' 2>/dev/null || fail "python3-venv is missing: apt-get install python3-venv"
    NEW=$OPT/hedgerow-$(date -u +%Y%m%dT%H%M%S)
    mkdir -p "$OPT" "$UNITS"
    trap 'rm -rf "$NEW"' EXIT
    python3 -m venv "$NEW"
    "$NEW/bin/pip" install --quiet --disable-pip-version-check "$1" || fail "pip cannot install $1; nothing was changed"
    "$NEW/bin/edge-agent" --version >/dev/null || fail "what pip installed does not run; nothing was changed"
    trap - EXIT
    OLD=$(readlink "$LINK" || true)
    use "$NEW"
    cp "$HERE"/edge-agent* "$UNITS"
    if ! restart; then
        [ -n "$OLD" ] || fail "the agent does not start: journalctl -u edge-agent"
        use "$OLD"
        restart || true
        fail "the new agent does not start, and the one before is back: journalctl -u edge-agent"
    fi
    installations | tail -n +$((KEPT + 1)) | xargs -r rm -rf
    echo "installed $("$LINK/bin/edge-agent" --version)"
}

case ${1:-} in
--rollback) roll_back ;;
--remove) remove ;;
-*) fail "unknown option $1: --rollback, --remove, or a package for pip" ;;
*) install_it "${1:-hedgerow[agent,jit]}" ;;
esac
