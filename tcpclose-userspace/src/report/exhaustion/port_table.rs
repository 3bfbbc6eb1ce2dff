//! The sockets of a network namespace by tuple, and how many of the ports that connect() may take each tuple uses.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};

use tcpclose_common::state::TcpState;

use crate::linux::ephemeral_ports;
use crate::linux::ephemeral_ports::{Choice, PortSet, PortSink};
use crate::linux::sock_diag::Socket;
use crate::names::Flow;

/// The port tables of several network namespaces.
pub type EphemeralUse = ephemeral_ports::EphemeralUse<PortTable>;

/// The most tuples that are counted at a time. Beyond that, those with the fewest ports are forgotten.
const MOST_TUPLES: usize = 1 << 16;

/// The most local addresses that are counted at a time. Beyond that, those with the fewest ports are forgotten.
const MOST_LOCALS: usize = 1024;

/// The ends of connections whose local ports must differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    pub local: Ipv6Addr,
    pub remote: Ipv6Addr,
    pub remote_port: u16,
    /// The interface that the sockets are bound to; 0 for none.
    pub interface: u32,
}

impl Tuple {
    /// The remote end, IPv4 as such.
    pub fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.remote.to_canonical(), self.remote_port)
    }
}

/// One socket that uses a port of a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortHolder {
    pub cookie: u64,
    /// 0 for a socket that no program holds.
    pub inode: u32,
    pub port: u16,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anything but a TIME-WAIT.
    Other,
    TimeWait,
    /// A TIME-WAIT whose port connect() may reuse.
    Reusable,
}

/// The sockets of one network namespace, by tuple.
#[derive(Clone, Debug)]
pub struct PortTable {
    pub choice: Choice,
    /// Ports that bind() has taken, in use for every tuple.
    bound: PortSet,
    tuples: HashMap<Tuple, Vec<PortHolder>>,
    /// The ports in use on each local address, towards any destination; sorted, each once, after the last socket.
    locals: HashMap<Ipv6Addr, Vec<u16>>,
    /// Those that sockets bound to no address have: in use on every one.
    everywhere: PortSet,
    most: usize,
    /// Tuples that are missing in `tuples` had at most this many ports; those that are there may have had this many more.
    pub forgotten: usize,
    /// The same of `locals`.
    pub locals_forgotten: usize,
}

impl PortSink for PortTable {
    fn new(choice: Choice) -> Self {
        Self {
            choice,
            bound: PortSet::default(),
            tuples: HashMap::new(),
            locals: HashMap::new(),
            everywhere: PortSet::default(),
            most: MOST_TUPLES,
            forgotten: 0,
            locals_forgotten: 0,
        }
    }

    fn bind(&mut self, socket: &Socket) {
        if self.choice.has(socket.flow.local_port) {
            self.bound.add(socket.flow.local_port);
            self.take_local(socket);
        }
    }

    fn take(&mut self, socket: &Socket) {
        let port = socket.flow.local_port;
        if self.choice.has(port) {
            self.take_local(socket);
        }
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
            self.forgotten += forget_emptiest(&mut self.tuples, self.most);
        }
    }

    /// Keeps one socket per port: a dump can meet a socket twice, and a port can change hands meanwhile.
    fn finish(&mut self) {
        for taken in self.tuples.values_mut() {
            taken.sort_unstable_by_key(|taken| taken.port);
            taken.dedup_by_key(|taken| taken.port);
        }
        self.locals.values_mut().for_each(distinct);
    }
}

fn distinct(ports: &mut Vec<u16>) {
    ports.sort_unstable();
    ports.dedup();
}

/// Forgets the emptiest entries until half of `most` is left: those with one port, with two, and so on. Returns how many ports
/// one of them had at most.
fn forget_emptiest<K, P>(table: &mut HashMap<K, Vec<P>>, most: usize) -> usize {
    let mut few = 0;
    while table.len() > most / 2 {
        few += 1;
        table.retain(|_, ports| ports.len() > few);
    }
    few
}

