#!/usr/bin/env bash
# A cluster of agents on this machine, for trying things out and for tests. Idempotent.
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'USAGE'
usage: deploy/local-cluster.sh up|down|status|env [--dir DIR] [--nodes 3] [--base-port 7841] [--vms]

  up       makes what is missing of the cluster, starts what does not run, waits until all are online
  down     ends the agents; their VMs run on, and the next `up` finds them again
  down --vms   deletes all VMs first
  status   which agents run, and the cluster's own view
  env      prints what a client needs, for `eval "$(deploy/local-cluster.sh env)"`

  --dir DIR        where everything lies (.local/cluster in the repository): node1, node2, … with the
                   data, agent.sock, agent.pid and agent.log of each
  --nodes N        how many agents (3, or what the directory has)
  --base-port P    node1 listens on 127.0.0.1:P, node2 on P + 1, … (7841, or what the directory has)

environment: FPAGENT   the binary to run; without it the release build is brought up to date
USAGE
}

wrong() { printf 'local-cluster.sh: %s\n' "$*" >&2; usage >&2; exit 2; }

number() { # OPTION VALUE
    [[ "${2:-}" =~ ^[1-9][0-9]{0,4}$ ]] || wrong "$1 needs a number"
    printf '%s\n' "$2"
}

command=${1:-}
case "$command" in
    -h | --help) usage; exit 0 ;;
    up | down | status | env) shift ;;
    "") wrong "say what to do" ;;
    *) wrong "there is no $command" ;;
esac

dir=$repo/.local/cluster nodes="" base_port="" with_vms=0
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --dir) [ -n "${2:-}" ] || wrong "--dir needs a directory"; dir=$2; shift 2 ;;
        --nodes) nodes=$(number "$1" "${2:-}"); shift 2 ;;
        --base-port) base_port=$(number "$1" "${2:-}"); shift 2 ;;
        --vms) [ "$command" = down ] || wrong "--vms belongs to down"; with_vms=1; shift ;;
        *) wrong "there is no option $1" ;;
    esac
done

if [ "$command" = up ]; then
    mkdir -p "$dir"
    chmod 711 "$dir" # guests run as users of their own and must get through
fi
[ -d "$dir" ] || die "there is no cluster in $dir; \`up\` makes one"
dir=$(cd "$dir" && pwd)
settings=$dir/cluster.env

# What the directory was made with holds, so that `env` and `down` need no options.
known() { sed -n "s/^$1=\([0-9]*\)$/\1/p" "$settings" 2>/dev/null || true; }
known_port=$(known BASE_PORT) known_nodes=$(known NODES)
base_port=${base_port:-${known_port:-7841}}
[ "$base_port" = "${known_port:-$base_port}" ] || die "the agents in $dir listen from port $known_port on, not $base_port"
nodes=${nodes:-${known_nodes:-3}}
[ "$nodes" -ge "${known_nodes:-1}" ] || nodes=$known_nodes

node() { printf '%s/node%s\n' "$dir" "$1"; }
listen() { printf '127.0.0.1:%s\n' $((base_port + $1 - 1)); }
address() { printf 'unix://%s/agent.sock\n' "$(node "$1")"; }
client() { local n=$1; shift; FPAGENT_ADDR=$(address "$n") "$fpagent" "$@"; }

# The pid of node $1's agent, when it runs: the process must be ours, not one that got its number.
agent_pid() {
    local pid
    pid=$(cat "$(node "$1")/agent.pid" 2>/dev/null) || return 1
    [ -n "$pid" ] && [ -r "/proc/$pid/cmdline" ] || return 1
    tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -Fx -- "$(node "$1")" >/dev/null || return 1
    tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -Fx run >/dev/null || return 1
    printf '%s\n' "$pid"
}
gone() { ! agent_pid "$1" >/dev/null; }

# The pids of QEMU processes of this cluster: a node's data directory is their working directory.
guests() {
    local process
    for process in /proc/[0-9]*; do
        case "$(readlink "$process/cwd" 2>/dev/null)" in
            "$dir"/node*) ;;
            *) continue ;;
        esac
        if tr '\0' '\n' <"$process/cmdline" 2>/dev/null | grep '^fp-' >/dev/null; then
            printf '%s\n' "${process#/proc/}"
        fi
    done
}
no_guests() { [ -z "$(guests)" ]; }

failed() { # NODE MESSAGE
    printf '%s\n' "--- the end of $(node "$1")/agent.log" >&2
    tail -n 20 "$(node "$1")/agent.log" >&2 2>/dev/null || true
    die "$2"
}

start() { # NODE
    agent_pid "$1" >/dev/null && return
    local home
    home=$(node "$1")
    say "starting node$1 on $(listen "$1")"
    # A session of its own: it lives on when the terminal goes. The lock stays with this script.
    setsid "$fpagent" run --data-dir "$home" --socket "$home/agent.sock" \
        </dev/null >>"$home/agent.log" 2>&1 9>&- &
    printf '%s\n' $! >"$home/agent.pid"
}

