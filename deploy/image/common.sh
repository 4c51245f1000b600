# What both images are made of. Sourced by build-image.sh, which sets sources, cache, and later busybox,
# work, fpguest. An image's own file beside this one has
#   check_host      ends with an error when this host cannot build it
#   build_image     makes $work/initrd and $work/disk.qcow2 from the unpacked kernel in $work/kernel
#   cmdline_more    what its kernel's command line has besides, each word after a space
# shellcheck shell=bash disable=SC2154

# In the order in which they depend on each other; what the kernel has built in is left out.
pci_modules="virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci"
# What the initrd loads before it goes on from the disk. A panic is told from the first of it on.
disk_modules="virtio_ring virtio virtio_mmio $pci_modules pvpanic pvpanic-mmio pvpanic-pci virtio_blk"
modules="$disk_modules virtio-rng virtio_console failover net_failover virtio_net evdev button"

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

# Prints the path of a module's file in the unpacked kernel, nothing when the kernel has it built in.
module_file() { # MODULE
    local file
    file=$(find "$work/kernel/lib/modules" -name "$1.ko" | head -n 1)
    if [ -z "$file" ]; then
        grep -q "/$1.ko$" "$work"/kernel/lib/modules/*/modules.builtin || die "the kernel has no $1"
    fi
    printf '%s' "$file"
}

# What an initrd has: busybox under all of its names, all modules, and which of them are for the disk.
make_busybox_tree() { # ROOT DISK_MODULES
    local root=$1 applet module file
    mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,etc,proc,sys,dev,run,tmp,mnt,lib/modules}
    cp "$busybox" "$root/bin/busybox"
    for applet in $("$busybox" --list-full); do
        [ "$applet" = bin/busybox ] || ln -sf /bin/busybox "$root/$applet"
    done
    for module in $modules; do
        file=$(module_file "$module")
        [ -z "$file" ] || cp "$file" "$root/lib/modules/"
    done
    # shellcheck disable=SC2086 # a line for each word
    printf '%s\n' $2 >"$root/etc/modules.disk"
}

# What the guest's agent looks for, beside its program.
add_agents_files() { # ROOT
    mkdir -p "$1/etc/forkypig/fork.d"
    # Filled when the guest becomes somebody.
    : >"$1/etc/machine-id"
}

make_initrd() { # ROOT
    # The same inputs make the same initrd.
    find "$1" -exec touch -h -d @0 {} +
    (cd "$1" && find . -print0 | LC_ALL=C sort -z |
        cpio --null --create --format=newc --reproducible --owner=0:0 --quiet) >"$work/initrd"
}

make_disk() { # ROOT SIZE INODES
    truncate -s "$2" "$work/disk.raw"
    # Nothing lazy: a guest would write what is left out in the background, into every fork's layer.
    mke2fs -q -t ext4 -d "$1" -L forkypig -m 0 -N "$3" -J size=16 \
        -E root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 "$work/disk.raw"
    qemu-img convert -f raw -O qcow2 "$work/disk.raw" "$work/disk.qcow2"
}

# Ends what is mounted in the work folder, then removes it.
remove_work() {
    local mount
    awk -v work="$work/" 'index($2, work) == 1 { print $2 }' /proc/self/mounts | sort -r |
        while read -r mount; do umount -l "$mount" || true; done
    rm -rf --one-file-system "$work"
}
