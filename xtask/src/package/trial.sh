#!/bin/bash
# Installs, runs and removes one package of tcpclose in a root of its own.
#
#   trial.sh deb|rpm|tarball ROOT PACKAGE VERSION
#
# It runs as root in a mount and a network namespace of its own, outside of the root, so that the root needs no tools.
set -euo pipefail
kind=$1 root=$2 package=$3 version=$4
file=$(basename "$package")
config=/etc/tcpclose/tcpclose.toml
agent=
machine=
cgroup=

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}
passed() { printf '  %s: %s\n' "$kind" "$*"; }

# Nothing of the caller's environment, above all no TCPCLOSE_… variable. An array, so that `&` starts the program itself.
path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
clean=(env -i "PATH=$path" LC_ALL=C HOME=/root DEBIAN_FRONTEND=noninteractive)
inside=("${clean[@]}" chroot "$root")
end() {
    [ -z "$agent" ] || kill -KILL "$agent"
    halt
}
trap end EXIT

ip link set lo up
mkdir -p "$root/proc" "$root/sys" "$root/run"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"

# What is in the root, but for what its package tools, systemctl and shells keep for themselves.
files() {
    (cd "$root" && find . \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./packages -o -path ./root \
        -o -path ./run/systemd -o -path ./var/lib/dpkg -o -path ./var/lib/rpm -o -path ./var/cache \
        -o -path ./var/log \) -prune -o -print | LC_ALL=C sort)
}

# What is there now and was not before, without what a new user leaves beside the lists of users.
left_over() {
    files | LC_ALL=C comm -13 "$root/packages/before" - |
        grep -vxE '\./etc/(passwd|group|shadow|gshadow)-|\./etc/\.pwd\.lock|\./etc/sub[ug]id-?' || true
}

get() {
    local connection
    exec {connection}<>/dev/tcp/127.0.0.1/9923 || return 1
    printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$1" >&"$connection"
    cat <&"$connection"
    exec {connection}>&-
}

# Runs an agent by this binary and this file, asks it, and ends it.
runs() {
    local binary=$1 answer='' tries
    "${inside[@]}" "$binary" agent --config "$2" >/dev/null &
    agent=$!
    for ((tries = 0; tries < 600; tries++)); do
        kill -0 "$agent" 2>/dev/null || fail "the agent ended"
        answer=$(get /readyz 2>/dev/null) && grep -q '^HTTP/1.1 200 ' <<<"$answer" && break
        sleep 0.1
    done
    grep -q '^ready' <<<"$answer" || fail "/readyz says: $answer"
    answer=$(get /metrics)
    grep -q "^tcpclose_build_info{.*version=\"$version\"" <<<"$answer" || fail "/metrics says: $answer"
    grep -q '^tcpclose_series ' <<<"$answer" || fail "/metrics says: $answer"
    answer=$("${inside[@]}" "$binary" stuck --json) || fail "stuck: status $?"
    grep -q '"source":"agent"' <<<"$answer" || fail "stuck says: $answer"
    kill -TERM "$agent"
    wait "$agent" || fail "the agent ended with status $?"
    agent=
    passed "the agent serves /readyz and /metrics, and stuck answers by it"
}

has() { [ -s "$root$1" ] || fail "no $1"; }

