#!/usr/bin/env bash
# What forks cost on this machine.
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'USAGE'
usage: deploy/bench.sh [--quick] [--only WORD] [--out DIR] [--prototypes DIR]

Installs what is needed (deploy/deps.sh --test), builds the release and the guest image, and measures
forks on a cluster of three agents with real guests: the parent's pause, the time until the children
run, processor time, memory and bytes for each fork, beside a bare QEMU that loads the same files and
QEMU's own way. Prints a table and writes DIR/bench.json and DIR/bench.svg (target/bench unless said).

  --quick            five minutes instead of half an hour
  --only WORD        only the scenarios with WORD in their name: repeated, deep, ready, burst, many, yardstick
  --prototypes DIR   runs fork_floor.py and tracked_capture.py of DIR beside; ../shared/prototypes is
                     taken when it is there

Nothing else should run on the machine meanwhile. docs/benchmarks.md says how to read it.
USAGE
}

out='' prototypes='' arguments=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --quick) arguments+=(--quick) ;;
        --only) arguments+=(--only "${2:?--only needs a word}"); shift ;;
        --out) out=${2:?--out needs a directory}; shift ;;
        --prototypes) prototypes=${2:?--prototypes needs a directory}; shift ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
out=${out:-$(target_dir)/bench}
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
say "building the benchmark"
cargo build --quiet --release --package fp-tests --bin bench
mkdir -p "$out"
bench=$(target_dir)/release/bench
say "measuring"
FP_TEST_IMAGE=$image FPAGENT=$fpagent "$bench" run "${arguments[@]}" --json "$out/bench.json"
"$bench" draw "$out/bench.json" "$out/bench.svg"
say "written: $out/bench.json, $out/bench.svg"
