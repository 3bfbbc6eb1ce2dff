#!/bin/sh
# The guest's first process. What it has to say goes to two serial lines: the kernel's own words to the first, the
# programs' output and this protocol to the second, which `cargo xtask vm` reads. Each word of it comes after a control
# character that programs do not write, since the last line of a program may lack its end:
#   up RELEASE         ready to run something
#   ran NAME STATUS SECONDS    a program ended, after so many by the clock of here
#   broken WHY         it will not be ready
#   down               nothing more will come

/bin/busybox mkdir -p /dev /proc /sys /run /tmp /root /var
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/programs:/bin HOME=/root TERM=dumb LC_ALL=C

mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tracefs tracefs /sys/kernel/tracing
mount -t securityfs securityfs /sys/kernel/security
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
chmod 1777 /tmp
# /tmp and /run are not mounted: the root is memory as it is, and the programs may lie below either of them.

# The line would be a terminal, and programs talk to a terminal in colours and tables. Through a pipe they do not.
# Every kernel makes some ttyS; on arm64 the lines are others.
line=/dev/ttyAMA1
[ -c $line ] || line=/dev/ttyS1
stty -F $line raw -echo
mkfifo /run/output
cat /run/output >$line &
exec >/run/output 2>&1 </dev/null

say() {
    printf '\036%s\n' "$*"
}

down() {
    say down
    # xtask ends the machine when it reads that; this is for the case that nobody reads.
    sleep 10
    poweroff -f
}

run() {
    name=$1
    shift
    read -r begun rest </proc/uptime
    "$@"
    status=$?
    read -r ended rest </proc/uptime
    say ran "$name" $status "$(echo "$ended $begun" | awk '{ print $1 - $2 }')"
}

hostname guest
ip link set lo up
for module in $(cat /modules/order); do
    insmod "/modules/$module.ko" && continue
    say broken "its kernel does not take the module $module"
    down
done
# Debian's limits are made for people's sessions.
ulimit -n 65536

say up "$(uname -r)"
. /commands
down