# What both package systems have put there. $1: where zsh looks for completions.
is_installed() {
    local name answer
    answer=$("${inside[@]}" tcpclose --version)
    [ "$answer" = "tcpclose $version" ] || fail "tcpclose --version says $answer"
    for name in prometheus/rules.yml grafana/tcpclose.json; do has "/usr/share/tcpclose/$name"; done
    for name in README.md SECURITY.md docs/src/metrics-reference.md docs/src/runbook.md; do has "/usr/share/doc/tcpclose/$name"; done
    answer=$(cd "$root" && find etc/tcpclose usr/bin/tcpclose usr/share/*/tcpclose usr/share/tcpclose usr/lib/*/*/tcpclose* \
        \( ! -user root -o ! -group root -o -perm /022 \) -print)
    [ -z "$answer" ] || fail "not root's alone: $answer"

    for name in tcpclose tcpclose-agent tcpclose-stuck; do
        "${inside[@]}" man --where "$name" >/dev/null || fail "no manual of $name"
    done
    answer=$("${inside[@]}" env MANPAGER=cat MANWIDTH=100 man tcpclose-stuck 2>&1)
    grep -q -- '--older-than' <<<"$answer" || fail "the manual says: $answer"
    passed "its manual is there"

    answer=$("${inside[@]}" bash -c '. /usr/share/bash-completion/completions/tcpclose && complete -p tcpclose >/dev/null &&
        COMP_WORDS=(tcpclose stu) COMP_CWORD=1 && _tcpclose tcpclose stu tcpclose && echo "${COMPREPLY[*]}"')
    [ "$answer" = stuck ] || fail "bash completes stu to: $answer"
    answer=$("${inside[@]}" fish -c 'complete --do-complete "tcpclose stu"')
    [[ $answer == stuck* ]] || fail "fish completes stu to: $answer"
    answer=$("${inside[@]}" zsh -fc "fpath=($1 \$fpath); autoload -Uz compinit; compinit -D; echo \$_comps[tcpclose]
        autoload +X _tcpclose && echo loads")
    [ "$answer" = $'_tcpclose\nloads' ] || fail "zsh knows: $answer"
    passed "bash, fish and zsh complete"

    answer=$("${inside[@]}" tcpclose agent --config $config --check-config) || fail "$config: $answer"
    [ -z "$(grep -v '  # default$\|: default$' <<<"$answer")" ] || fail "$config sets: $answer"
    passed "$config is right, and says the defaults"

    answer=$("${inside[@]}" getent passwd tcpclose) || fail "no user tcpclose"
    [[ $answer == *:/usr/sbin/nologin ]] || fail "the user is $answer"
    grep -q "^ExecStart=/usr/bin/tcpclose agent" "$root/usr/lib/systemd/system/tcpclose.service" ||
        fail "the unit starts something else"
    "${inside[@]}" systemd-analyze verify --man=no /usr/lib/systemd/system/tcpclose.service || fail "the unit is wrong"
    passed "the user is there, and the unit is right"
}

# A host's own setting, and state: what an upgrade keeps and what goes at the end.
is_used() {
    echo 'max-ports = 7' >>"$root$config"
    mkdir -p "$root/var/lib/tcpclose" "$root/run/tcpclose"
    touch "$root/var/lib/tcpclose/state" "$root/run/tcpclose/state"
}
keeps_settings() {
    grep -qx 'max-ports = 7' "$root$config" || fail "an upgrade lost a setting in $config"
    passed "an upgrade keeps the settings"
}
is_gone() {
    [ -z "$(left_over)" ] || fail "left behind: $(left_over)"
    passed "nothing is left"
}

# Boots the root: systemd as the first process of a PID namespace, which takes all others with it, in a cgroup of its own.
boot() {
    local above tries
    above=$(findmnt --noheadings --first-only --types cgroup2 --output TARGET) || fail "no cgroup2 is mounted"
    cgroup=$above/tcpclose-trial-$$
    mkdir "$cgroup"
    # The cgroup namespace begins where its first process is. The root is one of a mount, not of chroot: with that no unit
    # could have mounts of its own.
    sh -c 'echo $$ >"$1/cgroup.procs" && exec unshare --mount --pid --fork --kill-child --cgroup --propagation private \
        sh -c "mount --bind $2 $2 && cd $2 && mount -t proc proc proc && mount -t sysfs sysfs sys &&
            mount -t cgroup2 cgroup2 sys/fs/cgroup && mount -t tmpfs tmpfs run && pivot_root . . && umount --lazy . &&
            exec env -i container=trial PATH=$3 /lib/systemd/systemd --log-target=null --show-status=no"' \
        sh "$cgroup" "$root" "$path" &
    machine=$!
    for ((tries = 0; tries < 600; tries++)); do
        first=$(cat "/proc/$machine/task/$machine/children" 2>/dev/null) || fail "systemd does not start"
        first=${first%% *}
        [ -n "$first" ] && booted systemctl is-active --quiet basic.target 2>/dev/null && return
        sleep 0.1
    done
    fail "systemd does not boot: $(booted systemctl list-jobs)"
}
booted() {
    nsenter --target "$first" --mount --pid --cgroup "${clean[@]}" "$@"
}
halt() {
    if [ -n "$machine" ]; then
        # unshare ends its child with itself, and the kernel whatever was in its namespace.
        kill -KILL "$machine" 2>/dev/null || true
        wait "$machine" 2>/dev/null || true
        machine=
    fi
    if [ -n "$cgroup" ]; then
        for _ in {1..100}; do
            find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
            [ -d "$cgroup" ] || break
            sleep 0.1
        done
        cgroup=
    fi
}

# The agent's process, by systemd; 0 where it does not run.
main_pid() { booted systemctl show --property=MainPID --value tcpclose.service; }
serves() {
    local tries
    for ((tries = 0; tries < 600; tries++)); do
        get /readyz 2>/dev/null | grep -q '^ready' && return
        sleep 0.1
    done
    fail "the unit does not serve: $(booted systemctl status --no-pager tcpclose.service)"
}

# What installing over what is there does to an agent that systemd runs. $@: how to.
restarts_only_what_runs() {
    local before
    before=$(main_pid)
    booted "$@" >/dev/null
    serves
    [ "$(main_pid)" != "$before" ] || fail "after the upgrade the old agent runs"
    booted systemctl stop tcpclose.service
    booted "$@" >/dev/null
    [ "$(main_pid)" = 0 ] || fail "an upgrade started what was stopped"
    booted systemctl disable --quiet tcpclose.service
    booted "$@" >/dev/null
    [ "$(main_pid)" = 0 ] || fail "an upgrade started what was stopped and disabled"
    [ "$(booted systemctl is-enabled tcpclose.service)" = disabled ] || fail "an upgrade enabled what was disabled"
    booted systemctl start tcpclose.service
    serves
    passed "an upgrade restarts the agent where it runs, and only there"
}

mkdir -p "$root/packages"
# What a system of .rpm packages has from its first one, and Debian has not.
[ "$kind" != rpm ] || mkdir -p "$root/usr/share/licenses" "$root/usr/share/zsh/site-functions"
cp "$package" "$root/packages/"
files >"$root/packages/before"
case $kind in
deb)
    "${inside[@]}" dpkg --install "/packages/$file"
    is_installed /usr/share/zsh/vendor-completions
    has /usr/share/doc/tcpclose/copyright
    has /usr/share/doc/tcpclose/THIRD-PARTY.txt
    [ -L "$root/etc/systemd/system/multi-user.target.wants/tcpclose.service" ] || fail "the unit is not enabled"
    runs /usr/bin/tcpclose $config
    is_used
    # Disabled by hand: the next version must not enable it again.
    "${inside[@]}" systemctl disable tcpclose.service
    "${inside[@]}" dpkg --install "/packages/$file"
    keeps_settings
    [ ! -L "$root/etc/systemd/system/multi-user.target.wants/tcpclose.service" ] || fail "an upgrade enabled the unit"
    "${inside[@]}" dpkg --remove tcpclose
    [ ! -e "$root/usr/bin/tcpclose" ] || fail "removed, and the binary is there"
    keeps_settings
    has_state=$(ls "$root/var/lib/tcpclose")
    [ "$has_state" = state ] || fail "removed, not purged, and state is gone"
    "${inside[@]}" dpkg --purge tcpclose
    is_gone

    boot
    booted dpkg --install "/packages/$file" >/dev/null
    serves
    passed "systemd runs it as the user tcpclose, from its installation on"
    restarts_only_what_runs dpkg --install "/packages/$file"
    booted dpkg --purge tcpclose >/dev/null
    ! get /readyz >/dev/null 2>&1 || fail "purged, and an agent runs"
    ;;
rpm)
    # Debian has no .rpm that provides what it asks for.
    "${inside[@]}" rpm --install --nodeps "/packages/$file"
    "${inside[@]}" rpm --verify --nodeps tcpclose || fail "rpm finds other files than it installed"
    is_installed /usr/share/zsh/site-functions
    has /usr/share/licenses/tcpclose/LICENSE-MIT
    has /usr/share/licenses/tcpclose/THIRD-PARTY.txt
    runs /usr/bin/tcpclose $config
    is_used
    "${inside[@]}" rpm --upgrade --replacepkgs --nodeps "/packages/$file"
    keeps_settings
    "${inside[@]}" rpm --erase tcpclose
    grep -qx 'max-ports = 7' "$root$config.rpmsave" || fail "the settings are not saved"
    rm "$root$config.rpmsave"
    rmdir "$root/etc/tcpclose"
    is_gone

    boot
    booted rpm --install --nodeps "/packages/$file"
    [ "$(main_pid)" = 0 ] || fail "its installation starts the agent"
    booted systemctl start tcpclose.service
    serves
    passed "systemd runs it as the user tcpclose"
    restarts_only_what_runs rpm --upgrade --replacepkgs --nodeps "/packages/$file"
    booted rpm --erase tcpclose
    ! get /readyz >/dev/null 2>&1 || fail "erased, and an agent runs"
    ;;
tarball)
    tar --extract --file "$package" --directory "$root"
    below=/tcpclose-$version-$(uname -m)-linux
    # Not even a C library is in this root.
    [ "$("${inside[@]}" "$below/usr/bin/tcpclose" --version)" = "tcpclose $version" ] || fail "it does not run"
    runs "$below/usr/bin/tcpclose" "$below$config"
    has "$below/usr/share/licenses/tcpclose/LICENSE-APACHE"
    ;;
esac
passed "installed, run and removed"
