#!/usr/bin/env bash
# Builds a guest image: kernel, initrd, root disk. Idempotent: nothing is done while the inputs are
# the same. Needs no VM, and mounts nothing that others could see, so it runs in a container too.
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'USAGE'
usage: deploy/build-image.sh tiny|debian OUT_DIR

Builds a guest image into OUT_DIR:

  vmlinuz       Debian's cloud kernel
  initrd        static busybox and the virtio modules; goes on from the disk when there is one
  disk.qcow2    the root disk: ext4
  image.env     CMDLINE and READY_LINE, to be sourced

  tiny          static busybox and fpguest, which is its first process too. Boots in seconds, to a shell
                on the serial console. The initrd holds the same programs. 1 GiB
  debian        Debian 12 with systemd, OpenSSH and Python, made by debootstrap from the mirror this
                machine already uses; must be built as root. 4 GiB. A test image: whoever reaches its
                console is root; over SSH it takes keys only, and it makes its host key when it first boots

The line in READY_LINE says that a guest is up. In both, fpguest's agent runs; an empty file
/etc/forkypig/ssh-host-keys (Debian has it) asks it to give every fork SSH host keys of its own, and
what lies in /etc/forkypig/fork.d/ is run in every fork.

On the kernel command line the tiny guest understands
  fp.pulse              write a checksummed record to console, disk (/var/lib/pulse) and memory ten times a second
  fp.pulse=MS           the same every MS milliseconds
  fp.pulse=all          the same on every processor, fifty times a second, to /var/lib/pulse.N each, and to the raw disk
                        as well: 4 MiB for each processor, from the file system's end at 1 GiB on
  fp.beat[=MS]          print a mark to the console every MS (50) milliseconds, which costs little
  fp.churn[=MIB]        rewrite MIB (64) of memory as fast as it goes, on every processor
  fp.churn-disk         keep a file on the disk busy as well
  fp.fill=MIB           fill MIB of memory once, and say "fp.fill done"
  fp.rate=MIB           write so much of it again each second
  fp.agent=off          run no agent
  fp.echo               send back what comes through the virtio serial port org.forkypig.agent, and run no agent
  fp.hostile=KIND       run a program in the agent's place that lies to its host: see fpguest --help

environment: FP_CACHE   where the kernel's package and what debootstrap made are kept (.local/cache in the repository)
             TMPDIR     where the image is put together (/tmp): 1 GiB, for debian 4 GiB less its holes
USAGE
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    tiny | debian) kind=$1 ;;
    *) usage >&2; exit 2 ;;
esac
[ $# = 2 ] || { usage >&2; exit 2; }

sources=$repo/deploy/guest
mkdir -p "$2"
out=$(cd "$2" && pwd)
cache=${FP_CACHE:-$repo/.local/cache}
mkdir -p "$cache"
. "$repo/deploy/image/common.sh"
. "$repo/deploy/image/$kind.sh"

for tool in apt-get dpkg-deb busybox cpio mke2fs qemu-img cargo flock; do
    command -v "$tool" >/dev/null || die "$tool is missing; deploy/deps.sh installs it"
done
busybox=$(command -v busybox)
! LC_ALL=C ldd "$busybox" 2>/dev/null | grep '=>' >/dev/null || die "$busybox is not static; install busybox-static"
check_host

# Two builds of one image wait for each other.
exec 9>"$out/.lock"
flock 9
work=$(mktemp -d "${TMPDIR:-/tmp}/forkypig-image.XXXXXX")
trap remove_work EXIT
trap 'exit 130' INT TERM

say "building fpguest"
fpguest=$(build_fpguest)
deb=$(kernel_deb)
stamp=$({
    basename "$deb"
    cat "$0" "$repo"/deploy/image/{common,"$kind"}.sh "$fpguest" "$busybox" "$deb"
    tar -c -C "$sources" --sort=name --mtime=@0 --owner=0 --group=0 initrd "$kind"
} | sha256sum | cut -d ' ' -f 1)
if [ "$(cat "$out/.stamp" 2>/dev/null)" = "$stamp" ] &&
    [ -s "$out/vmlinuz" ] && [ -s "$out/initrd" ] && [ -s "$out/disk.qcow2" ] && [ -s "$out/image.env" ]; then
    say "$out is up to date"
    exit 0
fi

say "making the image from $(basename "$deb")"
dpkg-deb -x "$deb" "$work/kernel"
cp "$work"/kernel/boot/vmlinuz-* "$work/vmlinuz"
build_image
# Where it is emulated, a guest also needs tsc_early_khz=KHZ, the host's time stamp counter: on microvm
# it has only the PIT to measure it by, which fails while the host is busy, and then the boot hangs.
cat >"$work/image.env" <<ENV
CMDLINE="console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests$cmdline_more"
READY_LINE="forkypig-guest ready"
ENV

rm -f "$out/.stamp"
for file in vmlinuz initrd disk.qcow2 image.env; do
    chmod 644 "$work/$file"
    mv "$work/$file" "$out/$file"
done
printf '%s\n' "$stamp" >"$out/.stamp"
say "$out: $(cd "$out" && du -h vmlinuz initrd disk.qcow2 | awk '{printf "%s %s  ", $2, $1}')"
