//! How many of the ports that connect() may take are in use, for each pair of ends. Pure.
//!
//! connect() gives a socket without a port one of `ip_local_port_range`, but for `ip_local_reserved_ports`, that no other
//! socket has with the same local address, remote address and remote port (`__inet_hash_connect()`,
//! `__inet_check_established()`, 5.8 to 6.18): ports run out for each such tuple on its own. First it tries the ports of
//! one parity, then of the other; of a range with an odd number of ports one attempt leaves one out.
//!
//! A port that bind() has taken, whatever its address, connect() passes over (`tb->fastreuse >= 0`): listeners, what was
//! accepted by them, and sockets that are bound and not connected count for every tuple. Of a socket that was bound and then
//! connected the kernel does not tell that it was: it counts for its own tuple alone.
//!
//! A TIME-WAIT has its port until it ends, unless connect() may take it again (`tcp_twsk_unique()`): see [`Reuse`].
//!
//! * [`port_set`]: a set of ports. [`change`]: two looks at the same tuples, and what has changed.

pub mod change;
pub mod document;
pub mod port_set;

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use tcpclose_common::state::TcpState;

use crate::linux::sock_diag::Socket;
use crate::report::exhaustion::port_set::PortSet;

/// Tuples that are counted at the same time. When there are more, those with the fewest ports are forgotten.
const MOST_TUPLES: usize = 1 << 16;

/// What connect() may choose from in one network namespace.
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

    /// How many ports there are to choose from.
    pub fn ports(&self) -> u32 {
        self.range.clone().filter(|&port| self.has(port)).count() as u32
    }

    /// Ports of the range that are reserved.
    pub fn reserved_in_range(&self) -> u32 {
        self.range.clone().count() as u32 - self.ports()
    }
}

/// When connect() may take a TIME-WAIT's port again: `tcp_tw_reuse`, and never without timestamps
/// (`tcp_twsk_unique()`). That a peer elsewhere used them is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reuse {
    pub whose: Whose,
    /// `tcp_tw_reuse_delay`, nanoseconds: not before it is this old.
    pub delay_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Nobodys,
    /// Where an end is a loopback address, or the socket bound to `lo`.
    Loopback,
    Everybodys,
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
            Whose::Nobodys => false,
            Whose::Loopback => on_loopback(),
            Whose::Everybodys => true,
        };
        // A FIN-WAIT-2 minisocket is not taken (since 6.9; before, it could be).
        let old = socket.expires_ns.is_some_and(|left| left.saturating_add(self.delay_ns) <= Self::LENGTH_NS);
        may && old && socket.minisocket && socket.state == TcpState::TimeWait
    }
}

/// What connections have in common whose local ports must differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    pub local: Ipv6Addr,
    pub remote: Ipv6Addr,
    pub remote_port: u16,
    /// The interface that the sockets are bound to; 0 for none.
    pub interface: u32,
}

impl Tuple {
    /// The remote end as people write it.
    pub fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.remote.to_canonical(), self.remote_port)
    }
}

/// One socket that has a port of a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortHolder {
    pub cookie: u64,
    /// 0 for one that no program holds.
    pub inode: u32,
    pub port: u16,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anything but a TIME-WAIT.
    Other,
    TimeWait,
    /// A TIME-WAIT whose port connect() may take again.
    Reusable,
}

/// The sockets of one network namespace, by tuple.
#[derive(Clone, Debug)]
pub struct PortTable {
    pub choice: Choice,
    /// Ports that bind() has taken: in use for every tuple.
    bound: PortSet,
    tuples: HashMap<Tuple, Vec<PortHolder>>,
    most: usize,
    /// A tuple that is not in `tuples` had no more ports than this, and one that is there may have had so many more.
    pub forgotten: usize,
}

impl PortTable {
    pub fn new(choice: Choice) -> Self {
        Self { choice, bound: PortSet::default(), tuples: HashMap::new(), most: MOST_TUPLES, forgotten: 0 }
    }

