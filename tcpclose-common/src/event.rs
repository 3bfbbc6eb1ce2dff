//! The ring-buffer records.
//!
//! A socket's first close-phase step carries its addresses ([`OpenRecord`], 80 bytes); the steps that follow carry only
//! what changed ([`StepRecord`], 40 bytes; at the classic tracepoint [`FlowStepRecord`], 48). All start with the same
//! [`RecordHeader`]. The kind of a record is its length and its [`flags::OPEN`] bit, which must agree.
//!
//! What is no state change of a socket comes as a [`HookRecord`], 40 bytes: the birth, flip and end of a minisocket, a RST
//! that was sent, and a segment that was sent again after a FIN. A step of an MPTCP socket into CLOSE-WAIT or out of it is an
//! [`OpenRecord`] with both [`flags::OPEN`] and [`flags::HOOK`].

use crate::state::TcpState;

/// Bits of [`RecordHeader::flags`].
pub mod flags {
    /// The record is an [`OpenRecord`](super::OpenRecord).
    pub const OPEN: u16 = 1 << 0;
    /// [`RecordHeader::key`](super::RecordHeader::key) is the socket cookie; otherwise it is the address of the `struct
    /// sock`, which is valid until →CLOSE and no longer.
    pub const COOKIE: u16 = 1 << 1;
    /// The flags below, `netns`, the errors and the [`Numbers`](super::Numbers) were read from the socket; otherwise they
    /// are unknown.
    pub const FACTS: u16 = 1 << 2;
    /// The socket was accepted: `sk_max_ack_backlog` ≠ 0 (inherited from its listener), or it is marked so
    /// since its opening.
    pub const ACCEPTED: u16 = 1 << 3;
    /// `sk_lock.owned` ≠ 0: the step was made in process context.
    pub const OWNED: u16 = 1 << 4;
    /// `SOCK_DONE`: the peer's FIN was taken. This and the next three: at a step to CLOSE only.
    pub const DONE: u16 = 1 << 5;
    /// `SOCK_DEAD`: the program has closed its last fd.
    pub const DEAD: u16 = 1 << 6;
    /// `sk_shutdown & RCV_SHUTDOWN`: data from here on is answered with a RST.
    pub const RCV_SHUTDOWN: u16 = 1 << 7;
    /// `linger2` < 0: FIN-WAIT-2 is skipped when the socket is closed.
    pub const LINGER2_NEGATIVE: u16 = 1 << 8;
    /// `snd_una` = `write_seq`: all that this side sent is acknowledged, its FIN too if it sent one.
    pub const FIN_ACKED: u16 = 1 << 9;
    /// The record is a [`HookRecord`](super::HookRecord), or with [`Self::OPEN`](OPEN) a step of an MPTCP socket.
    pub const HOOK: u16 = 1 << 10;
    /// [`RecordHeader::closer`](super::RecordHeader::closer) is known: at a step into FIN-WAIT-1 or LAST-ACK only.
    pub const CLOSER: u16 = 1 << 11;
    /// At a step to CLOSE: the program has set linger 0 (SO_LINGER), so that close() aborts.
    pub const LINGER_0: u16 = CLOSER;
    /// Not accepted by `sk_max_ack_backlog`, and a SYN of this side was acknowledged. This and the next: at
    /// steps from SYN_RECV, ESTABLISHED and CLOSE_WAIT only, before this side's FIN.
    pub const CONNECTED: u16 = 1 << 12;
    /// … no SYN of this side was: the socket was accepted, or restored in repair mode.
    pub const NOT_CONNECTED: u16 = 1 << 13;
    /// The socket is in repair mode (`TCP_REPAIR`). This and the next: at a step to CLOSE only.
    pub const REPAIR: u16 = 1 << 14;
    /// `tcp_reset()` made this step, and its error is that of the socket: known where the program on
    /// `tcp_receive_reset` runs.
    pub const RESET: u16 = 1 << 15;
}

/// The start of every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordHeader {
    /// The socket cookie, or the socket's address (see [`flags::COOKIE`]).
    pub key: u64,
    /// `bpf_ktime_get_ns`: CLOCK_MONOTONIC, nanoseconds.
    pub time_ns: u64,
    /// Local port, host order.
    pub local_port: u16,
    /// Remote port, host order.
    pub remote_port: u16,
    /// `oldstate` of the tracepoint.
    pub old: u8,
    /// `newstate` of the tracepoint.
    pub new: u8,
    /// See [`flags`].
    pub flags: u16,
    /// The socket's network namespace: the low half of its `net_cookie` where [`Layout::net_id`] says so, else its
    /// `ns.inum`; 0 when unknown. Cookies are counted up from 1, or down from 2⁶⁴ (include/linux/cookie.h, gen_cookie_next), so that their
    /// low halves do not meet before four thousand million namespaces.
    ///
    /// [`Layout::net_id`]: crate::layout::Layout::net_id
    pub netns: u32,
    pub detail: HeaderDetail,
}

