//! One line of the stream. As with [`documents`](crate::report::sockets), readers ignore unknown keys.

use std::borrow::Cow;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use tcpclose_common::state::TcpState;

use crate::names::words::{named, named_or_null};
use crate::names::{Age, Outcome, Role, Side, TransitionSource};
use crate::report::sockets::Cookie;

/// An item of the stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Item {
    Line(Box<Line>),
    /// Transitions that are missing here.
    Lost(Lost),
}

/// How many transitions are missing here: the reader was too slow, or the kernel could not deliver their records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    pub lost: u64,
    /// The records were lost in the kernel; their sockets are unknown.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_kernel: bool,
}

/// One transition of one socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The wall clock of the transition, RFC 3339, UTC, nanoseconds.
    pub time: String,
    /// CLOCK_MONOTONIC of the transition.
    pub time_ns: u64,
    /// The socket cookie, as `ss -e` writes `sk:`; 0 while it is not known.
    pub cookie: Cookie,
    /// The inode of the socket's network namespace; 0 where it is unknown.
    pub netns: u32,
    #[serde(with = "named")]
    pub side: Side,
    /// The service port: the local one on the server side, the remote one on the client side.
    pub port: u16,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    #[serde(with = "named")]
    pub from: TcpState,
    #[serde(with = "named")]
    pub to: TcpState,
    /// The minimum time spent in `from`.
    pub min_seconds: f64,
    /// The maximum; `null` where no bound is proven.
    pub max_seconds: Option<f64>,
    #[serde(with = "named")]
    pub role: Role,
    /// How the connection ended; `null` in all transitions but the last.
    #[serde(with = "named_or_null")]
    pub outcome: Option<Outcome>,
    /// The program had written after the peer's FIN, and the peer's RST answered that: [`Self::min_seconds`] after the FIN.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale_write: bool,
    /// The kernel's reason for the RST that this side sent, as in its `enum sk_rst_reason` (since 6.10): `tcp_abort_on_close`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_reason: Option<Cow<'static, str>>,
    /// The process that closed this side; `null` before the close, and where it is unknown.
    pub owner: Option<CloserLine>,
    /// The source of the transition.
    #[serde(with = "named")]
    pub source: TransitionSource,
    /// More, which tcpclose's own command line requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<More>,
}

/// The process that caused this side's FIN.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloserLine {
    pub pid: u32,
    /// `null` when it has ended since. May hold control characters: escape it for a terminal.
    pub comm: Option<String>,
}

/// What a terminal shows besides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct More {
    /// The network namespace's name as `ip netns` shows it, if any.
    pub netns_name: Option<String>,
    /// The sequence numbers, see [`tcpclose_common::event::Numbers`]; `null` where the backend in use cannot see them.
    pub snd: Option<u32>,
    pub rcv: Option<u32>,
    /// The length of TIME-WAIT on this host in milliseconds, if known.
    pub time_wait_ms: Option<u64>,
}

impl Line {
    /// The time spent in the state that was left.
    pub fn spent(&self) -> Age {
        // The nanoseconds of a year fit a float but for some.
        let ns = |seconds: f64| (seconds * 1e9).round() as u64;
        Age { min_ns: ns(self.min_seconds), max_ns: self.max_seconds.map(ns) }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// The sample of the design, key by key and in its order.
    const SAMPLE: &str = concat!(
        r#"{"time":"2026-11-22T11:00:00.123456789Z","time_ns":123456789,"cookie":"4fe4d","netns":4026531840,"#,
        r#""side":"client","port":8080,"local":"10.0.0.9:41234","peer":"10.0.0.5:8080","from":"fin_wait_2","#,
        r#""to":"time_wait","min_seconds":0.512,"max_seconds":0.512,"role":"active","outcome":null,"#,
        r#""owner":{"pid":4242,"comm":"curl"},"source":"tracepoint"}"#,
    );

    pub fn sample() -> Line {
        serde_json::from_str(SAMPLE).unwrap()
    }

    #[test]
    fn a_line_has_the_promised_keys_and_no_others() {
        assert_eq!(serde_json::to_string(&Item::Line(Box::new(sample()))).unwrap(), SAMPLE);
        let Item::Line(line) = serde_json::from_str(SAMPLE).unwrap() else { panic!("a line") };
        assert_eq!((line.spent(), line.outcome), (Age::exact(512_000_000), None));
        let closed = Line { outcome: Some(Outcome::Graceful), owner: None, max_seconds: None, ..sample() };
        let text = serde_json::to_string(&closed).unwrap();
        assert!(
            text.contains(r#""max_seconds":null,"#) && text.contains(r#""outcome":"graceful","owner":null,"#)
        );
        assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), closed);
    }

    #[test]
    fn what_is_lost_says_how_many() {
        let lost = Lost { lost: 17, in_kernel: false };
        assert_eq!(serde_json::to_string(&Item::Lost(lost)).unwrap(), r#"{"lost":17}"#);
        assert_eq!(serde_json::from_str::<Item>(r#"{"lost":17}"#).unwrap(), Item::Lost(lost));
        let in_kernel: Item = serde_json::from_str(r#"{"lost":3,"in_kernel":true}"#).unwrap();
        assert_eq!(in_kernel, Item::Lost(Lost { lost: 3, in_kernel: true }));
        assert!(serde_json::from_str::<Item>(r#"{"found":17}"#).is_err());
    }

    #[test]
    fn understands_what_a_newer_agent_adds() {
        let newer = SAMPLE.replace(r#""outcome":null"#, r#""outcome":"evaporated","zone":"a""#);
        let line: Line = serde_json::from_str(&newer).unwrap();
        assert_eq!(line.outcome, Some(Outcome::Unknown));
    }
}