impl PortTable {
    /// Counts a port of the range as in use on the socket's local address.
    fn take_local(&mut self, socket: &Socket) {
        /// Twice as many as there are: a port is in use towards many destinations.
        const MANY: usize = 1 << 17;
        let Flow { local, local_port, .. } = socket.flow;
        if local.to_canonical().is_unspecified() {
            self.everywhere.add(local_port);
            return;
        }
        let ports = self.locals.entry(local).or_default();
        ports.push(local_port);
        if ports.len() >= MANY {
            distinct(ports);
        }
        if self.locals.len() > MOST_LOCALS {
            self.locals.values_mut().for_each(distinct);
            self.locals_forgotten += forget_emptiest(&mut self.locals, MOST_LOCALS);
        }
    }

    /// Each local address with the number of ports that bind() to it, without a port, cannot choose.
    pub fn locals(&self) -> impl Iterator<Item = (Ipv6Addr, u32)> {
        let everywhere = self.everywhere.len();
        self.locals.iter().map(move |(&local, ports)| {
            let here = ports.iter().filter(|&&port| !self.everywhere.has(port)).count() as u32;
            (local, here + everywhere)
        })
    }

    /// The part of the available ports that `used` are.
    pub fn local_ratio(&self, used: u32) -> f64 {
        match self.choice.ports() {
            0 => 0.0,
            ports => f64::from(used) / f64::from(ports),
        }
    }

    /// The ratio of the fullest local address; without any, that of the ports in use on every one.
    pub fn fullest_local(&self) -> f64 {
        let most = self.locals().map(|(_, used)| used).max();
        self.local_ratio(most.unwrap_or_else(|| self.everywhere.len()))
    }

    pub fn tuples(&self) -> impl Iterator<Item = (&Tuple, &[PortHolder])> {
        self.tuples.iter().map(|(tuple, taken)| (tuple, taken.as_slice()))
    }

    /// Ports that are in use for every tuple.
    pub fn bound(&self) -> u32 {
        self.bound.len()
    }

    /// The used part of the available ports where a tuple has `taken`.
    pub fn used_ratio(&self, taken: usize) -> f64 {
        self.local_ratio(taken as u32 + self.bound())
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
    use std::ops::RangeInclusive;

    use super::*;
    use crate::linux::ephemeral_ports::{Reuse, Whose};
    use crate::names::Flow;

    pub fn choice(range: RangeInclusive<u16>, reserved: &str) -> Choice {
        let reuse = Reuse { whose: Whose::Loopback, delay_ns: 1_000_000_000 };
        Choice { range, reserved: PortSet::parse(reserved), reuse }
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

    /// As the kernel has it on 6.18: three destinations with a third of the ports each leave bind() to that address none, and
    /// another address all but the one of a listener on every address.
    #[test]
    fn bind_runs_out_of_ports_over_all_destinations() {
        let mut table = PortTable::new(choice(1000..=1099, ""));
        table.bind(&socket(TcpState::Listen, "0.0.0.0:1000", "0.0.0.0:0"));
        table.bind(&socket(TcpState::BoundInactive, "10.0.0.2:1001", "0.0.0.0:0"));
        for port in 1001..1100 {
            let remote = format!("10.0.0.9:{}", 80 + port % 3);
            table.take(&socket(TcpState::Established, &format!("10.0.0.1:{port}"), &remote));
        }
        // Accepted, and a second destination of a port.
        table.take(&socket(TcpState::Established, "10.0.0.2:1000", "10.0.0.9:4000"));
        table.take(&time_wait("10.0.0.2:1001", "10.0.0.9:80", 30));
        table.take(&time_wait("10.0.0.2:1001", "10.0.0.9:81", 30));
        table.finish();
        let mut locals: Vec<(String, u32)> =
            table.locals().map(|(local, used)| (local.to_canonical().to_string(), used)).collect();
        locals.sort();
        assert_eq!(locals, [("10.0.0.1".to_owned(), 100), ("10.0.0.2".to_owned(), 2)]);
        assert_eq!(table.fullest_local(), 1.0);
        assert!(table.fullest() < 0.4, "{}", table.fullest());
    }

    #[test]
    fn the_fullest_local_address_survives_a_crowd() {
        let mut table = PortTable::new(choice(1024..=65535, ""));
        for port in 2000..5000u32 {
            let crowd = format!("127.{}.{}.1:2000", port >> 8, port & 255);
            for local in [format!("10.0.0.1:{port}"), crowd] {
                table.take(&socket(TcpState::Established, &local, "10.0.0.2:443"));
            }
        }
        table.finish();
        assert!(table.locals().count() <= MOST_LOCALS);
        assert_eq!(table.locals().map(|(_, used)| used).max(), Some(3000));
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
