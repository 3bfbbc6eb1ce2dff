# Runs in the guest when systemd has started the agent's unit, and tells xtask by the second serial line, in the words of
# vm/init.sh: up, ran, down.

stty -F /dev/ttyS1 raw -echo
mkfifo /run/output
cat /run/output >/dev/ttyS1 &
exec >/run/output 2>&1 </dev/null

say() {
    printf '\036%s\n' "$*"
}

# expect WHAT COMMAND...: COMMAND is to succeed, at once.
expect() {
    local what=$1
    shift
    if "$@"; then
        echo "ok: $what"
    else
        echo "FAILED: $what: $*"
        exit 1
    fi
}

# eventually WHAT COMMAND...: or within two minutes.
eventually() {
    local what=$1 n
    shift
    for n in $(seq 240); do
        if "$@"; then
            echo "ok: $what"
            return
        fi
        sleep 0.5
    done
    echo "FAILED: $what: $*"
    exit 1
}

ready() {
    [ "$(busybox wget -q -O - http://127.0.0.1:9923/readyz 2>/dev/null)" = ready ]
}

pid() {
    systemctl show --value --property MainPID tcpclose
}

# What the first thread of the unit's process has in a line of its status.
status() {
    awk -v key="$1:" '$1 == key { print $2 }' "/proc/$(pid)/status"
}

# Whether the unit's file systems hold the network namespace with a name.
holds_blue() {
    grep -q ' /run/netns/blue ' "/proc/$(pid)/mountinfo"
}

does_not_hold_blue() {
    ! holds_blue
}

