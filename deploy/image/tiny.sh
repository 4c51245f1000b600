# The tiny image: busybox, fpguest, nothing else. The initrd and the disk hold the same programs.
# Sourced by build-image.sh.
# shellcheck shell=bash disable=SC2034,SC2154

cmdline_more=""

check_host() { :; }

build_image() {
    local root=$work/root
    make_busybox_tree "$root" "$disk_modules"
    mkdir -p "$root"/{root,var/lib,var/log}
    cp "$fpguest" "$root/bin/fpguest"
    ln -sf /bin/fpguest "$root/sbin/init"
    cp -a "$sources/initrd/." "$sources/tiny/." "$root/"
    add_agents_files "$root"
    # shellcheck disable=SC2086 # a line for each word
    printf '%s\n' $modules >"$root/etc/modules"
    make_initrd "$root"
    rm "$root/init"
    make_disk "$root" 1G 16384
}
