#!/usr/bin/env bash
# Builds a guest image: kernel, initrd, root disk. Idempotent: nothing is done while the inputs are
# the same. Mounts nothing, so it runs in a container too.
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'USAGE'
usage: deploy/build-image.sh tiny OUT_DIR

Builds a guest image into OUT_DIR:

  vmlinuz       Debian's cloud kernel
  initrd        static busybox, the virtio modules, fpguest; goes on from the disk when there is one
  disk.qcow2    the root disk: ext4, 1 GiB, holds the same programs
  image.env     CMDLINE and READY_LINE, to be sourced

  tiny          boots in seconds, to a shell on the serial console; the line in READY_LINE says it is up

On the kernel command line the guest understands
  fp.pulse              write a checksummed record to console, disk (/var/lib/pulse) and memory ten times a second
  fp.pulse=all          the same on every processor, fifty times a second, to /var/lib/pulse.N each, and to the raw disk
                        as well: 4 MiB for each processor, from the file system's end at 1 GiB on
  fp.churn[=MIB]        rewrite MIB (64) of memory as fast as it goes, on every processor
  fp.churn-disk         keep a file on the disk busy as well
  fp.fill=MIB           fill MIB of memory once, and say "fp.fill done"
  fp.rate=MIB           write so much of it again each second
  fp.echo               send back what comes through the virtio serial port org.forkypig.agent

environment: FP_CACHE   where the kernel's package is kept (.local/cache in the repository)
USAGE
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    debian) printf 'build-image.sh: debian is not available yet; tiny is\n' >&2; exit 2 ;;
    tiny) ;;
    *) usage >&2; exit 2 ;;
