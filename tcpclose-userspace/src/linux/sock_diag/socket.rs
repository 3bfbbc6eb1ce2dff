//! One socket, as an answer of sock_diag describes it.

use std::net::{Ipv4Addr, Ipv6Addr};

use tcpclose_common::state::TcpState;

use crate::names::{Flow, Opening};

/// One socket as the kernel described it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// A minisocket's state is its `tw_substate`: FIN-WAIT-2 or TIME-WAIT.
    pub state: TcpState,
    /// A timewait minisocket: it has no inode, no uid and no times.
    pub minisocket: bool,
    /// A listener's remote end is `0.0.0.0:0` or `[::]:0`.
    pub flow: Flow,
    /// The interface that the socket is bound to, 0 for none; a lookup needs it.
    pub interface: u32,
    /// The socket cookie. A dump creates those that no one has read before (net/core/sock_diag.c,
    /// `sock_diag_save_cookie()`).
    pub cookie: u64,
    /// The running timer; `None` when none runs.
    pub timer: Option<Timer>,
    /// Time left on the running timer; `None` when none runs. Rounded to the kernel's tick.
    pub expires_ns: Option<u64>,
    /// The inode of `/proc/PID/fd`'s `socket:[inode]`; 0 for a socket that no program holds: not accepted yet,
    /// orphaned, or a minisocket.
    pub inode: u32,
    /// The user who opened the socket.
    pub uid: u32,
    /// `idiag_rqueue`: bytes that wait for the program, a taken FIN counts one. For a listener: connections that
    /// wait to be accepted.
    pub unread: u32,
    /// `idiag_wqueue`: bytes that the peer has not acknowledged yet, a sent FIN counts one. For a listener: its backlog.
    pub unsent: u32,
    /// `None` for minisockets, and where they were not requested.
    pub times: Option<Times>,
    /// How the acknowledgment of what was sent is waited for; `None` as the times.
    pub retries: Option<Retries>,
    /// IP_TRANSPARENT, which a connection has from its listener; `None` for minisockets and on older kernels.
    pub transparent: Option<bool>,
    /// A listener that takes no IPv4 connections (IPV6_V6ONLY).
    pub v6_only: bool,
    /// What its counters prove of its opening; nothing for minisockets, and where the times were not requested.
    pub opening: Opening,
    /// Of an MPTCP socket. Its [`Self::unread`] and [`Self::unsent`] are memory, and it has no [`Self::times`].
    pub mptcp: Option<Mptcp>,
    /// CLOCK_MONOTONIC, nanoseconds: the kernel wrote this answer at most [`Self::window_ns`] before, never after.
    pub seen_ns: u64,
    /// How long before [`Self::seen_ns`] the kernel may have written this answer, or counted its ticks to, nanoseconds.
    pub window_ns: u64,
}

impl Socket {
    /// Whether it is a listener with a backlog of 0, as by `listen(fd, 0)`: its children have none either.
    pub fn is_without_backlog(&self) -> bool {
        self.state == TcpState::Listen && self.unsent == 0
    }
}

#[cfg(test)]
impl Socket {
    /// A socket of which tests fill in the rest.
    pub fn made_up(state: TcpState, flow: Flow) -> Self {
        Self {
            state,
            minisocket: false,
            flow,
            interface: 0,
            cookie: 0,
            timer: None,
            expires_ns: None,
            inode: 0,
            uid: 0,
            unread: 0,
            unsent: 0,
            times: None,
            retries: None,
            transparent: None,
            v6_only: false,
            opening: Opening::Unknown,
            mptcp: None,
            seen_ns: 0,
            window_ns: 0,
        }
    }
}

/// What a timer is for (`idiag_timer`). The kernel names the first of these that runs (net/ipv4/inet_diag.c, `inet_sk_diag_fill()`,
/// 5.8 to 6.18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// What was sent is not acknowledged yet: retransmission, loss probe.
    Retransmission,
    /// The peer's window is closed.
    WindowProbe,
    /// The socket's own timer: keepalive, and in FIN-WAIT-2 the end of an orphan.
    Keepalive,
    /// A minisocket's.
    TimeWait,
    Other,
}

