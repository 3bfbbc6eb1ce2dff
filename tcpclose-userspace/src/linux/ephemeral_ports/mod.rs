//! The ports that connect() may take in a network namespace, and the sockets of all states that have them.
//!
//! A socket may have a range of its own (`IP_LOCAL_PORT_RANGE`, since 6.3), which cannot be seen from outside.

mod choice;
mod port_set;

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use tcpclose_common::state::{CLOSE_PHASE, TcpState};

pub use crate::linux::ephemeral_ports::choice::{Choice, Reuse, Whose};
pub use crate::linux::ephemeral_ports::port_set::PortSet;
use crate::linux::host::{monotonic_ns, thread_cpu_ns};
use crate::linux::netns;
use crate::linux::netns::{Netns, NetnsPath};
use crate::linux::sock_diag;
use crate::linux::sock_diag::Socket;
use crate::names::NetnsOwner;

/// Every state in which a socket has a port that connect() gave it. SYN-RECV is not among them: a connection that a listener
/// is about to accept has the listener's port.
const CONNECTED: u32 =
    CLOSE_PHASE | TcpState::Established.bit() | TcpState::SynSent.bit() | TcpState::TimeWait.bit();
/// States in which bind() has taken the port. Kernels before 6.8 do not list sockets that are bound and neither listen nor are
/// connected.
const BOUND: u32 = TcpState::Listen.bit() | TcpState::BoundInactive.bit();

/// Takes in the sockets of one network namespace. Sockets with ports that bind() has taken come first.
pub trait PortSink: Send {
    fn new(choice: Choice) -> Self;

    /// Takes in a listener, or a socket that is bound and not connected.
    fn bind(&mut self, socket: &Socket);

    /// Takes in a socket that is connecting, connected or closing.
    fn take(&mut self, socket: &Socket);

    /// Called after the last socket.
    fn finish(&mut self);
}

/// One network namespace's sockets.
#[derive(Clone, Debug)]
pub struct NetnsPorts<T> {
    pub netns: Netns,
    pub owner: NetnsOwner,
    pub table: T,
}

/// The result of one pass over network namespaces.
#[derive(Debug)]
pub struct EphemeralUse<T> {
    pub tables: Vec<NetnsPorts<T>>,
    /// The owners of the namespaces that were entered, those without sockets included.
    pub owners: BTreeSet<NetnsOwner>,
    /// Namespaces that could not be entered, and why.
    pub failed: Vec<(NetnsPath, io::Error)>,
    /// Namespaces for which the time did not suffice: those of users before those of root, those with few sockets before
    /// those with many. The host's is never among them.
    pub left: usize,
    /// The kernel's table changed during a walk, or an answer could not be decoded.
    pub imperfect: bool,
    /// CLOCK_MONOTONIC at the end, nanoseconds.
    pub at_ns: u64,
    /// CPU time, nanoseconds.
    pub cpu_ns: u64,
}

impl<T> Default for EphemeralUse<T> {
    fn default() -> Self {
        let owners = BTreeSet::new();
        Self {
            tables: Vec::new(),
            owners,
            failed: Vec::new(),
            left: 0,
            imperfect: false,
            at_ns: 0,
            cpu_ns: 0,
        }
    }
}

/// Visits `places` and collects the sockets of each by port until `budget` of CPU time is spent: the host's namespace first,
/// then root's others, then those of users, so that nobody's are left out because a user has many. Among those of one kind the
/// ones with the most sockets come first. A walk goes over the kernel's whole table, whatever is in the namespace (net/ipv4/inet_diag.c,
/// inet_diag_dump_icsk()): a thousand of them take some ten seconds.
///
/// # Errors
/// When a namespace that was entered cannot be dumped: then none can.
pub fn look<T: PortSink>(places: &[NetnsPath], budget: Duration) -> io::Result<EphemeralUse<T>> {
    netns::with_visitor(|visitor| {
        let cpu = thread_cpu_ns();
        let spent = || Duration::from_nanos(thread_cpu_ns().saturating_sub(cpu));
        let mut result = EphemeralUse::default();
        let (roots, users): (Vec<&NetnsPath>, Vec<&NetnsPath>) =
            places.iter().partition(|place| place.user == 0);
        // Even to enter a namespace takes time: users' are entered when root's have been walked.
        for group in [roots, users] {
            let mut crowds = Vec::new();
            for place in group {
                // Those that are charged to root, the host's among them, are all entered.
                if place.user != 0 && spent() > budget {
                    result.left += 1;
                    continue;
                }
                match visitor.enter(place) {
                    Ok(_) => {
                        let (owner, _) = netns::owner();
                        result.owners.insert(owner);
                        let sockets = netns::population().map_or(u64::MAX, |p| p.sockets + p.minisockets);
                        if sockets > 0 {
                            crowds.push((owner, sockets, place));
                        }
                    }
                    Err(why) => result.failed.push((place.clone(), why)),
                }
            }
            crowds.sort_by_key(|&(owner, sockets, _)| (owner, Reverse(sockets)));
            for (nth, (owner, _, place)) in crowds.iter().enumerate() {
                if !result.tables.is_empty() && spent() > budget {
                    result.left += crowds.len() - nth;
                    break;
                }
                match visitor.enter(place) {
                    Ok(netns) => {
                        let table = table(&mut result.imperfect)?;
                        result.tables.push(NetnsPorts { netns, owner: *owner, table });
                    }
                    Err(why) => result.failed.push(((*place).clone(), why)),
                }
            }
        }
        result.at_ns = monotonic_ns();
        result.cpu_ns = thread_cpu_ns().saturating_sub(cpu);
        Ok(result)
    })?
}

/// The sockets of this thread's namespace.
fn table<T: PortSink>(imperfect: &mut bool) -> io::Result<T> {
    let mut table = T::new(choice::choice());
    // Listeners come first, then what is bound, then the rest (inet_diag_dump_icsk(), 5.8 to 6.18).
    let dump = sock_diag::visit(CONNECTED | BOUND, false, |socket| match socket.state {
        TcpState::Listen | TcpState::BoundInactive => table.bind(&socket),
        _ => table.take(&socket),
    })?;
    *imperfect |= dump.interrupted || dump.malformed > 0;
    table.finish();
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    struct Sockets {
        choice: Choice,
        bound: Vec<Socket>,
        taken: Vec<Socket>,
        finished: bool,
    }

    impl PortSink for Sockets {
        fn new(choice: Choice) -> Self {
            Self { choice, bound: Vec::new(), taken: Vec::new(), finished: false }
        }

        fn bind(&mut self, socket: &Socket) {
            assert!(self.taken.is_empty(), "those that bind() has taken come first");
            self.bound.push(*socket);
        }

        fn take(&mut self, socket: &Socket) {
            self.taken.push(*socket);
        }

        fn finish(&mut self) {
            self.finished = true;
        }
    }

    #[test]
    fn a_connection_of_ours_is_in_the_table() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let port_use = look::<Sockets>(&[netns::own_place().unwrap()], Duration::ZERO).unwrap();
        let [NetnsPorts { table, .. }] = &port_use.tables[..] else { panic!("one namespace") };
        let (local, remote) = (client.local_addr().unwrap(), listener.local_addr().unwrap());
        let of_client = |socket: &&Socket| socket.flow.remote() == remote;
        assert_eq!(
            table.taken.iter().filter(of_client).map(|socket| socket.flow.local()).next(),
            Some(local)
        );
        assert!(table.bound.iter().any(|socket| socket.flow.local_port == remote.port()) && table.finished);
        assert!(table.choice.has(local.port()) && !table.choice.has(80));
    }
}
