# What the scripts here share. To be sourced; sets `repo` and leaves the rest to functions.
# shellcheck shell=bash

set -euo pipefail
shopt -s inherit_errexit

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Where deps.sh puts the toolchain, ahead of Debian's older one, and where Debian puts mke2fs.
PATH="${HOME:-/root}/.cargo/bin:$PATH:/usr/sbin:/sbin"

# With the time since the first script of this run began.
FP_BEGUN=${FP_BEGUN:-$EPOCHSECONDS}
export FP_BEGUN
say() { printf '==> %d:%02d %s\n' $(((EPOCHSECONDS - FP_BEGUN) / 60)) $(((EPOCHSECONDS - FP_BEGUN) % 60)) "$*" >&2; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

target_dir() { printf '%s\n' "${CARGO_TARGET_DIR:-$repo/target}"; }

# Sets `fpagent`: what FPAGENT names, or the release build, brought up to date. With `built`, as it
# is when there is one.
find_fpagent() {
    if [ -n "${FPAGENT:-}" ]; then
        fpagent=$(command -v "$FPAGENT") || die "FPAGENT names $FPAGENT, which is no program"
        return
    fi
    # shellcheck disable=SC2034 # for who sources this
    fpagent=$(target_dir)/release/fpagent
    if [ "${1:-}" = built ] && [ -x "$fpagent" ]; then return; fi
    command -v cargo >/dev/null || die "cargo is missing; deploy/deps.sh installs it"
    (cd "$repo" && cargo build --quiet --release --package fp-agent --bin fpagent)
}

# The mirror this machine already takes bookworm from; nothing when it takes none. What belongs to
# bookworm, as its backports, lies beside it on every mirror.
mirror() {
    apt-get indextargets --format '$(SITE)|$(CODENAME)' 2>/dev/null |
        sed -n 's/|bookworm$//p' | head -n 1
}

# The values of a string field in JSON on standard input, one a line. Enough for names, ids, states.
json_strings() { # FIELD
    grep -oE "\"$1\": *\"[^\"]*\"" | sed -E 's/^"[^"]*": *"(.*)"$/\1/' || true
}

# Asks again and again until a command succeeds. No output of its own.
wait_until() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.1
    done
}
