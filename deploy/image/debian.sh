# The Debian image: debootstrap's smallest system with systemd, OpenSSH and Python, both agents, and
# nothing that wakes an idle guest. busybox is for what the rest has not, as nc and ps. Sourced by build-image.sh.
# shellcheck shell=bash disable=SC2034,SC2154

# The agent names the network's device eth0; the rest saves looking for what is not there.
cmdline_more=" net.ifnames=0 systemd.gpt_auto=0 fsck.mode=skip"

packages="acpid busybox-static iproute2 kmod openssh-server python3 qemu-guest-agent systemd-sysv udev"

# What would wait for a network that nobody configures but the agent, write to the disk of a fork that
# does nothing, or look at each boot for what a VM has not.
masked="
apt-daily.service apt-daily.timer apt-daily-upgrade.service apt-daily-upgrade.timer
dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
systemd-tmpfiles-clean.timer systemd-random-seed.service systemd-update-utmp.service
systemd-update-utmp-runlevel.service systemd-pstore.service systemd-journal-flush.service
systemd-machine-id-commit.service systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service
systemd-logind.service systemd-firstboot.service systemd-hwdb-update.service
getty-static.service getty@tty1.service modprobe@.service
proc-sys-fs-binfmt_misc.automount systemd-binfmt.service
sys-fs-fuse-connections.mount sys-kernel-config.mount sys-kernel-debug.mount
sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount
systemd-ask-password-wall.path systemd-ask-password-console.path acpid.path
"

check_host() {
    [ "$(id -u)" = 0 ] || die "run me as root: debootstrap must be able to make files of all users"
    command -v debootstrap >/dev/null || die "debootstrap is missing; deploy/deps.sh --test installs it"
}

# Unpacks into ROOT what debootstrap makes of the packages. That is kept, so that nothing is fetched
# where only what is ours has changed.
make_base() { # ROOT
    local root=$1 key archive site private=()
    key=$(declare -f make_base slim | cat - <(printf '%s\n' "$packages") | sha256sum | cut -c 1-16)
    archive=$cache/debian-$key.tar.gz
    if [ ! -s "$archive" ]; then
        site=$(mirror)
        [ -n "$site" ] || die "this machine's apt sources name no mirror of bookworm"
        # What it mounts there is gone with its name space, however it ends. Without the right to have
        # one it mounts nothing that remove_work does not find.
        ! unshare --mount true 2>/dev/null || private=(unshare --mount --propagation private)
        say "debootstrap: $packages"
        "${private[@]}" debootstrap --variant=minbase --include="${packages// /,}" bookworm "$root" "$site" \
            >"$work/debootstrap.log" 2>&1 </dev/null ||
            { tail -n 20 "$work/debootstrap.log" >&2; die "debootstrap failed"; }
        slim "$root"
        tar -cz --numeric-owner --sort=name -f "$work/base.tar.gz" -C "$root" .
        mv "$work/base.tar.gz" "$archive"
        rm -rf --one-file-system "$root"
    fi
    mkdir "$root"
    tar -xz --numeric-owner -p -f "$archive" -C "$root"
}

# Leaves out what only a person reads, what apt can fetch again, and what is this host's.
slim() { # ROOT
    local root=$1
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/var/cache/debconf/*-old \
        "$root"/usr/share/{info,lintian,locale,man} "$root"/etc/ssh/ssh_host_* "$root"/etc/resolv.conf
    find "$root/usr/share/doc" ! -type d ! -name copyright -delete
    find "$root/usr/share/doc" -mindepth 1 -type d -empty -delete
    mkdir -p "$root"/var/cache/apt/archives/partial "$root"/var/lib/apt/lists/partial "$root"/usr/share/{locale,man}
}

# Our part of the tree.
add_ours() { # ROOT
    local root=$1 units=$1/etc/systemd/system unit version module file
    # Its files have no owner of their own, and its folders are Debian's.
    tar -c -C "$sources/debian" --owner=0 --group=0 --mode=u=rwX,go=rX . |
        tar -x -p --no-overwrite-dir -C "$root"
    install -m 755 "$fpguest" "$root/usr/local/bin/fpguest"
    add_agents_files "$root"
    : >"$root/etc/resolv.conf"
    : >"$root/etc/forkypig/ssh-host-keys"

    for unit in $masked; do ln -sf /dev/null "$units/$unit"; done
    rm -rf "$units/timers.target.wants" "$units/getty.target.wants"
    ln -sf /lib/systemd/system/multi-user.target "$units/default.target"
    mkdir -p "$units"/{sysinit,multi-user}.target.wants
    ln -sf ../fpguest.service "$units/sysinit.target.wants/"
    for unit in forkypig-ready forkypig-host-key; do
        ln -sf "../$unit.service" "$units/multi-user.target.wants/"
    done
    ln -sf /lib/systemd/system/acpid.service "$units/multi-user.target.wants/"
    # OpenSSH is started for each connection: see ssh.socket.d.
    rm -f "$units"/{sshd,multi-user.target.wants/ssh}.service
    mkdir -p "$units/sockets.target.wants"
    ln -sf /lib/systemd/system/ssh.socket "$units/sockets.target.wants/"

    # The initrd loads them; here they are for who asks modprobe. systemd asks for autofs4.
    version=$(basename "$work"/kernel/lib/modules/*)
    for module in $modules autofs4; do
        file=$(module_file "$module")
        [ -z "$file" ] || install -D -m 644 "$file" "$root/lib/modules/$version/${file#*"/lib/modules/$version/"}"
    done
    cp "$work/kernel/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "$root/lib/modules/$version/"
    chroot "$root" depmod "$version" 2>"$work/depmod.log" || { cat "$work/depmod.log" >&2; die "depmod failed"; }

    # Or systemd takes it for a system whose /usr was updated, and brings up to date what follows from that.
    touch -r "$root/usr" "$root/etc/.updated" "$root/var/.updated"
}

build_image() {
    make_busybox_tree "$work/initrd.root" "$modules"
    cp -a "$sources/initrd/." "$work/initrd.root/"
    make_initrd "$work/initrd.root"
    make_base "$work/root"
    add_ours "$work/root"
    make_disk "$work/root" 4G 131072
}
