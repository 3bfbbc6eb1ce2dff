//! Which end of its connection a socket is, and which port that makes the service's.

use std::net::{Ipv4Addr, Ipv6Addr};

use tcpclose_common::event::{RecordHeader, flags};

use crate::names::{Flow, Side};
use crate::tracker::Tracker;
use crate::tracker::socket::SocketKind;

impl Tracker {
    /// Learns from a record what an adopted life did not know yet.
    pub(super) fn refine(&mut self, at: usize, head: &RecordHeader) {
        if self.lives[at].side == Side::Unknown {
            let known = Some(self.lives[at].flow).filter(Flow::has_addresses).map(|flow| flow.local);
            let side = self.side_of(head, known);
            let port = self.port(side, head.local_port, head.remote_port);
            if side != Side::Unknown {
                (self.lives[at].side, self.lives[at].port) = (side, port);
                self.changed(at);
            }
        }
        let sk = if self.by_cookie { 0 } else { head.key };
        let life = &mut self.lives[at];
        (life.event_ns, life.missed) = (head.time_ns, false);
        let has_moved = life.body == SocketKind::Socket && life.mark != sk;
        if has_moved || life.netns == 0 && head.netns != 0 {
            self.change(at, |life| {
                if has_moved {
                    life.mark = sk;
                }
                if life.netns == 0 {
                    life.netns = head.netns;
                }
            });
        }
    }

    /// Which end a record's socket is, with this local address if it is known. A child inherits its listener's
    /// `sk_max_ack_backlog` (sk_clone_lock); a socket that connected has 0; only `listen(0)` makes children with 0, and
    /// there the listener itself is the proof.
    pub(super) fn side_of(&self, head: &RecordHeader, local: Option<Ipv6Addr>) -> Side {
        let netns = if head.netns == 0 { self.host.netns } else { head.netns };
        let listener = || local.is_some_and(|local| self.is_listening(netns, local, head.local_port));
        if head.flags & flags::ACCEPTED != 0 || listener() {
            Side::Server
        } else if head.flags & flags::FACTS != 0 {
            Side::Client
        } else {
            Side::Unknown
        }
    }

    /// Whether somebody listens for connections to this end: on its address, or on every one of its family's. A port
    /// alone proves nothing: a client can have it on another address.
    pub(super) fn is_listening(&self, netns: u32, local: Ipv6Addr, port: u16) -> bool {
        const ANY_V4: Ipv6Addr = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
        let on = |address| self.listening.contains(&(netns, address, port));
        on(local) || on(Ipv6Addr::UNSPECIFIED) || (local.to_ipv4_mapped().is_some() && on(ANY_V4))
    }

    pub(super) fn port(&self, side: Side, local: u16, remote: u16) -> u16 {
        side.service_port(local, remote, &self.host.ephemeral)
    }
}
