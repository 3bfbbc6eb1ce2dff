//! How a connection was opened, as far as the socket's own counters prove it.

use crate::names::side::Side;

/// How the connection of a socket was opened.
///
/// The SYN of an active open is acknowledged like a byte of data and is none: `bytes_acked` counts it
/// (`tcp_ack()`, called by `tcp_rcv_synsent_state_process()`), `bytes_sent` does not (`__tcp_transmit_skb()`).
/// A child begins behind its SYN-ACK (`tcp_create_openreq_child()`), and a socket that connects in repair mode
/// sends no SYN (`tcp_connect()`); net/ipv4 in Linux 5.8 to 6.18. So the bytes that were acknowledged and never
/// sent, without this side's FIN, are 1 where this side has connected, and 0 where it has not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Opening {
    /// Accepted: the socket has the backlog of its listener, or its opening was seen.
    Accepted,
    /// This side has sent a SYN, which the peer has acknowledged.
    Connected,
    /// This side has sent no SYN: accepted, or restored in repair mode.
    NotConnected,
    /// The socket has no backlog, and its counters prove nothing: segments that the host itself dropped count as sent.
    NoBacklog,
    /// Nothing is known of it.
    #[default]
    Unknown,
}

/// The listeners of a socket's local end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listening {
    /// One listens there.
    pub any: bool,
    /// One listens there with a backlog of 0, which its children inherit.
    pub without_backlog: bool,
}

impl Opening {
    /// From the counters of a `tcp_sock`: `unsent` are bytes that were acknowledged and never sent, without
    /// this side's FIN.
    pub const fn of_counters(unsent: i64) -> Self {
        match unsent {
            1 => Self::Connected,
            // More than the SYN: data that was restored in repair mode and never sent from here
            // (tcp_write_xmit(), label repair).
            0 | 2.. => Self::NotConnected,
            // The host itself has dropped segments (net_xmit_eval() of __tcp_transmit_skb()).
            _ => Self::Unknown,
        }
    }

    /// The side that it proves, where its end has these listeners. A listener alone proves nothing: a program can connect
    /// from the port that it listens on.
    pub const fn side(self, listening: Listening) -> Side {
        match self {
            Self::Accepted => Side::Server,
            Self::Connected => Side::Client,
            Self::NotConnected if listening.any => Side::Server,
            Self::NoBacklog if !listening.without_backlog => Side::Client,
            Self::NotConnected | Self::NoBacklog | Self::Unknown => Side::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_alone_proves_no_side() {
        let none = Listening::default();
        let usual = Listening { any: true, without_backlog: false };
        let without_backlog = Listening { any: true, without_backlog: true };
        for (opening, of_none, of_usual, of_no_backlog) in [
            (Opening::Accepted, Side::Server, Side::Server, Side::Server),
            (Opening::Connected, Side::Client, Side::Client, Side::Client),
            (Opening::NotConnected, Side::Unknown, Side::Server, Side::Server),
            (Opening::NoBacklog, Side::Client, Side::Client, Side::Unknown),
            (Opening::Unknown, Side::Unknown, Side::Unknown, Side::Unknown),
        ] {
            let sides = [none, usual, without_backlog].map(|listening| opening.side(listening));
            assert_eq!(sides, [of_none, of_usual, of_no_backlog], "{opening:?}");
        }
    }

    #[test]
    fn a_syn_is_the_one_byte_that_was_never_sent() {
        assert_eq!(Opening::of_counters(1), Opening::Connected);
        assert_eq!([0, 2, 1 << 20].map(Opening::of_counters), [Opening::NotConnected; 3]);
        assert_eq!([-1, i64::MIN].map(Opening::of_counters), [Opening::Unknown; 2]);
    }
}
