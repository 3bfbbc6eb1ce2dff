#!/bin/sh
# Inside a mount namespace of its own: chroot.sh ROOT SCRIPT [SOURCE TARGET ro|rw]...
# Mounts each SOURCE on TARGET of the root and runs SCRIPT there. All mounts end with it.
set -eu
root=$1 script=$2
shift 2

while [ $# -gt 0 ]; do
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    [ "$3" = rw ] || mount -o remount,bind,ro "$root$2"
    shift 3
done
for folder in proc sys dev; do
    mount --rbind "/$folder" "$root/$folder"
done
cp /etc/resolv.conf "$root/etc/resolv.conf"
# A proxy between this machine and the registries is trusted by this machine only.
certificates=/etc/ssl/certs/ca-certificates.crt
[ ! -f "$certificates" ] || cp "$certificates" "$root$certificates"
# A mirror may serve old package lists: the signatures are still checked.
echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/90-old-lists"

exec chroot "$root" env -i HOME=/root LC_ALL=C.UTF-8 TERM=dumb DEBIAN_FRONTEND=noninteractive \
    PATH=/toolchain/bin:/root/.cargo/bin:/usr/sbin:/usr/bin:/sbin:/bin CARGO_TARGET_DIR=/target \
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    sh -euc "$script"
