//! The kernel's TCP states.

/// `sk->sk_state`, with the kernel's own numbers (include/net/tcp_states.h, unchanged 5.8 to 6.18).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum TcpState {
    Established = 1,
    SynSent = 2,
    SynRecv = 3,
    FinWait1 = 4,
    FinWait2 = 5,
    TimeWait = 6,
    Close = 7,
    CloseWait = 8,
    LastAck = 9,
    Listen = 10,
    Closing = 11,
    NewSynRecv = 12,
    /// Since 6.7: bound, not connected. Never an argument of the tracepoint.
    BoundInactive = 13,
}

impl TcpState {
    /// The state with the kernel's number `raw`; `None` for a number no kernel of the range uses.
    #[inline(always)]
    pub const fn from_raw(raw: u8) -> Option<Self> {
        Some(match raw {
            1 => Self::Established,
            2 => Self::SynSent,
            3 => Self::SynRecv,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            12 => Self::NewSynRecv,
            13 => Self::BoundInactive,
            _ => return None,
        })
    }

    /// The kernel's number.
    #[inline(always)]
    pub const fn raw(self) -> u8 {
        self as u8
    }

    /// The bit of this state in the kernel's state masks (`TCPF_…`, `idiag_states`).
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// The name used in metric labels and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::SynSent => "syn_sent",
            Self::SynRecv | Self::NewSynRecv => "syn_recv",
            Self::FinWait1 => "fin_wait_1",
            Self::FinWait2 => "fin_wait_2",
            Self::TimeWait => "time_wait",
            Self::Close | Self::BoundInactive => "closed",
            Self::CloseWait => "close_wait",
            Self::LastAck => "last_ack",
            Self::Listen => "listen",
            Self::Closing => "closing",
        }
    }
}

const fn mask(states: &[TcpState]) -> u32 {
    let mut bits = 0;
    let mut i = 0;
    while i < states.len() {
        bits |= states[i].bit();
        i += 1;
    }
    bits
}

/// The close-phase states that a full socket can be in.
pub const CLOSE_PHASE: u32 = mask(&[
    TcpState::FinWait1,
    TcpState::FinWait2,
    TcpState::Closing,
    TcpState::CloseWait,
    TcpState::LastAck,
]);

/// From these a step to CLOSE is the end of a connection. LISTEN, SYN_SENT and SYN_RECV are not among them:
/// what ends there never was a connection.
pub const CONNECTED: u32 = CLOSE_PHASE | TcpState::Established.bit();

/// The states in which a socket has sent its FIN and the peer has not acknowledged it.
pub const FIN_UNACKNOWLEDGED: u32 = mask(&[TcpState::FinWait1, TcpState::Closing, TcpState::LastAck]);

/// The states in which a connection's socket has not sent its FIN.
pub const BEFORE_FIN: u32 = mask(&[TcpState::SynRecv, TcpState::Established, TcpState::CloseWait]);

/// Whether the raw state `raw` has its bit in `mask`. Branch-free, for the probe's first lines.
#[inline(always)]
pub const fn is_in(raw: u32, mask: u32) -> bool {
    raw < 32 && (mask >> raw) & 1 != 0
}

/// Whether the tracepoint's `old → new` is a step of the close phase. A self-transition is none: the kernel
/// reports them (shutdown() followed by close(), among others), and they would reset clocks.
#[inline(always)]
pub const fn is_close_step(old: u32, new: u32) -> bool {
    old != new && (is_in(new, CLOSE_PHASE) || (new == TcpState::Close as u32 && is_in(old, CONNECTED)))
}

/// Whether a close-phase step from `old` is the first of its socket.
#[inline(always)]
pub const fn is_first_step(old: u32) -> bool {
    !is_in(old, CLOSE_PHASE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use TcpState::*;

    #[test]
    fn raw_numbers_round_trip() {
        for raw in 0..=255u8 {
            if let Some(state) = TcpState::from_raw(raw) {
                assert_eq!(state.raw(), raw);
            } else {
                assert!(raw == 0 || raw > 13);
            }
        }
    }

    #[test]
    fn close_steps_are_those_of_the_close_phase() {
        let step = |old: TcpState, new: TcpState| is_close_step(old as u32, new as u32);
        for (old, new) in [
            (Established, FinWait1),
            (Established, CloseWait),
            (Established, Close),
            (FinWait1, FinWait2),
            (FinWait1, Closing),
            (FinWait2, Close),
            (CloseWait, LastAck),
            (LastAck, Close),
            (SynRecv, FinWait1),
        ] {
            assert!(step(old, new), "{old:?} → {new:?}");
        }
        for (old, new) in [
            (Listen, Close),
            (Close, Listen),
            (SynSent, Close),
            (SynRecv, Close),
            (SynSent, Established),
            (Close, SynSent),
            (FinWait2, FinWait2),
            (LastAck, LastAck),
            (Close, Close),
        ] {
            assert!(!step(old, new), "{old:?} → {new:?}");
        }
        assert!(!is_close_step(40, 40) && !is_close_step(1, 99) && is_close_step(99, 4));
    }
}
