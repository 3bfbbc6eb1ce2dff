#!/bin/sh
# Inside a mount namespace of its own: roots.sh ROOT WORKSPACE TOOLCHAIN CARGO_HOME. All mounts end with it.
set -eu
root=$1 workspace=$2 toolchain=$3 cargo=$4

mkdir -p "$root/tcpclose" "$root/toolchain" "$root/target" "$root/root/.cargo/registry"
mount --bind "$workspace" "$root/tcpclose"
mount -o remount,bind,ro "$root/tcpclose"
mount --bind "$toolchain" "$root/toolchain"
mount -o remount,bind,ro "$root/toolchain"
# What cargo fetched for this machine need not be fetched again.
mkdir -p "$cargo/registry"
mount --bind "$cargo/registry" "$root/root/.cargo/registry"
for file in config.toml config; do
    [ ! -f "$cargo/$file" ] || cp "$cargo/$file" "$root/root/.cargo/$file"
done
for folder in proc sys dev; do
    mount --rbind "/$folder" "$root/$folder"
done
cp /etc/resolv.conf "$root/etc/resolv.conf"
# Who stands between this machine and the registries is trusted by this machine only.
certificates=/etc/ssl/certs/ca-certificates.crt
[ ! -f "$certificates" ] || cp "$certificates" "$root$certificates"
# A mirror that stands still is no attack on a root that lives for minutes: its signatures count.
echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/90-standing-mirror"

exec chroot "$root" env -i HOME=/root LC_ALL=C.UTF-8 TERM=dumb \
    PATH=/toolchain/bin:/root/.cargo/bin:/usr/sbin:/usr/bin:/sbin:/bin CARGO_TARGET_DIR=/target \
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    sh -euc '
        cd /tcpclose
        cargo xtask setup --for build
        cargo xtask build
        /target/release/tcpclose stuck --no-agent --older-than 0s
    '
