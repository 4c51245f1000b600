#!/usr/bin/env bash
# Every test, from a fresh machine. What CI runs.
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'USAGE'
usage: deploy/test.sh [NEXTEST_ARGUMENT...]

Installs what is needed (deploy/deps.sh --test), checks format and lints, builds the agent and the
guest image, fuzzes the channel to guests' agents, and runs every test, with real QEMU guests. Arguments go to `cargo nextest run`.
The last line is the runner's own count. Ends with an error when anything fails, or when a process
that a test started is left.

The tests get
  FP_TEST_IMAGE   the directory of the tiny image
  FP_TEST_DEBIAN  the directory of the Debian image
  FPAGENT         the agent that is tested, unless it is given: built with debug assertions
  TMPDIR          a directory of their own, deleted at the end

FP_KILLS says how often the agent is killed at random moments (30); before a release, 300.
FP_FUZZ_SECONDS says how long the channel is fuzzed (60); before a release, 3600.
USAGE
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
esac

"$repo/deploy/deps.sh" --test
hash -r
cd "$repo"

say "format"
cargo fmt --all --check
say "lints"
cargo clippy --quiet --workspace --all-targets -- -D warnings
# The build with debug assertions, which the tests need anyway.
if [ -n "${FPAGENT:-}" ]; then
    find_fpagent
else
    cargo build --quiet --package fp-agent --bin fpagent
    fpagent=$(target_dir)/debug/fpagent
fi
image=$repo/.local/image/tiny
"$repo/deploy/build-image.sh" tiny "$image"
debian=$repo/.local/image/debian
"$repo/deploy/build-image.sh" debian "$debian"
"$repo/deploy/fuzz.sh" --planted
"$repo/deploy/fuzz.sh" --time "${FP_FUZZ_SECONDS:-60}"
say "documentation's examples"
cargo test --quiet --workspace --doc

# Short, because sockets lie in it, and open to pass through, because guests run as other users.
work=$(mktemp -d /tmp/fpt.XXXXXX)
chmod 711 "$work"

# What the tests started and left: it has their mark in its environment, their directory in its
# arguments, or one of their directories (there or in target/tests) as its own. Printed as pids.
leftovers() {
    local process pid
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        if [ "$pid" = $$ ] || [ "$pid" = "$BASHPID" ]; then continue; fi
        if grep -qzFx "FP_TEST_RUN=$work" "$process/environ" 2>/dev/null ||
            tr '\0' ' ' <"$process/cmdline" 2>/dev/null | grep -qF -- "$work/" ||
            readlink "$process/cwd" 2>/dev/null | grep -qE -- "^($work|$(target_dir)/(tests|tmp))/"; then
            printf '%s\n' "$pid"
        fi
    done
}

finish() {
    local status=$? pid left
    trap - EXIT
    left=$(leftovers)
    if [ -n "$left" ]; then
        printf 'test.sh: left running, and ended now:\n' >&2
        for pid in $left; do
            printf '  %s %s\n' "$pid" "$(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | cut -c 1-200)" >&2
            kill -KILL "$pid" 2>/dev/null || true
        done
        [ "$status" != 0 ] || status=1
    fi
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

# What was built is still being written, and for seconds nothing else gets through to the disk.
sync
say "tests"
FP_TEST_RUN=$work TMPDIR=$work FP_TEST_IMAGE=$image FP_TEST_DEBIAN=$debian FPAGENT=$fpagent \
    cargo nextest run --workspace "$@"