esac
[ $# = 2 ] || { usage >&2; exit 2; }

sources=$repo/deploy/guest
mkdir -p "$2"
out=$(cd "$2" && pwd)
cache=${FP_CACHE:-$repo/.local/cache}
mkdir -p "$cache"

for tool in apt-get dpkg-deb busybox cpio mke2fs qemu-img cargo flock; do
    command -v "$tool" >/dev/null || die "$tool is missing; deploy/deps.sh installs it"
done
busybox=$(command -v busybox)
! LC_ALL=C ldd "$busybox" 2>/dev/null | grep '=>' >/dev/null || die "$busybox is not static; install busybox-static"

# Two builds of one image wait for each other.
exec 9>"$out/.lock"
flock 9
work=$(mktemp -d "${TMPDIR:-/tmp}/forkypig-image.XXXXXX")
trap 'rm -rf "$work"' EXIT

# In the order in which they depend on each other; what the kernel has built in is left out.
pci_modules="virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci"
modules="virtio_ring virtio virtio_mmio $pci_modules pvpanic pvpanic-mmio pvpanic-pci virtio_blk virtio-rng virtio_console failover net_failover virtio_net evdev button"
# What the initrd loads before it goes on from the disk. A panic is told from the first of it on.
disk_modules="virtio_ring virtio virtio_mmio $pci_modules pvpanic pvpanic-mmio pvpanic-pci virtio_blk"

build_fpguest() { # prints the program's path
    local target=x86_64-unknown-linux-gnu
    (cd "$repo" && RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
        cargo build --quiet --package fp-guest --bin fpguest --profile guest --target $target)
    printf '%s/%s/guest/fpguest\n' "$(target_dir)" $target
}

kernel_package() { # prints the name of the newest cloud kernel's package, nothing when apt knows none
    apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1
}

kernel_deb() { # prints the path of its package, downloaded once
    local package deb
    package=$(kernel_package)
    if [ -z "$package" ]; then
        apt-get update -qq
        package=$(kernel_package)
    fi
    [ -n "$package" ] || die "apt knows no linux-image-cloud-amd64; are Debian's package lists there?"
    deb=$(find "$cache" -name "${package}_*.deb" | sort -V | tail -n 1)
    if [ -z "$deb" ]; then
        say "downloading $package"
        # The lists may be older than the mirror: read them again once.
        (cd "$work" && { apt-get download -qq -o APT::Sandbox::User=root "$package" 2>/dev/null ||
            { apt-get update -qq && apt-get download -qq -o APT::Sandbox::User=root "$package"; }; })
        mv "$work/$package"_*.deb "$cache/"
        deb=$(find "$cache" -name "${package}_*.deb" | sort -V | tail -n 1)
    fi
    printf '%s\n' "$deb"
}

# The programs' tree, for the initrd and the disk alike: $1 is where, $2 the unpacked kernel.
make_tree() {
    local root=$1 kernel=$2 applet module file
    mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,etc,proc,sys,dev,run,tmp,root,var/lib,var/log,mnt,lib/modules}
    cp "$busybox" "$root/bin/busybox"
    for applet in $("$busybox" --list-full); do
        [ "$applet" = bin/busybox ] || ln -sf /bin/busybox "$root/$applet"
    done
    cp "$fpguest" "$root/bin/fpguest"
    ln -sf /bin/fpguest "$root/sbin/init"
    for module in $modules; do
        file=$(find "$kernel/lib/modules" -name "$module.ko" | head -n 1)
        if [ -n "$file" ]; then
            cp "$file" "$root/lib/modules/"
        else
            grep -q "/$module.ko$" "$kernel"/lib/modules/*/modules.builtin || die "the kernel has no $module"
        fi
    done
    cp -a "$sources/rootfs/." "$root/"
    # What every fork is given of its own, and its programs that are to run then.
    : >"$root/etc/machine-id"
    mkdir -p "$root/etc/forkypig/fork.d"
    # shellcheck disable=SC2086 # a line for each word
    printf '%s\n' $disk_modules >"$root/etc/modules.disk"
    # shellcheck disable=SC2086
    printf '%s\n' $modules >"$root/etc/modules"
    # The same inputs make the same initrd.
    find "$root" -exec touch -h -d @0 {} +
}

make_initrd() {
    (cd "$work/root" && find . -print0 | LC_ALL=C sort -z |
        cpio --null --create --format=newc --reproducible --owner=0:0 --quiet) >"$work/initrd"
}

make_disk() {
    rm "$work/root/init"
    truncate -s 1G "$work/disk.raw"
    # Nothing lazy: a guest would write what is left out in the background, into every fork's layer.
    mke2fs -q -t ext4 -d "$work/root" -L forkypig -m 0 -N 16384 -J size=16 \
        -E root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 "$work/disk.raw"
    qemu-img convert -f raw -O qcow2 "$work/disk.raw" "$work/disk.qcow2"
}

say "building fpguest"
fpguest=$(build_fpguest)
deb=$(kernel_deb)
stamp=$({ basename "$deb"; cat "$0" "$fpguest" "$busybox" "$deb"; cd "$sources" && tar -c --sort=name --mtime=@0 --owner=0 --group=0 . ; } | sha256sum | cut -d ' ' -f 1)
if [ "$(cat "$out/.stamp" 2>/dev/null)" = "$stamp" ] &&
    [ -s "$out/vmlinuz" ] && [ -s "$out/initrd" ] && [ -s "$out/disk.qcow2" ] && [ -s "$out/image.env" ]; then
    say "$out is up to date"
    exit 0
fi

say "making the image from $(basename "$deb")"
dpkg-deb -x "$deb" "$work/kernel"
cp "$work"/kernel/boot/vmlinuz-* "$work/vmlinuz"
make_tree "$work/root" "$work/kernel"
make_initrd
make_disk
# Where it is emulated, a guest also needs tsc_early_khz=KHZ, the host's time stamp counter: on microvm
# it has only the PIT to measure it by, which fails while the host is busy, and then the boot hangs.
cat >"$work/image.env" <<'ENV'
CMDLINE="console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests"
READY_LINE="forkypig-guest ready"
ENV

rm -f "$out/.stamp"
for file in vmlinuz initrd disk.qcow2 image.env; do
    chmod 644 "$work/$file"
    mv "$work/$file" "$out/$file"
done
printf '%s\n' "$stamp" >"$out/.stamp"
say "$out: $(cd "$out" && du -h vmlinuz initrd disk.qcow2 | awk '{printf "%s %s  ", $2, $1}')"
