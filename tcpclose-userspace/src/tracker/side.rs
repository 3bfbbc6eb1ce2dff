//! The end of its connection that a socket is, and the service port that follows from it.

use std::net::Ipv6Addr;

use tcpclose_common::event::{RecordHeader, flags};
use tcpclose_common::state::{BEFORE_FIN, is_in};

use crate::names::{Flow, Listening, Opening, Side};
use crate::tracker::dump::DumpedSocket;
use crate::tracker::socket::{SocketKind, TrackedSocket};
use crate::tracker::table::Tracker;

/// What a record proves of its socket's opening.
fn opening_of(head: &RecordHeader) -> Opening {
    let is = |flag: u16| head.flags & flag != 0;
    match is(flags::FACTS) {
        true if is(flags::ACCEPTED) => Opening::Accepted,
        true if is(flags::CONNECTED) => Opening::Connected,
        true if is(flags::NOT_CONNECTED) => Opening::NotConnected,
        true => Opening::NoBacklog,
        false => Opening::Unknown,
    }
}

impl Tracker {
    /// Takes from a record what is still unknown of a socket that a dump found.
    pub(super) fn refine(&mut self, at: usize, head: &RecordHeader) {
        if self.sockets[at].side == Side::Unknown {
            let known = Some(self.sockets[at].flow).filter(Flow::has_addresses).map(|flow| flow.local);
            let side = match opening_of(head) {
                // The dump has looked at its counters, and this step has not.
                Opening::NoBacklog if !is_in(head.old.into(), BEFORE_FIN) => Side::Unknown,
                opening => self.side_by(opening, head, known),
            };
            self.learn_side(at, side);
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

    /// The end that a record's socket is, with this local address if it is known.
    pub(super) fn side_of(&self, head: &RecordHeader, local: Option<Ipv6Addr>) -> Side {
        self.side_by(opening_of(head), head, local)
    }

    fn side_by(&self, opening: Opening, head: &RecordHeader, local: Option<Ipv6Addr>) -> Side {
        let listening = || {
            let netns = if head.netns == 0 { self.host.netns } else { head.netns };
            self.listening(netns, local, head.local_port)
        };
        match opening {
            Opening::NotConnected | Opening::NoBacklog => opening.side(listening()),
            // Most records: whoever listens changes nothing.
            Opening::Accepted | Opening::Connected | Opening::Unknown => opening.side(Listening::default()),
        }
    }

    /// The end that a dumped socket is.
    pub(super) fn dumped_side(&self, seen: &DumpedSocket) -> Side {
        seen.opening.side(self.listening(seen.netns, Some(seen.flow.local), seen.flow.local_port))
    }

    /// Sets the side of a socket whose side was unknown.
    pub(super) fn learn_side(&mut self, at: usize, side: Side) {
        if side != Side::Unknown {
            let TrackedSocket { netns, flow: Flow { local_port, remote_port, .. }, .. } = self.sockets[at];
            let port = self.service_port(netns, side, local_port, remote_port);
            (self.sockets[at].side, self.sockets[at].port) = (side, port);
            self.changed(at);
        }
    }
}