/// At a step to CLOSE two errors, at a step of a known closer its PID, at a step into CLOSE_WAIT whether the socket is a subflow,
/// in a [`HookRecord`] the [`HookKind`]; the flags and the states say which.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeaderDetail {
    low: u16,
    high: u16,
}

impl HeaderDetail {
    pub const NONE: Self = Self { low: 0, high: 0 };

    /// `sk_err` and `sk_err_soft`, positive errnos.
    #[inline(always)]
    pub const fn of_errors(err: u16, err_soft: u16) -> Self {
        Self { low: err, high: err_soft }
    }

    #[inline(always)]
    pub const fn of_closer(pid: u32) -> Self {
        Self { low: pid as u16, high: (pid >> 16) as u16 }
    }

    /// Whether the socket is a subflow of an MPTCP connection.
    #[inline(always)]
    pub const fn of_subflow(is_subflow: bool) -> Self {
        Self { low: is_subflow as u16, high: 0 }
    }

    #[inline(always)]
    pub const fn of_hook(kind: HookKind) -> Self {
        Self { low: kind as u16, high: 0 }
    }

    /// [`HookKind::ResetSent`], with the kernel's reason: a number of its `enum sk_rst_reason`, 0 if it gives none.
    #[inline(always)]
    pub const fn of_reset(reason: u16) -> Self {
        Self { low: HookKind::ResetSent as u16, high: reason }
    }

    /// What [`Self::of_reset`] has written.
    pub const fn reset_reason(self) -> u16 {
        self.high
    }

    /// `sk_err`.
    pub const fn err(self) -> u16 {
        self.low
    }

    /// `sk_err_soft`.
    pub const fn err_soft(self) -> u16 {
        self.high
    }

    const fn closer(self) -> u32 {
        (self.high as u32) << 16 | self.low as u32
    }

    fn hook(self) -> Option<HookKind> {
        HookKind::from_raw(self.low)
    }
}

const _: () = assert!(size_of::<HeaderDetail>() == 4);

impl RecordHeader {
    /// The process (`tgid`) that made this side's FIN, by close() or shutdown(): known at a step into FIN-WAIT-1 or LAST-ACK
    /// that was made in process context.
    pub const fn closer(&self) -> Option<u32> {
        if self.flags & flags::CLOSER == 0 || self.new == TcpState::Close.raw() {
            return None;
        }
        Some(self.detail.closer())
    }

    /// Whether close() with linger 0 made this step: it ends reading before it aborts (net/ipv4/tcp.c, __tcp_close(), 5.8 to 6.18), as no
    /// other abort does.
    pub const fn is_linger_0(&self) -> bool {
        const ALL: u16 = flags::FACTS | flags::OWNED | flags::RCV_SHUTDOWN | flags::LINGER_0;
        self.new == TcpState::Close.raw() && self.flags & (ALL | flags::HOOK) == ALL
    }

    /// Whether the socket is a subflow of an MPTCP connection, whose close its MPTCP socket tells: known at a step into
    /// CLOSE_WAIT.
    pub const fn is_subflow(&self) -> bool {
        self.new == TcpState::CloseWait.raw()
            && self.flags & (flags::FACTS | flags::HOOK) == flags::FACTS
            && self.detail.low == 1
    }

    /// Writes what [`Self::closer`] reads.
    #[inline(always)]
    pub const fn set_closer(&mut self, pid: u32) {
        self.flags |= flags::CLOSER;
        self.detail = HeaderDetail::of_closer(pid);
    }
}

/// The sequence numbers at a step, as in the textbook's drawing. `tcp_sock` holds them as the tracepoint fires
/// (net/ipv4/tcp.c and tcp_input.c, 5.8 to 6.18): this side's FIN takes the end of the write queue (`tcp_close_state()`
/// comes before `tcp_send_fin()`), and the peer's FIN and ACK are taken in before the state changes (`tcp_fin()`,
/// `tcp_rcv_state_process()`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Into FIN-WAIT-1, LAST-ACK and CLOSE-WAIT: `write_seq`, which this side's FIN takes if it is sent now. Into all other
    /// states: `snd_una`, up to which the peer has acknowledged.
    pub snd: u32,
    /// `rcv_nxt`: what the next ACK says; one past the peer's FIN once that has come.
    pub rcv: u32,
}

/// A later close-phase step of a socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepRecord {
    pub head: RecordHeader,
    pub numbers: Numbers,
}

