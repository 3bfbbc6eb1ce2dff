//! Ports and sockets, filtered and sorted. Pure.

use std::cmp::Ordering;

use crate::commands::top::columns;
use crate::commands::top::columns::in_phase;
use crate::metrics::port_labels::PortLabel;
use crate::names::Phase;
use crate::report::ports::PortUse;
use crate::report::sockets::StuckSocket;

/// What ports are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortsBy {
    Stuck,
    Sockets,
    Closes,
    Oldest,
    Port,
}

impl PortsBy {
    pub const fn next(self) -> Self {
        match self {
            Self::Stuck => Self::Sockets,
            Self::Sockets => Self::Closes,
            Self::Closes => Self::Oldest,
            Self::Oldest => Self::Port,
            Self::Port => Self::Stuck,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Stuck => "stuck",
            Self::Sockets => "sockets",
            Self::Closes => "closes/s",
            Self::Oldest => "oldest",
            Self::Port => "port",
        }
    }
}

/// What sockets are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketsBy {
    Age,
    State,
    Peer,
    Owner,
}

impl SocketsBy {
    pub const fn next(self) -> Self {
        match self {
            Self::Age => Self::State,
            Self::State => Self::Peer,
            Self::Peer => Self::Owner,
            Self::Owner => Self::Age,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::State => "state",
            Self::Peer => "peer",
            Self::Owner => "owner",
        }
    }
}

/// The ports that `filter` lets through, sorted: the most, or the oldest in `phase`, first.
pub fn ports<'a>(
    all: &'a [PortUse],
    by: PortsBy,
    reversed: bool,
    phase: Phase,
    filter: &str,
) -> Vec<&'a PortUse> {
    let mut ports: Vec<&PortUse> =
        all.iter().filter(|port| passes(&columns::port(port, phase), filter)).collect();
    let oldest = |port: &PortUse| in_phase(port, phase).and_then(|of| of.oldest_seconds).unwrap_or(0.0);
    let rate = |port: &PortUse| port.closes_per_second.unwrap_or(0.0);
    ports.sort_by(|a, b| {
        let worst = (b.stuck, b.possibly_stuck, b.sockets).cmp(&(a.stuck, a.possibly_stuck, a.sockets));
        let order = match by {
            PortsBy::Stuck => worst,
            PortsBy::Sockets => b.sockets.cmp(&a.sockets),
            PortsBy::Closes => rate(b).total_cmp(&rate(a)),
            PortsBy::Oldest => oldest(b).total_cmp(&oldest(a)),
            // The other ports come last.
            PortsBy::Port => (a.port.is_none(), a.port).cmp(&(b.port.is_none(), b.port)),
        };
        turned(order, reversed).then(worst).then(a.label().cmp(&b.label()))
    });
    ports
}

/// The sockets that `filter` lets through, sorted.
pub fn sockets<'a>(
    all: &'a [StuckSocket],
    by: SocketsBy,
    reversed: bool,
    filter: &str,
) -> Vec<&'a StuckSocket> {
    let mut sockets: Vec<&StuckSocket> =
        all.iter().filter(|socket| passes(&columns::socket(socket), filter)).collect();
    let owner = |socket: &StuckSocket| socket.owners.first().map(|owner| (owner.comm.clone(), owner.pid));
    sockets.sort_by(|a, b| {
        let older = b.age.min_seconds.total_cmp(&a.age.min_seconds);
        let order = match by {
            SocketsBy::Age => older,
            SocketsBy::State => a.state.cmp(&b.state),
            SocketsBy::Peer => a.peer.cmp(&b.peer),
            SocketsBy::Owner => owner(a).cmp(&owner(b)),
        };
        turned(order, reversed).then(older).then(a.cookie.cmp(&b.cookie))
    });
    sockets
}

fn turned(order: Ordering, reversed: bool) -> Ordering {
    if reversed { order.reverse() } else { order }
}

/// Whether every word of `filter` is in one of the cells.
fn passes(cells: &[String], filter: &str) -> bool {
    let mut words = filter.split_whitespace().map(str::to_lowercase);
    words.all(|word| cells.iter().any(|cell| cell.to_lowercase().contains(&word)))
}

/// Whether `socket` is counted under `label`, where `named` have the names.
pub fn is_of(socket: &StuckSocket, label: PortLabel, named: &[PortUse]) -> bool {
    let own = PortLabel { side: socket.side, port: Some(socket.port) };
    let has_name = named.iter().any(|port| port.label() == own);
    match label.port {
        Some(_) => label == own,
        None => label.side == socket.side && !has_name,
    }
}