# as [DROP-IN] [VARIABLE=VALUE]...: the unit with these, started anew and ready.
as() {
    local below=/etc/systemd/system/tcpclose.service.d
    rm -rf $below
    mkdir -p $below
    [ -z "$1" ] || cp "/root/unit/$1" $below
    shift
    # An empty one would take those of the drop-in away.
    [ $# = 0 ] || printf '[Service]\nEnvironment=%s\n' "$*" >$below/more.conf
    systemctl daemon-reload
    systemctl restart tcpclose
    eventually "ready again, with $below: $(ls $below | tr '\n' ' ')$*" ready
}

journal_has() {
    journalctl --unit tcpclose --output cat --no-pager | grep -q -F -e "$1"
}

# A socket in CLOSE-WAIT on port 8080, held by a `sleep`.
leak() {
    busybox nc -ll -p 8080 -e /usr/bin/sleep 1000 &
    sleep 1
    # Its end is closed with the shell.
    bash -c 'exec 3<>/dev/tcp/127.0.0.1/8080'
}

stuck() {
    tcpclose stuck --older-than 1ms --port 8080 --json | cat
}

two_are_stuck() {
    [ "$(stuck | grep -o '"state":"close_wait"' | wc -l)" = 2 ]
}

# Whether the agent takes a stack of a program: a bash that connects when it is armed, and never closes. 6.1 has openings only.
takes_stacks() {
    local pid go=/run/go.$RANDOM
    bash -c "until [ -e $go ]; do sleep 0.2; done; exec 3<>/dev/tcp/127.0.0.1/8090; read -r -u 3; while :; do sleep 1; done" &
    pid=$!
    tcpclose stuck --stacks --for 60s --pid $pid >/run/stacks 2>&1 &
    sleep 2
    : >$go
    eventually "a stack: $(cat /run/stacks)" has_stack $pid
    kill $pid
}

# The process and, in brackets, its stacks.
has_stack() {
    tcpclose stuck --older-than 1ms --pid "$1" --json | cat | grep -q '"stacks":{"opened":'
}

check() {
    eventually "/readyz says ready" ready
    expect "active" systemctl is-active --quiet tcpclose
    expect "the unit's user" [ "$(status Uid)" = "$(id -u tcpclose)" ]
    expect "and not root" [ "$(status Uid)" != 0 ]
    # CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_SYS_ADMIN.
    expect "three capabilities are left" [ "$(status CapPrm) $(status CapEff)" = "0000000000280004 0000000000280004" ]
    expect "none to hand on" [ "$(status CapInh) $(status CapAmb)" = "0000000000000000 0000000000000000" ]
    expect "no new privileges, and a filter" [ "$(status NoNewPrivs) $(status Seccomp)" = "1 2" ]
    expect "the socket" [ "$(stat -c '%a %U' /run/tcpclose/tcpclose.sock)" = "600 tcpclose" ]
    expect "tp_btf" busybox wget -q -O /run/metrics http://127.0.0.1:9923/metrics
    expect "tp_btf is the backend" grep -q 'tcpclose_hook_info{hook="state",backend="btf"} 1' /run/metrics
    expect "hooks too" grep -q 'tcpclose_hook_info{hook="time_wait",backend="hooks"} 1' /run/metrics
    expect "and the iterator" grep -q 'tcpclose_hook_info{hook="owners",backend="task_file"} 1' /run/metrics

    leak
    export -f leak
    unshare --net bash -c 'busybox ifconfig lo up; leak; exec sleep 1000' &
    eventually "one is stuck here, one in another namespace" two_are_stuck
    stuck >/run/stuck
    cat /run/stuck
    expect "the agent answers" grep -q '"source":"agent"' /run/stuck
    expect "nothing is hidden" grep -q '"incomplete":\[\]' /run/stuck
    expect "both owners" [ "$(grep -o '"comm":"sleep"' /run/stuck | wc -l)" -ge 2 ]
    expect "their executable" grep -q '"exe":"/usr/bin/sleep"' /run/stuck
    expect "their unit" grep -q '"unit":"check.service"' /run/stuck

    # The file systems of the unit are its own: a namespace that is made on the host shows there, and goes with the host's.
    mkdir -p /run/netns
    : >/run/netns/blue
    unshare --net=/run/netns/blue true
    eventually "a namespace with a name comes" holds_blue
    umount /run/netns/blue
    eventually "and goes" does_not_hold_blue
    expect "for all" rm /run/netns/blue

    expect "reload" systemctl reload tcpclose
    eventually "it says so" journal_has "tcpclose: reloaded: nothing has changed"
    tcpclose kill --older-than 1ms --port 8080 --yes >/run/kill 2>&1
    expect "nobody may kill" grep -q 'without --allow-kill' /run/kill

    busybox nc -ll -p 8090 -e /usr/bin/true &
    as "" TCPCLOSE_STACKS=ask
    takes_stacks
    as netns-current.conf TCPCLOSE_STACKS=ask
    expect "two are left for one namespace" [ "$(status CapPrm)" = 0000000000080004 ]
    takes_stacks
    as "" TCPCLOSE_STATE_HOOK=tracepoint TCPCLOSE_OWNERS=proc
    busybox wget -q -O /run/metrics http://127.0.0.1:9923/metrics
    expect "the classic tracepoint" grep -q 'tcpclose_hook_info{hook="state",backend="tracepoint"} 1' /run/metrics
    eventually "the same two by /proc" two_are_stuck
    expect "both owners by /proc" [ "$(stuck | grep -o '"comm":"sleep"' | wc -l)" -ge 2 ]

    # Ages have outlived all of these: they are exact, or nothing would go.
    as allow-kill.conf TCPCLOSE_STACKS=ask
    expect "one more, not in effect" [ "$(status CapPrm) $(status CapEff)" = "0000000000281004 0000000000280004" ]
    eventually "both are there still" two_are_stuck
    takes_stacks
    tcpclose kill --older-than 1s --port 8080 --yes >/run/kill 2>&1
    cat /run/kill
    expect "root may kill" grep -q 'destroyed 2 of 2' /run/kill
    expect "it never ended by itself" [ "$(systemctl show --value --property NRestarts tcpclose)" = 0 ]
}

say up "$(uname -r)"
read -r begun _ </proc/uptime
(check)
result=$?
journalctl --unit tcpclose --output cat --no-pager | tail -n 100
read -r ended _ </proc/uptime
say ran systemd $result "$(echo "$ended $begun" | awk '{ print $1 - $2 }')"
say down
