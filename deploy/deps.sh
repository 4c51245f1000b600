#!/usr/bin/env bash
# Installs what building, running and testing Forky Pig need. Idempotent.
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'USAGE'
usage: deploy/deps.sh [--test] [--bench]

Installs, on Debian 12 as root, what Forky Pig needs and is not there: QEMU 10 from
bookworm-backports (the suite is added if it is missing, from the mirror this machine already uses),
static busybox, cpio, e2fsprogs, a C compiler and a Rust toolchain (by the Rust project's own
installer, when there is none). Where everything is there, it does nothing and needs no root.

  --test   also what only the tests need (cargo-nextest, debootstrap for their Debian image, ssh-keyscan, ip for
           their network, strace for what is written to disk, libfaketime for clocks that jump)
  --bench  also what writes are measured beside: Debian's etcd-server, unpacked into .local/etcd and not
           installed, since it would run as a service
USAGE
}

with_tests=0 with_etcd=0
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --test) with_tests=1 ;;
        --bench) with_etcd=1 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done

[ -r /etc/os-release ] && . /etc/os-release
[ "${VERSION_CODENAME:-}" = bookworm ] ||
    die "made for Debian 12 (bookworm), this is ${PRETTY_NAME:-unknown}; install QEMU >= 8.2, busybox-static, cpio, e2fsprogs and Rust yourself"

export DEBIAN_FRONTEND=noninteractive

have_backports() {
    apt-get indextargets --format '$(CODENAME)' 2>/dev/null | grep -qx bookworm-backports
}

updated=0
update() {
    [ "$updated" = 0 ] || return 0
    [ "$(id -u)" = 0 ] || die "run me as root: packages must be installed with apt-get"
    say "reading package lists"
    apt-get update -qq
    updated=1
}

installed() { dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed; }

install_missing() { # PACKAGE...
    local missing=() package
    for package in "$@"; do installed "$package" || missing+=("$package"); done
    [ ${#missing[@]} != 0 ] || return 0
    update
    say "installing ${missing[*]}"
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Forky Pig needs QEMU 8.2; bookworm has 7.2, its backports have 10.0.
qemu_is_new_enough() {
    installed qemu-system-x86 && installed qemu-utils &&
        dpkg --compare-versions "$(dpkg-query -W -f '${Version}' qemu-system-x86)" ge 1:8.2
}

install_missing build-essential busybox-static ca-certificates cpio curl e2fsprogs util-linux

if ! qemu_is_new_enough; then
    if ! have_backports; then
        site=$(mirror)
        [ -n "$site" ] || die "no bookworm mirror in this machine's apt sources; add bookworm-backports to them"
        [ "$(id -u)" = 0 ] || die "run me as root: bookworm-backports must be added to apt's sources"
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

# Debian's own compiler is too old; rustup takes the version that rust-toolchain.toml names.
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repo/Cargo.toml")
rust_is_new_enough() {
    local version
    command -v cargo >/dev/null && version=$(cd "$repo" && rustc --version 2>/dev/null | cut -d ' ' -f 2) &&
        [ -n "$version" ] && dpkg --compare-versions "$version" ge "$wanted"
}

# A rustup without a toolchain fetches it with the first call, which may fail for want of network.
if ! rust_is_new_enough && command -v rustup >/dev/null; then
    (cd "$repo" && rustup toolchain install) || true
fi
if ! rust_is_new_enough; then
    say "installing Rust with the Rust project's installer, into $HOME/.cargo"
    installer=$(mktemp)
    trap 'rm -f "$installer"' EXIT
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs -o "$installer" ||
        die "the Rust installer could not be fetched; install Rust $wanted or later, then run me again"
    # The version in rust-toolchain.toml, with its components, is fetched by the call after it.
    sh "$installer" -y --quiet --profile minimal --default-toolchain none
    PATH="$HOME/.cargo/bin:$PATH"
    hash -r
    (cd "$repo" && rustup toolchain install)
    rust_is_new_enough || die "Rust is still older than $wanted"
fi

if [ "$with_tests" = 1 ]; then install_missing debootstrap iproute2 libfaketime openssh-client strace; fi
if [ "$with_tests" = 1 ] && ! command -v cargo-nextest >/dev/null; then
    say "installing cargo-nextest"
    cargo install --locked --quiet cargo-nextest
fi
if [ "$with_etcd" = 1 ] && [ ! -x "$repo/.local/etcd/usr/bin/etcd" ] && ! command -v etcd >/dev/null; then
    say "fetching etcd-server"
    fetched=$(mktemp -d)
    trap 'rm -rf "${installer:-}" "$fetched"' EXIT
    chmod 755 "$fetched"
    (cd "$fetched" && { apt-get download -qq etcd-server 2>/dev/null || { update && apt-get download -qq etcd-server; }; })
    mkdir -p "$repo/.local"
    dpkg-deb -x "$fetched"/etcd-server_*.deb "$fetched/etcd"
    rm -rf "$repo/.local/etcd"
    mv "$fetched/etcd" "$repo/.local/etcd"
fi
say "everything that is needed is there"