/// The same at the classic tracepoint, which has no cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowStepRecord {
    pub step: StepRecord,
    /// [`flow_hash`] of the addresses and ports.
    pub flow: u64,
}

/// An IPv6 address as the kernel's `s6_addr32`: its bytes in memory are in network order. Words, not bytes, so that
/// the probe moves it in four stores.
pub type Words = [u32; 4];

/// The first close-phase step of a socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenRecord {
    pub head: RecordHeader,
    pub numbers: Numbers,
    /// Local address; IPv4 as v4-mapped IPv6.
    pub local: Words,
    /// Remote address; IPv4 as v4-mapped IPv6.
    pub remote: Words,
    /// `ns.inum` of the network namespace, the number that tools show; 0 when unknown.
    pub inum: u32,
    /// 0.
    pub spare: u32,
}

/// The event of a [`HookRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum HookKind {
    /// A minisocket was made for this socket, in the state [`RecordHeader::new`].
    Born = 1,
    /// None could be made: the table is full, or there is no memory.
    Unborn,
    /// A minisocket went from FIN-WAIT-2 to TIME-WAIT.
    Flipped,
    /// The kernel sent a RST for this socket: `old` is its state then. In CLOSE it follows the step there, else that follows.
    ResetSent,
    /// A minisocket ended: its timer ran out.
    Expired,
    /// … connect() took its pair of addresses and ports.
    Reused,
    /// … a SYN from the peer began a new connection.
    Recycled,
    /// … by the peer's RST.
    Reset,
    /// … by data after close, which the kernel answers with a RST.
    DataAfterClose,
    /// … by SOCK_DESTROY.
    Destroyed,
    /// … with its network namespace.
    Purged,
    /// … before its timer, by none of these that a hook could see.
    Early,
    /// A socket in FIN-WAIT-1, CLOSING or LAST-ACK sent a segment again, its FIN or data before it: `old` and `new` are its state.
    SentAgain,
}

impl HookKind {
    pub const ALL: [Self; 13] = [
        Self::Born,
        Self::Unborn,
        Self::Flipped,
        Self::ResetSent,
        Self::Expired,
        Self::Reused,
        Self::Recycled,
        Self::Reset,
        Self::DataAfterClose,
        Self::Destroyed,
        Self::Purged,
        Self::Early,
        Self::SentAgain,
    ];

    fn from_raw(raw: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u16 == raw)
    }
}

/// Something about a socket or minisocket that is no state change of a socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HookRecord {
    /// `key` is the cookie, 0 where the socket has none. `old` and `new` are states: of the socket or minisocket before
    /// and after, 0 where there is none. `detail` is the [`HookKind`], and the reason of a RST.
    pub head: RecordHeader,
    pub subject: SocketOrRcvNxt,
}

/// The address of the `struct sock` in [`HookKind::Born`], [`HookKind::Unborn`], [`HookKind::ResetSent`] and [`HookKind::SentAgain`];
/// in [`HookKind::Flipped`] the minisocket's `tw_rcv_nxt`, one past the peer's FIN; else 0.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOrRcvNxt(u64);

impl SocketOrRcvNxt {
    pub const NONE: Self = Self(0);

    #[inline(always)]
    pub const fn of_socket(sk: u64) -> Self {
        Self(sk)
    }

    #[inline(always)]
    pub const fn of_rcv_nxt(rcv_nxt: u32) -> Self {
        Self(rcv_nxt as u64)
    }

    pub const fn socket(self) -> u64 {
        self.0
    }

    pub const fn rcv_nxt(self) -> u32 {
        self.0 as u32
    }
}

const _: () = assert!(size_of::<SocketOrRcvNxt>() == 8);

const _: () = assert!(size_of::<HookRecord>() == size_of::<StepRecord>());
const _: () = assert!(
    size_of::<RecordHeader>() == 32 && size_of::<StepRecord>() == 40 && size_of::<OpenRecord>() == 80
);
const _: () = assert!(size_of::<FlowStepRecord>() == 48);

/// A record of either kind, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    Open(OpenRecord),
    /// And the [`FlowStepRecord::flow`] of it; 0 at the tp_btf backend.
    Step(StepRecord, u64),
    Hook(HookRecord, HookKind),
    /// A step of an MPTCP socket into CLOSE_WAIT, or out of it. It has no numbers.
    Mptcp(OpenRecord),
}

