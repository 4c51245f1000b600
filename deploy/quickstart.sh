#!/usr/bin/env bash
# From a fresh machine to forks of a running VM. Idempotent: what is there is used.
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'USAGE'
usage: deploy/quickstart.sh [--dir DIR] [--nodes 3] [--base-port 7841]

Does, in this order, what is not done yet:
  1. installs what is needed (deploy/deps.sh; needs root when something is missing)
  2. builds fpagent
  3. builds the tiny guest image (deploy/build-image.sh) into .local/image/tiny
  4. starts a cluster of three agents on this machine (deploy/local-cluster.sh up)
  5. imports the image as `tiny` and makes a VM `parent` through node 1, on node 2
  6. forks it three times through node 3 (each run of this script forks three more)
and shows the nodes, the tree and what the fork took. The options are those of local-cluster.sh.
USAGE
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
esac
cluster=("$repo/deploy/local-cluster.sh")
options=("$@")

"$repo/deploy/deps.sh"
hash -r
say "building fpagent"
find_fpagent
export FPAGENT=$fpagent
image=$repo/.local/image/tiny
"$repo/deploy/build-image.sh" tiny "$image"
"${cluster[@]}" up "${options[@]}"
eval "$("${cluster[@]}" env "${options[@]}")"
read -r -a addresses <<<"$FPAGENT_NODES"
last=${#addresses[@]}

# Through the network, as an administrator: through node $1.
through() {
    local n=$1
    shift
    FPAGENT_ADDR=${addresses[n - 1]} "$fpagent" "$@"
}

has() { # KIND NAME, as in `image` and `vm`
    through 1 "$1" ls -o json | json_strings name | grep -Fx -- "$2" >/dev/null
}

if ! has image tiny; then
    say "importing the image through node 1"
    # shellcheck disable=SC1091
    . "$image/image.env"
    through 1 image import tiny --kernel "$image/vmlinuz" --initrd "$image/initrd" --cmdline "$CMDLINE fp.pulse" \
        --disk "$image/disk.qcow2" --ready-line "$READY_LINE" >&2
fi

if ! has vm parent; then
    home=$([ "$last" -ge 2 ] && echo node2 || echo node1)
    say "creating the VM parent through node 1, on $home: it boots"
    through 1 vm create parent --image tiny --memory 256M --node "$home" --wait >&2
fi
state=$(through 1 vm show parent -o json | json_strings state | head -n 1)
case "$state" in
    running) ;;
    stopped | failed)
        say "parent is $state: starting it"
        through 1 vm start parent >&2
        ;;
    paused) through 1 vm resume parent >&2 ;;
    *) die "parent is ${state:-not there}; \`fpagent vm show parent\` says why" ;;
esac

say "forking parent three times through node $last"
answer=$(through "$last" fork parent -n 3 -o json)

printf '\nfpagent node ls\n'
through 1 node ls -o table
printf '\nfpagent tree\n'
through 1 tree
printf '\nThe fork, in milliseconds:\n'
# One object, in the order of cli.md: pauseMs, then name and runningMs of each child.
grep -oE '"(pauseMs|name|runningMs|error)": *("[^"]*"|[0-9.]+)' <<<"$answer" | tr -d '" ' | awk -F: '
    $1 == "pauseMs" { printf "  %-14s stood still for %s\n", "parent", $2 }
    $1 == "name" { child = $2 }
    $1 == "runningMs" { printf "  %-14s was running %s after the request\n", child, $2 }
    $1 == "error" && $2 != "" { printf "  %-14s failed: %s\n", child, $2 }'

cat <<NEXT

How to go on:
  export PATH="$(dirname "$fpagent"):\$PATH"
  eval "\$(deploy/local-cluster.sh env ${options[*]})"
  fpagent vm ls                       what runs, and where
  fpagent logs parent                 its console; the pulse lines differ from fork to fork
  fpagent fork parent -n 5            more of them; a fork can be forked too
  fpagent snapshot create parent s1   a point to fork from later
How to stop:
  deploy/local-cluster.sh down        the agents end, the VMs run on
  deploy/local-cluster.sh down --vms  everything ends; then \`rm -r .local\` leaves nothing
NEXT