    /// Takes in a listener, or a socket that is bound and not connected. These come first.
    pub fn bind(&mut self, socket: &Socket) {
        if self.choice.has(socket.flow.local_port) {
            self.bound.add(socket.flow.local_port);
        }
    }

    /// Takes in a socket that is connecting, connected or closing.
    pub fn take(&mut self, socket: &Socket) {
        let port = socket.flow.local_port;
        if !self.choice.has(port) || self.bound.has(port) {
            return;
        }
        let kind = match (socket.minisocket, socket.state) {
            (true, TcpState::TimeWait) if self.choice.reuse.allows(socket) => Kind::Reusable,
            (true, TcpState::TimeWait) => Kind::TimeWait,
            _ => Kind::Other,
        };
        let tuple = Tuple {
            local: socket.flow.local,
            remote: socket.flow.remote,
            remote_port: socket.flow.remote_port,
            interface: socket.interface,
        };
        let taken = PortHolder { cookie: socket.cookie, inode: socket.inode, port, kind };
        self.tuples.entry(tuple).or_default().push(taken);
        if self.tuples.len() > self.most {
            self.forget_the_emptiest();
        }
    }

    /// Forgets tuples until half of them are left: those with one port, with two, and so on.
    fn forget_the_emptiest(&mut self) {
        let mut few = 0;
        while self.tuples.len() > self.most / 2 {
            few += 1;
            self.tuples.retain(|_, taken| taken.len() > few);
        }
        self.forgotten += few;
    }

    /// Leaves one socket a port: a dump can meet a socket twice, and a port can change hands meanwhile.
    pub fn finish(&mut self) {
        for taken in self.tuples.values_mut() {
            taken.sort_unstable_by_key(|taken| taken.port);
            taken.dedup_by_key(|taken| taken.port);
        }
    }

    pub fn tuples(&self) -> impl Iterator<Item = (&Tuple, &[PortHolder])> {
        self.tuples.iter().map(|(tuple, taken)| (tuple, taken.as_slice()))
    }

    /// Ports that are in use for every tuple.
    pub fn bound(&self) -> u32 {
        self.bound.len()
    }

    /// How much of what there is to choose from is in use where `taken` are.
    pub fn used_ratio(&self, taken: usize) -> f64 {
        match self.choice.ports() {
            0 => 0.0,
            ports => (taken as f64 + f64::from(self.bound())) / f64::from(ports),
        }
    }

    /// The ratio of the fullest tuple; 0 without any.
    pub fn fullest(&self) -> f64 {
        self.tuples.values().map(Vec::len).max().map_or(0.0, |most| self.used_ratio(most))
    }

