//! The end of its connection that a socket is, and the service port that follows from it.

use std::net::Ipv6Addr;

use tcpclose_common::event::{RecordHeader, flags};

use crate::names::{Flow, Side};
use crate::tracker::socket::SocketKind;
use crate::tracker::table::Tracker;

impl Tracker {
    /// Takes from a record what is still unknown of a socket that a dump found.
    pub(super) fn refine(&mut self, at: usize, head: &RecordHeader) {
        if self.sockets[at].side == Side::Unknown {
            let known = Some(self.sockets[at].flow).filter(Flow::has_addresses).map(|flow| flow.local);
            let side = self.side_of(head, known);
            let port = self.service_port(side, head.local_port, head.remote_port);
            if side != Side::Unknown {
                (self.sockets[at].side, self.sockets[at].port) = (side, port);
                self.changed(at);
            }
        }
        let sk = if self.by_cookie { 0 } else { head.key };
        let socket = &mut self.sockets[at];
        (socket.event_ns, socket.missed) = (head.time_ns, false);
        let has_moved = socket.kind == SocketKind::Socket && socket.sk() != sk;
        if has_moved || socket.netns == 0 && head.netns != 0 {
            self.change(at, |socket| {
                if has_moved {
                    socket.set_sk(sk);
                }
                if socket.netns == 0 {
                    socket.netns = head.netns;
                }
            });
        }
    }

    /// The end that a record's socket is, with this local address if it is known. A child inherits its listener's
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
}