impl Record {
    /// Decodes a record from the ring. `None` for a wrong length, a kind that disagrees with its length, or a
    /// transition that the probe never sends.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let record = match bytes.len() {
            n if n == size_of::<OpenRecord>() => {
                let open = OpenRecord::decode(bytes)?;
                if open.head.flags & flags::HOOK != 0 {
                    return Self::of_mptcp(open);
                }
                Self::Open(open)
            }
            n if n == size_of::<StepRecord>() => {
                let step = StepRecord::decode(bytes)?;
                if step.head.flags & flags::HOOK != 0 {
                    let subject = SocketOrRcvNxt(u64::from_ne_bytes(take(bytes, 32)?));
                    let kind = step.head.detail.hook()?;
                    return Some(Self::Hook(HookRecord { head: step.head, subject }, kind));
                }
                Self::Step(step, 0)
            }
            n if n == size_of::<FlowStepRecord>() => {
                Self::Step(StepRecord::decode(bytes)?, u64::from_ne_bytes(take(bytes, 40)?))
            }
            _ => return None,
        };
        let head = record.head();
        let open = matches!(record, Self::Open(_));
        let (old, new) = (u32::from(head.old), u32::from(head.new));
        let kind = if open { flags::OPEN } else { 0 };
        let sound = head.flags & (flags::OPEN | flags::HOOK) == kind
            && crate::state::is_close_step(old, new)
            && TcpState::from_raw(head.old).is_some()
            && open == crate::state::is_first_step(old);
        sound.then_some(record)
    }

    fn of_mptcp(step: OpenRecord) -> Option<Self> {
        let RecordHeader { old, new, flags, .. } = step.head;
        let is_close_wait = |state| state == TcpState::CloseWait.raw();
        let sound = flags & flags::OPEN != 0
            && crate::state::is_close_step(old.into(), new.into())
            && TcpState::from_raw(old).is_some()
            && is_close_wait(old) != is_close_wait(new);
        sound.then_some(Self::Mptcp(step))
    }

    pub fn head(&self) -> &RecordHeader {
        match self {
            Self::Open(open) | Self::Mptcp(open) => &open.head,
            Self::Step(step, _) => &step.head,
            Self::Hook(hook, _) => &hook.head,
        }
    }
}

/// `N` bytes at `at`; `None` past the end.
fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

impl RecordHeader {
    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            key: u64::from_ne_bytes(take(bytes, 0)?),
            time_ns: u64::from_ne_bytes(take(bytes, 8)?),
            local_port: u16::from_ne_bytes(take(bytes, 16)?),
            remote_port: u16::from_ne_bytes(take(bytes, 18)?),
            old: *bytes.get(20)?,
            new: *bytes.get(21)?,
            flags: u16::from_ne_bytes(take(bytes, 22)?),
            netns: u32::from_ne_bytes(take(bytes, 24)?),
            detail: HeaderDetail {
                low: u16::from_ne_bytes(take(bytes, 28)?),
                high: u16::from_ne_bytes(take(bytes, 30)?),
            },
        })
    }
}

impl Numbers {
    /// Behind the [`RecordHeader`].
    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self { snd: u32::from_ne_bytes(take(bytes, 32)?), rcv: u32::from_ne_bytes(take(bytes, 36)?) })
    }
}

impl StepRecord {
    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self { head: RecordHeader::decode(bytes)?, numbers: Numbers::decode(bytes)? })
    }
}

impl OpenRecord {
    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            head: RecordHeader::decode(bytes)?,
            numbers: Numbers::decode(bytes)?,
            local: words(bytes, 40)?,
            remote: words(bytes, 56)?,
            inum: u32::from_ne_bytes(take(bytes, 72)?),
            spare: 0,
        })
    }
}

/// The address at `at`.
fn words(bytes: &[u8], at: usize) -> Option<Words> {
    let word = |i: usize| Some(u32::from_ne_bytes(take(bytes, at + 4 * i)?));
    Some([word(0)?, word(1)?, word(2)?, word(3)?])
}

/// A 64-bit hash of a connection's addresses (as in [`OpenRecord`]) and ports (host order): the join key of the classic
/// backend, which has no cookie. The probe and the agent both use this function.
#[inline(always)]
pub fn flow_hash(local: &Words, remote: &Words, local_port: u16, remote_port: u16) -> u64 {
    // Multiply and fold with the 64-bit golden ratio: five words in, no table, no loop for the verifier to walk.
    #[inline(always)]
    fn mix(hash: u64, high: u32, low: u32) -> u64 {
        let x = (hash ^ (u64::from(high) << 32 | u64::from(low))).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x ^ (x >> 29)
    }
    let hash = mix(0x243f_6a88_85a3_08d3, local[0], local[1]);
    let hash = mix(hash, local[2], local[3]);
    let hash = mix(hash, remote[0], remote[1]);
    let hash = mix(hash, remote[2], remote[3]);
    mix(hash, local_port.into(), remote_port.into())
}

#[cfg(test)]
mod tests;