impl Timer {
    fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            0 => None,
            1 => Some(Self::Retransmission),
            2 => Some(Self::Keepalive),
            TIMER_TIME_WAIT => Some(Self::TimeWait),
            4 => Some(Self::WindowProbe),
            _ => Some(Self::Other),
        }
    }
}

/// How the acknowledgment of what was sent is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// `tcpi_retransmits`: timeouts in a row without an acknowledgment.
    pub timeouts: u8,
    /// `tcpi_total_retrans`: segments sent again, since the connection opened.
    pub again: u32,
    /// `tcpi_snd_wnd`: the peer's window, bytes; `None` before Linux 5.4.
    pub window: Option<u32>,
}

/// What an MPTCP socket tells of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mptcp {
    /// Grows by each byte that the program writes.
    pub write_seq: Option<u64>,
    /// Milliseconds since data was received last, modulo 2³².
    pub last_data_received_ms: Option<u32>,
}

/// The times that a full socket keeps, as ages at the moment that the kernel wrote them. The kernel counts them in ticks and
/// writes them in milliseconds, modulo 2³² (see [`crate::linux::age`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Since a segment with data was sent last (or since the handshake); retransmissions count.
    pub last_sent_ns: u64,
    /// Since a segment with data was received last (or since the handshake).
    pub last_data_received_ns: u64,
    /// Since an acknowledgment was received last.
    pub last_ack_received_ns: u64,
    /// `None` from a kernel that writes a shorter `struct tcp_info` than any since 4.19.
    pub sending: Option<Sending>,
}

/// What a full socket has been given to send, and how that goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sending {
    /// Bytes that the program has written since the connection opened: those sent (`tcpi_bytes_sent`) but not for another time
    /// (`tcpi_bytes_retrans`), and those that wait to be sent (`tcpi_notsent_bytes`). The kernel reads all three under the
    /// socket's lock (net/ipv4/tcp.c, `tcp_get_info()`, 5.8 to 6.18).
    pub written: u64,
    /// All of them have been sent once.
    pub all_sent: bool,
    /// `tcpi_busy_time`: for how long, all told, the socket had bytes that the peer had not acknowledged. The kernel counts ticks in
    /// 32 bits.
    pub busy_ms: u32,
    /// For how long before [`Times::last_sent_ns`] the kernel had been sending again what a silent peer did not acknowledge, and
    /// nothing else, milliseconds: at least this.
    pub repeating_ms: u32,
}

pub(super) const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_SOCKOPT: u16 = 22;
/// `transparent` in the first byte of `struct inet_diag_sockopt` (include/uapi/linux/inet_diag.h).
const TRANSPARENT: u8 = if cfg!(target_endian = "little") { 1 << 5 } else { 1 << 2 };
/// `idiag_timer` of a timewait minisocket (net/ipv4/inet_diag.c, `inet_twsk_diag_fill()`, 5.8 to 6.18).
const TIMER_TIME_WAIT: u8 = 3;
/// `size_of::<inet_diag_msg>()`.
pub(super) const MESSAGE: usize = 72;
/// The high bits of `nla_type` are flags (`NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`).
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Decodes `struct inet_diag_msg` and the attributes behind it. `None` for what is too short, has an attribute
/// that does not fit, or a family or state that is no TCP's. [`Socket::seen_ns`] and [`Socket::window_ns`] are 0:
/// they are not in the bytes.
pub fn decode(bytes: &[u8]) -> Option<Socket> {
    let socket = decode_message(bytes)?;
    let Attributes { info, transparent, v6_only } = Attributes::decode(bytes.get(MESSAGE..)?)?;
    Some(Socket {
        times: match info {
            Some(info) => Some(times(info)?),
            None => None,
        },
        retries: info.and_then(retries),
        transparent,
        v6_only,
        opening: info.and_then(|info| opening(info, socket.unsent)).unwrap_or_default(),
        ..socket
    })
}

