//! The ports that connect() may choose from: the range, the reserved ports, and TIME-WAITs that may be reused.

use std::fs;
use std::ops::RangeInclusive;

use tcpclose_common::state::TcpState;

use crate::linux::ephemeral_ports::port_set::PortSet;
use crate::linux::host;
use crate::linux::sock_diag::Socket;

/// The ports that connect() may choose from in one network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// `ip_local_port_range`.
    pub range: RangeInclusive<u16>,
    /// `ip_local_reserved_ports`.
    pub reserved: PortSet,
    pub reuse: Reuse,
}

impl Choice {
    pub fn has(&self, port: u16) -> bool {
        self.range.contains(&port) && !self.reserved.has(port)
    }

    /// The number of ports to choose from.
    pub fn ports(&self) -> u32 {
        self.range.clone().filter(|&port| self.has(port)).count() as u32
    }

    /// The number of reserved ports in the range.
    pub fn reserved_in_range(&self) -> u32 {
        self.range.clone().count() as u32 - self.ports()
    }
}

/// When connect() may take a TIME-WAIT's port again: `tcp_tw_reuse`, and never without timestamps
/// (`tcp_twsk_unique()`). Whether a remote peer used them is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reuse {
    pub whose: Whose,
    /// `tcp_tw_reuse_delay`, nanoseconds: its minimum age.
    pub delay_ns: u64,
}

/// Which TIME-WAITs connect() may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    None,
    /// Those with a loopback address at either end, or bound to `lo`.
    Loopback,
    All,
}

impl Reuse {
    /// `TCP_TIMEWAIT_LEN`, which the timer starts with.
    const LENGTH_NS: u64 = 60_000_000_000;

    /// Whether connect() may take the port of `socket` again.
    pub fn allows(&self, socket: &Socket) -> bool {
        const LOOPBACK_IFINDEX: u32 = 1;
        let on_loopback = || {
            let ends = [socket.flow.local, socket.flow.remote];
            socket.interface == LOOPBACK_IFINDEX || ends.iter().any(|end| end.to_canonical().is_loopback())
        };
        let may = match self.whose {
            Whose::None => false,
            Whose::Loopback => on_loopback(),
            Whose::All => true,
        };
        // A FIN-WAIT-2 minisocket is not taken (since 6.9; before, it could be).
        let old = socket.expires_ns.is_some_and(|left| left.saturating_add(self.delay_ns) <= Self::LENGTH_NS);
        may && old && socket.minisocket && socket.state == TcpState::TimeWait
    }
}

/// The ports that connect() may choose from in this thread's namespace.
pub(super) fn choice() -> Choice {
    let number = |name: &str| -> Option<u64> { sysctl(name)?.trim().parse().ok() };
    let timestamps = number("tcp_timestamps").unwrap_or(1) != 0;
    let whose = match number("tcp_tw_reuse") {
        _ if !timestamps => Whose::None,
        Some(0) => Whose::None,
        Some(1) => Whose::All,
        // The kernel's default (net/ipv4/tcp_ipv4.c, tcp_sk_init(), 5.8 to 6.18).
        _ => Whose::Loopback,
    };
    let delay_ns = number("tcp_tw_reuse_delay").unwrap_or(1000).saturating_mul(1_000_000);
    Choice {
        range: host::ip_local_port_range(),
        reserved: PortSet::parse(&sysctl("ip_local_reserved_ports").unwrap_or_default()),
        reuse: Reuse { whose, delay_ns },
    }
}

/// Reads a sysctl of the thread's namespace, which is the one that /proc/sys/net shows.
fn sysctl(name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Flow;

    const LATER: Reuse = Reuse { whose: Whose::Loopback, delay_ns: 1_000_000_000 };

    fn time_wait(local: &str, remote: &str, left_s: u64) -> Socket {
        let flow = Flow::new(local.parse().unwrap(), remote.parse().unwrap());
        let expires_ns = Some(left_s * 1_000_000_000);
        Socket { minisocket: true, expires_ns, ..Socket::made_up(TcpState::TimeWait, flow) }
    }

    #[test]
    fn a_time_wait_is_reusable_as_the_kernel_says() {
        let on_loopback = time_wait("127.0.0.1:1", "127.0.0.1:2", 58);
        let v6 = time_wait("[::1]:1", "[::1]:2", 58);
        let elsewhere = time_wait("10.0.0.1:1", "10.0.0.2:2", 58);
        let all = Reuse { whose: Whose::All, ..LATER };
        let none = Reuse { whose: Whose::None, ..LATER };
        assert!(LATER.allows(&on_loopback) && LATER.allows(&v6) && !LATER.allows(&elsewhere));
        assert!(LATER.allows(&Socket { interface: 1, ..elsewhere }));
        assert!(all.allows(&elsewhere) && !none.allows(&on_loopback));
        assert!(!LATER.allows(&Socket { expires_ns: Some(59_500_000_000), ..on_loopback }), "too young");
        assert!(!LATER.allows(&Socket { state: TcpState::FinWait2, ..on_loopback }));
        assert!(!LATER.allows(&Socket { minisocket: false, ..on_loopback }));
    }
}