answers() { client "$1" status -o json >/dev/null 2>&1; }
answers_or_ended() { gone "$1" || answers "$1"; }

wait_for() { # NODE
    wait_until 30 answers_or_ended "$1" || failed "$1" "node$1 does not answer after 30 s"
    answers "$1" || failed "$1" "node$1's agent has ended"
}

prepare() { # NODE: makes it the first of a cluster, or a member of it
    local home token said
    home=$(node "$1")
    [ ! -e "$home/identity.json" ] || return 0
    # The agent makes its directory and refuses one with something in it: nothing of ours before that.
    if [ "$1" = 1 ]; then
        say "making a cluster with node1"
        said=$("$fpagent" init --data-dir "$home" --name node1 --listen "$(listen 1)" 2>&1) ||
            die "node1 could not be made: $said"
    else
        say "node$1 joins"
        token=$(client 1 token create --ttl 5m -o json | json_strings token)
        [ -n "$token" ] || die "node1 gave no join token"
        said=$("$fpagent" join --data-dir "$home" --name "node$1" --listen "$(listen "$1")" --token "$token" 2>&1) ||
            die "node$1 could not join: $said"
    fi
}

all_online() {
    [ "$(client 1 node ls -o json 2>/dev/null | json_strings state | grep -cx online)" -ge "$nodes" ]
}

up() {
    local n longest
    longest=$(node "$nodes")/agent.sock
    [ ${#longest} -lt 108 ] || die "$longest is too long for a socket's name; choose a shorter --dir"
    printf 'BASE_PORT=%s\nNODES=%s\n' "$base_port" "$nodes" >"$settings"
    # Members first: a majority may be needed before any of them answers.
    for n in $(seq "$nodes"); do
        [ ! -e "$(node "$n")/identity.json" ] || start "$n"
    done
    for n in $(seq "$nodes"); do
        prepare "$n"
        start "$n"
        wait_for "$n"
    done
    if ! wait_until 30 all_online; then
        client 1 node ls >&2 || true
        failed 1 "not all of the $nodes nodes are online after 30 s"
    fi
    say "$nodes nodes are online; \`eval \"\$(deploy/local-cluster.sh env)\"\` sets up a client"
}

remove_vms() {
    local n ids
    for n in $(seq "$nodes"); do
        answers "$n" && break
        [ "$n" != "$nodes" ] || die "no agent answers, so no VM can be deleted; \`up\` first"
    done
    ids=$(client "$n" vm ls -o json | json_strings id)
    if [ -n "$ids" ]; then
        say "deleting $(wc -l <<<"$ids") VMs"
        # shellcheck disable=SC2086 # an id has no spaces
        client "$n" vm rm --force $ids >&2
    fi
}

down() {
    local n pid left
    [ "$with_vms" = 0 ] || remove_vms
    for n in $(seq "$nodes"); do
        if pid=$(agent_pid "$n"); then
            say "ending node$n"
            kill -TERM "$pid"
        fi
    done
    for n in $(seq "$nodes"); do
        wait_until 30 gone "$n" || failed "$n" "node$n's agent (pid $(agent_pid "$n")) is still there after 30 s"
        rm -f "$(node "$n")/agent.pid"
    done
    # Only now: forks that are kept ready end with their agents.
    if [ "$with_vms" = 1 ]; then
        wait_until 60 no_guests || die "QEMU processes are still there after 60 s: $(guests | tr '\n' ' ')"
    fi
    left=$(guests)
    if [ -n "$left" ]; then
        say "$(wc -l <<<"$left") VMs run on (pids $(tr '\n' ' ' <<<"$left")); \`up\` finds them again, \`down --vms\` after it deletes them"
    fi
}

status() {
    local n pid running=0
    for n in $(seq "$nodes"); do
        if pid=$(agent_pid "$n"); then
            printf 'node%s  %s  pid %s\n' "$n" "$(listen "$n")" "$pid"
            running=$((running + 1))
        else
            printf 'node%s  %s  not running\n' "$n" "$(listen "$n")"
        fi
    done
    [ "$running" -gt 0 ] || return 1
    for n in $(seq "$nodes"); do
        if agent_pid "$n" >/dev/null; then
            client "$n" node ls -o table
            break
        fi
    done
    [ "$running" = "$nodes" ]
}

env_lines() {
    local n addresses=""
    for n in $(seq "$nodes"); do addresses+="https://$(listen "$n") "; done
    printf 'export FPAGENT_ADDR=%q\n' "$(address 1)"
    printf 'export FPAGENT_NODES="%s"\n' "${addresses% }"
    printf 'export FPAGENT_CERTS=%q\n' "$(node 1)/certs/admin"
}

if [ "$command" = env ]; then
    env_lines
    exit 0
fi
if [ "$command" = up ]; then find_fpagent; else find_fpagent built; fi
if [ "$command" != status ]; then
    # Two of these at once wait for each other.
    exec 9>"$dir/.lock"
    flock 9
fi
"$command"
