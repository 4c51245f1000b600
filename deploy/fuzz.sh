#!/usr/bin/env bash
# Fuzzes what reads bytes that others made, guided by coverage.
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'USAGE'
usage: deploy/fuzz.sh [--time SECONDS] [--target NAME]...
       deploy/fuzz.sh --planted
       deploy/fuzz.sh --renew

Builds the targets of tests/fuzz with libFuzzer, on the stable compiler, and runs them side by side: the
channel between guests' agents and their hosts', both ends (frame host_end guest_end pair messages), join
tokens (token), the daemon's settings (settings), what is on a node's disk (stored), what members send each
other (peers), and the streams of snapshots (stream). What they reach is counted by the code's own counters;
inputs that reach more are kept in .local/fuzz/corpus, which begins with those in tests/fuzz/corpus. Ends
with an error, and the input's file, when anything is found.

  --time SECONDS   how long (60s)
  --target NAME    this target only; can be repeated (all)
  --planted        show that bugs are found: has each that is planted (see tests/planted) be found, from
                   no inputs at all, within 60 s
  --renew          take the smallest set of inputs that reaches all that was reached into tests/fuzz/corpus
USAGE
}

seconds=60 targets=() mode=run
while [ $# != 0 ]; do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --time | --target)
            [ $# -ge 2 ] || { usage >&2; exit 2; }
            if [ "$1" = --time ]; then seconds=${2%s}; else targets+=("$2"); fi
            shift
            ;;
        --planted) mode=planted ;;
        --renew) mode=renew ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
[[ $seconds =~ ^[1-9][0-9]*$ ]] || die "--time takes seconds, such as 60s"
sources=$repo/tests/fuzz/corpus
for target in "${targets[@]}"; do
    [ -f "$sources/$target.hex" ] || die "there is no target $target"
done
[ ${#targets[@]} != 0 ] || mapfile -t targets < <(basename -s .hex -a "$sources"/*.hex)

home=$repo/.local/fuzz
found=$home/found
mkdir -p "$found"
# Two at a time would take each other's time, and inputs.
exec 9>"$home/.lock"
flock 9

# As cargo-fuzz does it, less what only a nightly compiler has.
coverage='-C passes=sancov-module -C codegen-units=1'
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    coverage+=" -C llvm-args=-sanitizer-coverage-$option"
done

build() { # sets `fuzz`
    # The target is named so that the flags are not those of build scripts.
    local host
    host=$(rustc -vV | sed -n 's/^host: //p')
    (cd "$repo" && CARGO_TARGET_DIR=$(target_dir)/fuzz RUSTFLAGS=$coverage \
        cargo build --quiet --profile fuzz --target "$host" --package fp-fuzz --bin fuzz --features engine)
    fuzz=$(target_dir)/fuzz/$host/fuzz/fuzz
}

engine() { # TARGET ARGUMENT...
    FP_FUZZ=$1 "$fuzz" -max_len=4096 -timeout=20 -rss_limit_mb=1024 -verbosity=1 "${@:2}"
}

# The committed inputs as files, each named by its number.
seeds() { # TARGET
    local line folder=$home/seeds/$1 number=0
    rm -rf "$folder"
    mkdir -p "$folder" "$home/corpus/$1"
    while read -r line; do
        number=$((number + 1))
        printf '%b' "${line//??/\\x&}" >"$folder/$number"
    done <"$sources/$1.hex"
}

planted_bugs() {
    local all
    all=$(basename -s .hex -a "$sources"/*.hex | paste -s -d '|')
    grep -rhoE 'planted\("[a-z_.-]+"\)' "$repo"/{agent,guest,qemu,raft}/src | cut -d '"' -f 2 | grep -E "^($all)\." | sort -u
}

find_planted() { # BUG
    local bug=$1 work begun=$EPOCHREALTIME status=0 inputs
    work=$(mktemp -d "$home/planted.XXXXXX")
    FP_PLANTED=$bug engine "${bug%%.*}" -max_total_time=60 -artifact_prefix="$work/" >"$work/log" 2>&1 || status=$?
    if [ "$status" = 0 ] || [ -z "$(find "$work" -name 'crash-*')" ]; then
        tail -n 20 "$work/log" >&2
        printf 'fuzz.sh: the planted bug %s was not found\n' "$bug" >&2
        rm -rf "$work"
        return 1
    fi
    inputs=$(grep -oE '^#[0-9]+' "$work/log" | tail -n 1 | tr -d '#')
    # Coverage that does not count would be no guide. What is found among the first needs none.
    if [ "$inputs" -gt 1000 ] && [ "$(grep -oE 'cov: [0-9]+' "$work/log" | sort -u | wc -l)" -lt 2 ]; then
        printf 'fuzz.sh: no coverage is counted\n' >&2
        rm -rf "$work"
        return 1
    fi
    printf '    %-22s found after %5.1f s, %s inputs\n' "$bug" \
        "$(awk "BEGIN { print $EPOCHREALTIME - $begun }")" \
        "$inputs" >&2
    rm -rf "$work"
}

if [ "$mode" = planted ]; then
    say "building the fuzz targets"
    build
    say "looking for the bugs that are planted"
    export -f find_planted engine
    export home fuzz
    mapfile -t bugs < <(planted_bugs)
    [ ${#bugs[@]} != 0 ] || die "no bugs are planted"
    printf '%s\n' "${bugs[@]}" | xargs -P "$(nproc)" -I BUG bash -euo pipefail -c 'find_planted BUG'
    exit 0
fi

say "building the fuzz targets"
build
for target in "${targets[@]}"; do seeds "$target"; done

if [ "$mode" = renew ]; then
    for target in "${targets[@]}"; do
        work=$(mktemp -d "$home/renew.XXXXXX")
        # By what is reached, not how often: few, and small.
        engine "$target" -merge=1 -use_counters=0 -use_value_profile=0 "$work" "$home/corpus/$target" "$home/seeds/$target" \
            >"$home/$target.log" 2>&1 || die "see $home/$target.log"
        find "$work" -type f -size -2k -exec sh -c 'od -An -v -tx1 "$1" | tr -d " \n"; echo' _ {} \; |
            LC_ALL=C sort >"$sources/$target.hex"
        rm -rf "$work"
        say "$target: $(wc -l <"$sources/$target.hex") inputs"
    done
    exit 0
fi

say "fuzzing ${targets[*]} for $seconds s"
declare -A running=()
stop() { [ ${#running[@]} = 0 ] || kill "${running[@]}" 2>/dev/null || true; }
trap stop EXIT
trap 'exit 130' INT TERM
for target in "${targets[@]}"; do
    engine "$target" -max_total_time="$seconds" -artifact_prefix="$found/$target-" -print_final_stats=1 \
        "$home/corpus/$target" "$home/seeds/$target" >"$home/$target.log" 2>&1 &
    running[$target]=$!
done
failed=0
for target in "${targets[@]}"; do
    log=$home/$target.log
    if wait "${running[$target]}"; then
        printf '    %-10s %s\n' "$target" "$(grep -oE 'cov: .*' <<<"$(grep DONE "$log")" | tr -s ' ')" >&2
    else
        failed=1
        grep -vE 'NEW|REDUCE|pulse|WARNING|INFO' "$log" | tail -n 30 >&2
        input=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
        printf 'fuzz.sh: %s fails; run it again with\n  FP_FUZZ=%s %s %s\n' \
            "$target" "$target" "$fuzz" "${input:-(no input was kept; see $log)}" >&2
    fi
    unset "running[$target]"
done
exit "$failed"
