//! The kernel's own TCP counters in the network namespace of the calling thread: the MIB counters of /proc/net/netstat and
//! /proc/net/snmp, and the sums of /proc/net/sockstat.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use serde::Serialize;

/// The counters that are read, by group and name.
const NAMES: [(&str, &str); 11] = [
    // A minisocket is created for longer than 4 s (TW) or not (TWKilled): both are counted when its timer starts
    // (net/ipv4/inet_timewait_sock.c, __inet_twsk_schedule(), 5.8 to 6.18), not when it ends.
    ("TcpExt:", "TW"),
    ("TcpExt:", "TWKilled"),
    // connect() took a TIME-WAIT's addresses (net/ipv4/inet_hashtables.c, __inet_check_established()).
    ("TcpExt:", "TWRecycled"),
    // No minisocket was made: the table was full, or memory short (net/ipv4/tcp_minisocks.c, tcp_time_wait()).
    ("TcpExt:", "TCPTimeWaitOverflow"),
    // close() with data unread (net/ipv4/tcp.c, __tcp_close()).
    ("TcpExt:", "TCPAbortOnClose"),
    // close() with linger 0 (__tcp_close()), and data that came after close() (tcp_rcv_state_process()).
    ("TcpExt:", "TCPAbortOnData"),
    // Retries or keepalive ran out, attempts to connect included (net/ipv4/tcp_timer.c, tcp_write_err()).
    ("TcpExt:", "TCPAbortOnTimeout"),
    ("TcpExt:", "TCPAbortOnLinger"),
    ("TcpExt:", "TCPAbortOnMemory"),
    // ESTABLISHED or CLOSE-WAIT to CLOSE (net/ipv4/tcp.c, tcp_set_state()).
    ("Tcp:", "EstabResets"),
    // Every RST, also for ports without a listener.
    ("Tcp:", "OutRsts"),
];

/// Counters since the creation of the namespace, by the kernel's names; those that this kernel lacks are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct MibCounters(pub BTreeMap<&'static str, u64>);

impl MibCounters {
    /// The counter `name`; 0 where it is missing.
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

/// /proc/net/sockstat and sockstat6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SockStat {
    /// Full sockets in the kernel's tables, listeners included, IPv4 and IPv6 (`sock_prot_inuse_get()`).
    pub inuse: u64,
    /// Sockets that no program holds any more: of the whole host (`tcp_orphan_count`).
    pub orphan: u64,
    /// Minisockets, in TIME-WAIT and in FIN-WAIT-2 (`tcp_death_row`).
    pub tw: u64,
}

/// Reads the counters and the sums.
pub fn read() -> io::Result<(MibCounters, SockStat)> {
    let file = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
    let counters = counters(&file("netstat")?, &file("snmp")?);
    // A kernel without IPv6 lacks this file.
    let sockstat = sockstat(&file("sockstat")?, &file("sockstat6").unwrap_or_default());
    Ok((counters, sockstat))
}

fn counters(netstat: &str, snmp: &str) -> MibCounters {
    let one = |&(group, name): &(&str, &'static str)| {
        let text = if group == "Tcp:" { snmp } else { netstat };
        Some((name, counter(text, group, name)?))
    };
    MibCounters(NAMES.iter().filter_map(one).collect())
}

/// A counter of /proc/net/netstat or /proc/net/snmp, where a line of names precedes a line of values.
pub fn counter(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(group));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split_ascii_whitespace().position(|n| n == name)?;
    values.split_ascii_whitespace().nth(at)?.parse().ok()
}

fn sockstat(v4: &str, v6: &str) -> SockStat {
    let of = |text, line, word| stat(text, line, word).unwrap_or(0);
    SockStat {
        inuse: of(v4, "TCP:", "inuse") + of(v6, "TCP6:", "inuse"),
        orphan: of(v4, "TCP:", "orphan"),
        tw: of(v4, "TCP:", "tw"),
    }
}

/// The number behind `word` in the line `line` of /proc/net/sockstat.
pub fn stat(text: &str, line: &str, word: &str) -> Option<u64> {
    let mut words = text.lines().find_map(|l| l.strip_prefix(line))?.split_ascii_whitespace();
    words.find(|w| *w == word)?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_name() {
        let netstat =
            "TcpExt: SyncookiesSent TW TCPTimeWaitOverflow\nTcpExt: 1 22 333\nIpExt: InNoRoutes\nIpExt: 0\n";
        assert_eq!(counter(netstat, "TcpExt:", "TCPTimeWaitOverflow"), Some(333));
        assert_eq!(counter(netstat, "TcpExt:", "Banana"), None);
        let snmp = "Ip: Forwarding\nIp: 1\nTcp: MaxConn EstabResets OutRsts\nTcp: -1 4 5\n";
        let counters = counters(netstat, snmp);
        assert_eq!((counters.get("TW"), counters.get("EstabResets"), counters.get("OutRsts")), (22, 4, 5));
        assert_eq!((counters.0.len(), counters.get("TWKilled")), (4, 0));
        // A file that is cut short.
        assert_eq!(counter("Tcp: MaxConn EstabResets\nTcp: -1", "Tcp:", "EstabResets"), None);
        assert_eq!(counter("Tcp: MaxConn", "Tcp:", "MaxConn"), None);
    }

    #[test]
    fn sums_of_both_families_are_added() {
        let v4 = "sockets: used 9\nTCP: inuse 5 orphan 2 tw 17 alloc 7 mem 1\nUDP: inuse 3 mem 0\n";
        let expected = SockStat { inuse: 9, orphan: 2, tw: 17 };
        assert_eq!(sockstat(v4, "TCP6: inuse 4\nUDP6: inuse 1\n"), expected);
        assert_eq!(sockstat(v4, "").inuse, 5);
        assert_eq!(stat("TCP: inuse 5 orphan 0\n", "TCP:", "tw"), None);
    }

    #[test]
    fn this_kernel_has_them_all() {
        let (counters, _) = read().unwrap();
        assert_eq!(counters.0.len(), NAMES.len());
    }
}
