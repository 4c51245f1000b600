#!/usr/bin/env bash
# Installs the Debian packages that building, running and testing Forky Pig need. Idempotent.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: deploy/deps.sh [--test]

Installs, on Debian 12 as root, what Forky Pig needs: QEMU 10 from bookworm-backports (the suite is
added if it is missing, from the mirror this machine already uses), static busybox, cpio, e2fsprogs,
a C compiler and a Rust toolchain.

  --test   also what only the tests need (cargo-nextest)
USAGE
}

with_tests=0
case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    --test) with_tests=1 ;;
    "") ;;
    *) usage >&2; exit 2 ;;
esac

say() { printf '==> %s\n' "$*"; }
die() { printf 'deps.sh: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "run me as root: packages are installed with apt-get"
. /etc/os-release
[ "${VERSION_CODENAME:-}" = bookworm ] ||
    die "made for Debian 12 (bookworm), this is ${PRETTY_NAME:-unknown}; install QEMU >= 8.2, busybox-static, cpio, e2fsprogs and Rust yourself"

export DEBIAN_FRONTEND=noninteractive
repo=$(cd "$(dirname "$0")/.." && pwd)

# The mirror this machine already takes bookworm from; backports lie beside it on every mirror.
mirror() {
    apt-get indextargets --format '$(SITE)|$(CODENAME)' 2>/dev/null |
        sed -n 's/|bookworm$//p' | head -n 1
}

have_backports() {
    apt-get indextargets --format '$(CODENAME)' 2>/dev/null | grep -qx bookworm-backports
}

updated=0
update() {
    [ "$updated" = 1 ] && return
    say "reading package lists"
    apt-get update -qq
    updated=1
}

installed() { dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed; }

install_missing() { # [-t SUITE] PACKAGE...
    local target=() missing=() package
    if [ "$1" = -t ]; then target=(-t "$2"); shift 2; fi
    for package in "$@"; do installed "$package" || missing+=("$package"); done
    [ ${#missing[@]} = 0 ] && return
    update
    say "installing ${missing[*]}"
    apt-get install -y -qq --no-install-recommends "${target[@]}" "${missing[@]}" >/dev/null
}

# Forky Pig needs QEMU 8.2; bookworm has 7.2, its backports have 10.0.
qemu_is_new_enough() {
    installed qemu-system-x86 && installed qemu-utils &&
        dpkg --compare-versions "$(dpkg-query -W -f '${Version}' qemu-system-x86)" ge 1:8.2
}

install_missing build-essential busybox-static ca-certificates cpio curl e2fsprogs iproute2 kmod procps

if ! qemu_is_new_enough; then
    if ! have_backports; then
        site=$(mirror)
        [ -n "$site" ] || die "no bookworm mirror in this machine's apt sources; add bookworm-backports to them"
        say "adding bookworm-backports"
        printf 'Types: deb\nURIs: %s\nSuites: bookworm-backports\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' \
            "$site" >/etc/apt/sources.list.d/forkypig-backports.sources
        updated=0
    fi
    update
    say "installing QEMU from bookworm-backports"
    apt-get install -y -qq --no-install-recommends -t bookworm-backports qemu-system-x86 qemu-utils >/dev/null
    qemu_is_new_enough || die "QEMU is still older than 8.2"
fi

# The toolchain is the one rust-toolchain.toml names; rustup fetches it where it can.
if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
    PATH="$HOME/.cargo/bin:$PATH"
fi
if ! command -v cargo >/dev/null; then
    install_missing -t bookworm-backports rustup || true
    command -v rustup >/dev/null || die "no Rust toolchain, and no rustup package; install rustup, then run me again"
    say "installing the Rust toolchain that rust-toolchain.toml names"
    (cd "$repo" && rustup toolchain install)
fi

if [ "$with_tests" = 1 ] && ! command -v cargo-nextest >/dev/null; then
    say "installing cargo-nextest"
    cargo install --locked --quiet cargo-nextest
fi
say "dependencies are in place"