/// Decodes `struct inet_diag_msg` alone.
pub(super) fn decode_message(bytes: &[u8]) -> Option<Socket> {
    let word = |at| take(bytes, at).map(u32::from_ne_bytes);
    let port = |at| take(bytes, at).map(u16::from_be_bytes);
    bytes.get(..MESSAGE)?;
    let address: fn(&[u8], usize) -> Option<Ipv6Addr> = match i32::from(*bytes.first()?) {
        libc::AF_INET => |bytes, at| Some(Ipv4Addr::from(take::<4>(bytes, at)?).to_ipv6_mapped()),
        libc::AF_INET6 => |bytes, at| Some(Ipv6Addr::from(take::<16>(bytes, at)?)),
        _ => return None,
    };
    let timer = Timer::from_raw(*bytes.get(2)?);
    let milliseconds_left = word(52)?;
    let unsent = word(60)?;
    Some(Socket {
        state: TcpState::from_raw(*bytes.get(1)?)?,
        minisocket: timer == Some(Timer::TimeWait),
        flow: Flow {
            local: address(bytes, 8)?,
            remote: address(bytes, 24)?,
            local_port: port(4)?,
            remote_port: port(6)?,
        },
        interface: word(40)?,
        cookie: u64::from(word(44)?) | u64::from(word(48)?) << 32,
        timer,
        expires_ns: timer.map(|_| u64::from(milliseconds_left) * 1_000_000),
        unread: word(56)?,
        unsent,
        uid: word(64)?,
        inode: word(68)?,
        times: None,
        retries: None,
        transparent: None,
        v6_only: false,
        opening: Opening::Unknown,
        mptcp: None,
        seen_ns: 0,
        window_ns: 0,
    })
}

/// What the attributes behind a message say.
#[derive(Default)]
pub(super) struct Attributes<'a> {
    /// `struct tcp_info`, or `struct mptcp_info`.
    pub info: Option<&'a [u8]>,
    transparent: Option<bool>,
    v6_only: bool,
}

