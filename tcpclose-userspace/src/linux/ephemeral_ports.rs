//! Which ports connect() may take in a network namespace, and which sockets of all states have them.
//!
//! A socket may have a range of its own (`IP_LOCAL_PORT_RANGE`, since 6.3), which nothing shows from outside.

use std::cmp::Reverse;
use std::fs;
use std::io;
use std::time::Duration;

use tcpclose_common::state::{CLOSE_PHASE, TcpState};

use crate::linux::host;
use crate::linux::host::{monotonic_ns, thread_cpu_ns};
use crate::linux::netns;
use crate::linux::netns::{Netns, NetnsPath};
use crate::linux::sock_diag;
use crate::report::exhaustion::port_set::PortSet;
use crate::report::exhaustion::{Choice, PortTable, Reuse, Whose};

/// Every state in which a socket has a port that connect() gave it. SYN-RECV is not among them: what a listener is about
/// to accept has the listener's port.
const CONNECTED: u32 =
    CLOSE_PHASE | TcpState::Established.bit() | TcpState::SynSent.bit() | TcpState::TimeWait.bit();
/// bind() has taken their ports. Kernels before 6.8 do not list what is bound and neither listens nor is connected.
const BOUND: u32 = TcpState::Listen.bit() | TcpState::BoundInactive.bit();

/// What a journey has brought.
#[derive(Debug, Default)]
pub struct EphemeralUse {
    pub tables: Vec<(Netns, PortTable)>,
    /// Where nobody could go, and why.
    pub failed: Vec<(NetnsPath, io::Error)>,
    /// Namespaces for which the time did not suffice; none of them has more sockets than those in `tables`.
    pub left: usize,
    /// The kernel's table changed under a walk, or an answer could not be decoded.
    pub imperfect: bool,
    /// CLOCK_MONOTONIC at the end, nanoseconds.
    pub at_ns: u64,
    /// CPU time, nanoseconds.
    pub cpu_ns: u64,
}

/// Goes to `places` and looks who has which port: where the most sockets are first, until `budget` of CPU time is spent. A
/// walk goes over the kernel's whole table, whatever is in the namespace (net/ipv4/inet_diag.c, inet_diag_dump_icsk()): a
/// thousand of them are some ten seconds.
///
/// # Errors
/// When a namespace that was entered gives no dump: what the kernel lacks there it lacks in all.
pub fn look(places: &[NetnsPath], budget: Duration) -> io::Result<EphemeralUse> {
    netns::travel(|traveller| {
        let cpu = thread_cpu_ns();
        let spent = || Duration::from_nanos(thread_cpu_ns().saturating_sub(cpu));
        let mut looked = EphemeralUse::default();
        let mut crowds = Vec::new();
        for place in places {
            match traveller.enter(place) {
                Ok(_) => {
                    let sockets = netns::population().map_or(u64::MAX, |p| p.sockets + p.minisockets);
                    if sockets > 0 {
                        crowds.push((sockets, place));
                    }
                }
                Err(why) => looked.failed.push((place.clone(), why)),
            }
        }
        crowds.sort_by_key(|&(sockets, _)| Reverse(sockets));
        for (nth, (_, place)) in crowds.iter().enumerate() {
            if nth > 0 && spent() > budget {
                looked.left = crowds.len() - nth;
                break;
            }
            match traveller.enter(place) {
                Ok(netns) => {
                    let table = table(&mut looked.imperfect)?;
                    looked.tables.push((netns, table));
                }
                Err(why) => looked.failed.push(((*place).clone(), why)),
            }
        }
        looked.at_ns = monotonic_ns();
        looked.cpu_ns = thread_cpu_ns().saturating_sub(cpu);
        Ok(looked)
    })?
}

/// The sockets of this thread's namespace.
fn table(imperfect: &mut bool) -> io::Result<PortTable> {
    let mut table = PortTable::new(choice());
    // Listeners come first, then what is bound, then the rest (inet_diag_dump_icsk(), 5.8 to 6.18).
    let dump = sock_diag::visit(CONNECTED | BOUND, false, |socket| match socket.state {
        TcpState::Listen | TcpState::BoundInactive => table.bind(&socket),
        _ => table.take(&socket),
    })?;
    *imperfect |= dump.interrupted || dump.malformed > 0;
    table.finish();
    Ok(table)
}

/// What connect() may choose from in this thread's namespace.
pub fn choice() -> Choice {
    let number = |name: &str| -> Option<u64> { sysctl(name)?.trim().parse().ok() };
    let timestamps = number("tcp_timestamps").unwrap_or(1) != 0;
    let whose = match number("tcp_tw_reuse") {
        _ if !timestamps => Whose::Nobodys,
        Some(0) => Whose::Nobodys,
        Some(1) => Whose::Everybodys,
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

/// The thread's own namespace has these: /proc/sys/net is that of whoever looks.
fn sysctl(name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    #[test]
    fn a_connection_of_ours_is_in_the_table() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let looked = look(&[netns::own_place().unwrap()], Duration::ZERO).unwrap();
        let [(_, table)] = &looked.tables[..] else { panic!("{looked:?}") };
        let (_, taken) = table
            .tuples()
            .find(|(tuple, _)| tuple.remote() == listener.local_addr().unwrap())
            .expect("its tuple");
        assert_eq!(taken.len(), 1, "the accepted end has the listener's port, which counts for all");
        assert_eq!(taken[0].port, client.local_addr().unwrap().port());
        assert!(table.bound() >= 1 && table.fullest() > 0.0);
        assert!(table.choice.has(taken[0].port) && !table.choice.has(80));
    }
}