    /// The same without TIME-WAITs whose ports connect() may choose again.
    pub fn fullest_blocked(&self) -> f64 {
        let blocked =
            |taken: &Vec<PortHolder>| taken.iter().filter(|taken| taken.kind != Kind::Reusable).count();
        self.tuples.values().map(blocked).max().map_or(0.0, |most| self.used_ratio(most))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::names::Flow;

    pub const LATER: Reuse = Reuse { whose: Whose::Loopback, delay_ns: 1_000_000_000 };

    pub fn choice(range: RangeInclusive<u16>, reserved: &str) -> Choice {
        Choice { range, reserved: PortSet::parse(reserved), reuse: LATER }
    }

    pub fn socket(state: TcpState, local: &str, remote: &str) -> Socket {
        let flow = Flow::new(local.parse().unwrap(), remote.parse().unwrap());
        Socket { cookie: u64::from(flow.local_port), ..Socket::made_up(state, flow) }
    }

    fn time_wait(local: &str, remote: &str, left_s: u64) -> Socket {
        let expires_ns = Some(left_s * 1_000_000_000);
        Socket { minisocket: true, expires_ns, ..socket(TcpState::TimeWait, local, remote) }
    }

    #[test]
    fn ports_run_out_for_each_tuple_on_its_own() {
        let mut table = PortTable::new(choice(1000..=1009, "1003-1004,2000"));
        assert_eq!((table.choice.ports(), table.choice.reserved_in_range()), (8, 2));
        table.bind(&socket(TcpState::Listen, "127.0.0.1:1000", "0.0.0.0:0"));
        table.bind(&socket(TcpState::Listen, "0.0.0.0:80", "0.0.0.0:0"));
        let established = |local, remote| socket(TcpState::Established, local, remote);
        for _met_twice in 0..2 {
            table.take(&established("10.0.0.1:1001", "10.0.0.2:443"));
        }
        table.take(&socket(TcpState::SynSent, "10.0.0.1:1002", "10.0.0.2:443"));
        table.take(&time_wait("10.0.0.1:1005", "10.0.0.2:443", 3));
        table.take(&established("10.0.0.1:1001", "10.0.0.3:443"));
        // Accepted by a listener, reserved, outside the range.
        table.take(&established("10.0.0.1:1000", "10.0.0.2:443"));
        table.take(&established("10.0.0.1:1003", "10.0.0.2:443"));
        table.take(&established("10.0.0.1:80", "10.0.0.2:443"));
        table.finish();
        let mut sizes: Vec<usize> = table.tuples().map(|(_, taken)| taken.len()).collect();
        sizes.sort_unstable();
        assert_eq!((sizes, table.bound()), (vec![1, 3], 1));
        assert_eq!(table.fullest(), 4.0 / 8.0);
    }

    #[test]
    fn a_time_wait_is_reusable_as_the_kernel_says() {
        let on_loopback = time_wait("127.0.0.1:1", "127.0.0.1:2", 58);
        let v6 = time_wait("[::1]:1", "[::1]:2", 58);
        let elsewhere = time_wait("10.0.0.1:1", "10.0.0.2:2", 58);
        let all = Reuse { whose: Whose::Everybodys, ..LATER };
        let none = Reuse { whose: Whose::Nobodys, ..LATER };
        assert!(LATER.allows(&on_loopback) && LATER.allows(&v6) && !LATER.allows(&elsewhere));
        assert!(LATER.allows(&Socket { interface: 1, ..elsewhere }));
        assert!(all.allows(&elsewhere) && !none.allows(&on_loopback));
        assert!(!LATER.allows(&Socket { expires_ns: Some(59_500_000_000), ..on_loopback }), "too young");
        assert!(!LATER.allows(&Socket { state: TcpState::FinWait2, ..on_loopback }));
        assert!(!LATER.allows(&Socket { minisocket: false, ..on_loopback }));
    }

    #[test]
    fn ports_that_connect_may_choose_again_are_not_blocked() {
        let mut table = PortTable::new(choice(1000..=1007, ""));
        table.take(&time_wait("127.0.0.1:1001", "127.0.0.1:443", 3));
        table.take(&time_wait("127.0.0.1:1002", "127.0.0.1:443", 3));
        table.take(&socket(TcpState::Established, "127.0.0.1:1003", "127.0.0.1:443"));
        table.take(&time_wait("10.0.0.1:1001", "10.0.0.2:443", 3));
        table.take(&time_wait("10.0.0.1:1002", "10.0.0.2:443", 3));
        assert_eq!((table.fullest(), table.fullest_blocked()), (3.0 / 8.0, 2.0 / 8.0));
    }

    #[test]
    fn the_fullest_survive_a_crowd() {
        let mut table = PortTable { most: 100, ..PortTable::new(choice(1024..=65535, "")) };
        for port in 2000..2500 {
            table.take(&socket(TcpState::Established, &format!("10.0.0.1:{port}"), "10.0.0.2:443"));
            for other in 0..20 {
                let remote = format!("10.1.{other}.{}:{port}", port % 250);
                table.take(&socket(TcpState::Established, &format!("10.0.0.1:{port}"), &remote));
            }
        }
        assert!(table.tuples().count() <= 100);
        let most = table.tuples().map(|(_, taken)| taken.len()).max().unwrap();
        assert!(most + table.forgotten >= 500 && most <= 500, "{most} and {}", table.forgotten);
        assert!(most > 250, "{most}");
    }
}
