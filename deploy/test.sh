#!/usr/bin/env bash
# Every test, from a fresh machine. What CI runs.
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'USAGE'
usage: deploy/test.sh [--full] [NEXTEST_ARGUMENT...]

Installs what is needed (deploy/deps.sh --test), checks format and lints, builds the agent and the
guest image, fuzzes what reads bytes that others made, and runs every test, with real QEMU guests. Arguments go to `cargo nextest run`.
The last line is the runner's own count. Ends with an error when anything fails, or when a process
that a test started is left.

The tests get
  FP_TEST_IMAGE   the directory of the tiny image
  FP_TEST_DEBIAN  the directory of the Debian image
  FP_TEST_GUESTS  the one whose guests are worked in, where either will do: tiny or debian
  FPAGENT         the agent that is tested, unless it is given: built with debug assertions
  TMPDIR          a directory of their own, deleted at the end

The loops have a share that shows something in minutes. With --full, for before a release, they have all
of it, some hours, and the guests' tests are run once more in Debian. Each can be said by itself, too:

                              without  --full
  FP_KILLS                         30     300  kills of an agent at random moments
  FP_AGENT_KILLS                   20    1000  kills of an agent while guests run
  FP_CUTS                          12    2000  moments at which the power is cut
  FP_FAULT_SECONDS                 50    1800  seconds that clusters of three and of five are cut and killed, each
  FP_FORKS                         12     100  forks whose every trait is compared
  FP_SPREAD                         6      30  forks of one request over three hosts
  FP_MAP                           18     200  items of a map while a host is killed
  FP_DRAIN                          4      50  VMs of a host that is drained
  FP_HA_ROUNDS                      3      20  hosts that are lost, one after the other
  FP_SELF_FORKS                     2       3  children of each machine that forks itself, three levels deep
  FP_EXEC_MIB                      32    1024  MiB through a program in a guest, and back
  FP_EXACT_CASES                   12     100  random memories that are captured and compared, and
  FP_EXACT_ROUNDS                   8      40  captures of each guest whose memory is
  FP_FUZZ_SECONDS                  30    1800  seconds of fuzzing each target

With FP_LINK=119M (or another rate) clusters of tests are in network namespaces, and their agents send no more than that a second.
USAGE
}

full=''
case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    --full) full=yes; shift ;;
esac

profile=default
if [ -n "$full" ]; then
    profile=full
    export FP_AGENT_KILLS=${FP_AGENT_KILLS:-1000} FP_CUTS=${FP_CUTS:-2000} FP_FAULT_SECONDS=${FP_FAULT_SECONDS:-1800}
    export FP_KILLS=${FP_KILLS:-300} FP_FORKS=${FP_FORKS:-100} FP_SELF_FORKS=${FP_SELF_FORKS:-3} FP_SPREAD=${FP_SPREAD:-30} FP_MAP=${FP_MAP:-200}
    export FP_DRAIN=${FP_DRAIN:-50} FP_HA_ROUNDS=${FP_HA_ROUNDS:-20}
    export FP_EXEC_MIB=${FP_EXEC_MIB:-1024} FP_EXACT_CASES=${FP_EXACT_CASES:-100} FP_EXACT_ROUNDS=${FP_EXACT_ROUNDS:-40}
    FP_FUZZ_SECONDS=${FP_FUZZ_SECONDS:-1800}
fi

"$repo/deploy/deps.sh" --test
hash -r
cd "$repo"

say "format"
cargo fmt --all --check
say "lints"
cargo clippy --quiet --workspace --all-targets -- -D warnings
# Everything that the tests need, once: the agent alone would be built with other features, and a second time.
say "building, with debug assertions"
cargo build --quiet --workspace --all-targets
if [ -n "${FPAGENT:-}" ]; then
    find_fpagent
else
    fpagent=$(target_dir)/debug/fpagent
fi
image=$repo/.local/image/tiny
"$repo/deploy/build-image.sh" tiny "$image"
debian=$repo/.local/image/debian
"$repo/deploy/build-image.sh" debian "$debian"
"$repo/deploy/fuzz.sh" --planted
"$repo/deploy/fuzz.sh" --time "${FP_FUZZ_SECONDS:-30}"
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
run() { # SAY NEXTEST_ARGUMENT...
    say "$1"
    # Of a long output the end is shown: what failed, and not where the test runner was.
    RUST_BACKTRACE=0 FP_TEST_RUN=$work TMPDIR=$work FP_TEST_IMAGE=$image FP_TEST_DEBIAN=$debian FPAGENT=$fpagent \
        cargo nextest run --workspace --profile "$profile" --test-threads $((2 * $(nproc))) "${@:2}"
}
failed=0
if [ -n "$full" ]; then
    FP_TEST_GUESTS=debian run "guests' tests in Debian" --package fp-tests \
        -E 'binary(/^guest_(exec|files|forks|identity|network|restart|selffork)$/)' || failed=1
fi
run tests "$@" || failed=1
exit $failed