impl<'a> Attributes<'a> {
    /// `None` when one does not fit.
    pub fn decode(mut attributes: &'a [u8]) -> Option<Self> {
        let mut found = Self::default();
        while !attributes.is_empty() {
            let length = usize::from(u16::from_ne_bytes(take(attributes, 0)?));
            let kind = u16::from_ne_bytes(take(attributes, 2)?) & NLA_TYPE_MASK;
            let payload = attributes.get(4..length)?;
            match kind {
                INET_DIAG_SKV6ONLY => found.v6_only = *payload.first()? != 0,
                INET_DIAG_SOCKOPT => found.transparent = Some(payload.first()? & TRANSPARENT != 0),
                INET_DIAG_INFO => {
                    found.info = Some(payload);
                    // The others come before it (net/ipv4/inet_diag.c, inet_sk_diag_fill(), 5.8 to 6.18).
                    return Some(found);
                }
                _ => {}
            }
            attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Some(found)
    }
}

/// [`Retries`] in a `struct tcp_info`.
fn retries(info: &[u8]) -> Option<Retries> {
    let word = |at| take(info, at).map(u32::from_ne_bytes);
    Some(Retries { timeouts: *info.get(2)?, again: word(100)?, window: word(228) })
}

/// The times in a `struct tcp_info`, by their offsets (include/uapi/linux/tcp.h): the struct only ever grew at its end.
fn times(info: &[u8]) -> Option<Times> {
    let age = |at| Some(u64::from(u32::from_ne_bytes(take(info, at)?)) * 1_000_000);
    Some(Times {
        last_sent_ns: age(44)?,
        last_data_received_ns: age(52)?,
        last_ack_received_ns: age(56)?,
        sending: sending(info),
    })
}

/// [`Sending`] in a `struct tcp_info`; `None` if that ends before.
fn sending(info: &[u8]) -> Option<Sending> {
    let word = |at| take(info, at).map(u32::from_ne_bytes);
    let long = |at| take(info, at).map(u64::from_ne_bytes);
    let (unsent, sent, again) = (word(144)?, long(200)?, long(208)?);
    Some(Sending {
        written: sent.wrapping_sub(again).wrapping_add(u64::from(unsent)),
        all_sent: unsent == 0,
        busy_ms: (long(168)? / 1000) as u32,
        repeating_ms: if unsent == 0 { repeating_ms(info).unwrap_or(0) } else { 0 },
    })
}

/// For how long before its last segment with data a socket with nothing unsent has only repeated itself.
///
/// At the first timeout the congestion window becomes one segment, and the repeated segment fills it (`tcp_enter_loss()`,
/// `tcp_retransmit_timer()`, 5.8 to 6.18): what the program writes from then on waits, until an acknowledgment opens the window.
/// So with nothing unsent, and no acknowledgment since, nothing was written after the first timeout. Between the timeouts lie
/// the former values of the timer, which doubles at each (`icsk_rto`, up to a limit). Since 6.7 the kernel has the time from the first
/// one (`tcpi_total_rto_time`), unless there was an earlier loss.
fn repeating_ms(info: &[u8]) -> Option<u32> {
    let word = |at| take(info, at).map(u32::from_ne_bytes);
    let (timeouts, doublings) = (u32::from(*info.get(2)?), u32::from(*info.get(4)?));
    let (rto_ms, last_sent_ms, last_ack_ms) = (word(8)? / 1000, word(44)?, word(56)?);
    let (unacked, lost, again, window) = (word(24)?, word(32)?, word(36)?, word(80)?);
    let in_flight = unacked.saturating_sub(lost).saturating_add(again);
    if timeouts == 0 || again == 0 || in_flight < window {
        return None;
    }
    let doubled = timeouts.min(doublings).saturating_sub(1).min(31);
    let by_timer = rto_ms - (rto_ms >> doubled);
    let by_clock = match (take(info, 242).map(u16::from_ne_bytes), word(244)) {
        (Some(1), Some(since_first)) => since_first.saturating_sub(last_sent_ms),
        _ => 0,
    };
    let repeating = by_timer.max(by_clock);
    (last_ack_ms >= last_sent_ms.saturating_add(repeating)).then_some(repeating)
}

/// What the counters prove; `None` from a kernel without `tcpi_bytes_retrans` (below 4.19), for a listener, and
/// while segments with data are on their way: how many bytes these have is not told. All fields are of one moment,
/// since `tcp_get_info()` has the socket locked; `unsent`, [`Socket::unsent`], is a little older, but behind its FIN a
/// socket queues nothing more.
fn opening(info: &[u8], unsent: u32) -> Option<Opening> {
    let long = |at| take(info, at).map(u64::from_ne_bytes);
    let state = TcpState::from_raw(*info.first()?)?;
    let unacked = u32::from_ne_bytes(take(info, 24)?);
    let (acked, sent, sent_again) = (long(120)?, long(200)?, long(208)?);
    // Without a segment on its way, this side's FIN is acknowledged in FIN-WAIT-2, and in the other states it is not.
    let fin = u64::from(state == TcpState::FinWait2);
    let is_fin = matches!(state, TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck);
    let is_fin_alone = is_fin && unacked == 1 && unsent == 1;
    if (unacked != 0 && !is_fin_alone) || state == TcpState::Listen {
        return None;
    }
    let unsent = acked.wrapping_add(sent_again).wrapping_sub(sent).wrapping_sub(fin);
    Some(Opening::of_counters(unsent as i64))
}

/// `N` bytes at `at`; `None` past the end.
pub(super) fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// `idiag_cookie`: two words, the low one first, each in the host's byte order.
pub(super) fn cookie_words(cookie: u64) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&(cookie as u32).to_ne_bytes());
    bytes[4..].copy_from_slice(&((cookie >> 32) as u32).to_ne_bytes());
    bytes
}
