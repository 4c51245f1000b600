#!/usr/bin/env bash
# What forks, and the replicated state, cost on this machine.
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'USAGE'
usage: deploy/bench.sh [--quick] [--only WORD] [--out DIR] [--prototypes DIR]
       deploy/bench.sh raft|state|store|planner|hosts [--quick] [--out DIR]
       deploy/bench.sh failover

Installs what is needed (deploy/deps.sh --test), builds the release and the guest image, and measures
forks on a cluster of three agents with real guests: the parent's pause, the time until the children
run, processor time, memory and bytes for each fork, beside a bare QEMU that loads the same files and
QEMU's own way. Prints a table and writes DIR/bench.json and DIR/bench.svg (target/bench unless said).

  --quick            five minutes instead of half an hour
  --only WORD        only the scenarios with WORD in their name: repeated, deep, ready, burst, many, yardstick
  --prototypes DIR   runs fork_floor.py and tracked_capture.py of DIR beside; ../shared/prototypes is
                     taken when it is there

What is measured of the replicated state goes into the same DIR/bench.json, beside what is there:

  raft               writes side by side with Debian's etcd (deploy/deps.sh --bench): three members each,
                     the same disk, TLS on both, one writer and 64; about two minutes
  state              10,000 VMs that a host claims which has none: vm ls, a fork's commit beside a cluster
                     of ten, an agent's memory, a new node, a restart; about two minutes
  store              a day's writes, made fast: what they leave on disk; about ten minutes
  planner            where a thousand forks go, of a thousand nodes with 100,000 VMs, decided 600 times
  hosts              forks onto other hosts over links of 1 Gbit/s and 100 Mbit/s, while the bytes come and
                     onto one that has the base, beside QEMU's postcopy; three agents in network namespaces;
                     about six minutes

  failover           how long the loss of an agent is felt: three agents in network namespaces, the leader
                     killed 30 times, a follower stopped for 5 s 10 times; four minutes; written nowhere

Nothing else should run on the machine meanwhile. docs/benchmarks.md says how to read it.
USAGE
}

what=forks
case ${1:-} in
    raft | state | store | planner | hosts | failover) what=$1; shift ;;
esac
out='' prototypes='' arguments=()
while [ $# -gt 0 ]; do
    case $what$1 in
        *-h | *--help) usage; exit 0 ;;
        failover*) usage >&2; exit 2 ;;
        *--quick) arguments+=(--quick) ;;
        *--out) out=${2:?--out needs a directory}; shift ;;
        forks--only) arguments+=(--only "${2:?--only needs a word}"); shift ;;
        forks--prototypes) prototypes=${2:?--prototypes needs a directory}; shift ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
out=${out:-$(target_dir)/bench}

build() {
    say "building the benchmark"
    cargo build --quiet --release --package fp-tests --bin bench
    mkdir -p "$out"
    bench=$(target_dir)/release/bench
    say "measuring"
}

if [ "$what" = failover ]; then
    "$repo/deploy/deps.sh" --test
    hash -r
    cd "$repo"
    find_fpagent
    cargo build --quiet --release --package fp-tests --bin failover
    say "measuring"
    FPAGENT=$fpagent "$(target_dir)/release/failover"
    exit
fi
if [ "$what" != forks ]; then
    deps=()
    case $what in
        raft) deps=(--bench) ;;
        hosts) deps=(--test) ;;
    esac
    "$repo/deploy/deps.sh" "${deps[@]}"
    hash -r
    cd "$repo"
    find_fpagent
    if [ "$what" = hosts ]; then
        export FP_TEST_IMAGE=$repo/.local/image/tiny
        "$repo/deploy/build-image.sh" tiny "$FP_TEST_IMAGE"
    fi
    build
    FPAGENT=$fpagent "$bench" "$what" "${arguments[@]}" --json "$out/bench.json"
    say "written: $out/bench.json"
    exit
fi

if [ -z "$prototypes" ] && [ -e "$repo/../shared/prototypes/fork_floor.py" ]; then
    prototypes=$repo/../shared/prototypes
fi
if [ -n "$prototypes" ]; then arguments+=(--prototypes "$prototypes"); fi

"$repo/deploy/deps.sh" --test
hash -r
cd "$repo"
find_fpagent
image=$repo/.local/image/tiny
"$repo/deploy/build-image.sh" tiny "$image"
build
FP_TEST_IMAGE=$image FPAGENT=$fpagent "$bench" run "${arguments[@]}" --json "$out/bench.json"
"$bench" draw "$out/bench.json" "$out/bench.svg"
say "written: $out/bench.json, $out/bench.svg"
