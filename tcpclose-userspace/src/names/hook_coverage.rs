//! The events that hooks report.

/// The reason for a RST to which a minisocket's end is due, as the kernel calls it since 6.10 (net/ipv4/tcp_ipv4.c, tcp_v4_rcv()).
pub const TIME_WAIT_SOCKET: &str = "tcp_timewait_socket";

/// close() with linger 0, for which the kernel has no reason of its own.
pub const LINGER_0: &str = "linger_0";

/// The kernel's reason for a RST of a program that closes with unread data.
const UNREAD_DATA: &str = "tcp_abort_on_close";

/// The reason of an abort, by the kernel's own and by what this side knows: unread data comes before linger 0 (net/ipv4/tcp.c, __tcp_close(),
/// 5.8 to 6.18).
pub fn abort_reason(kernels: Option<&'static str>, ours: Option<&'static str>) -> Option<&'static str> {
    if kernels == Some(UNREAD_DATA) { kernels } else { ours.or(kernels) }
}

/// What hooks on the minisocket's functions report, so that dumps need not find it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HookCoverage {
    /// That a minisocket was made, or could not be.
    pub births: bool,
    /// Its flip to TIME-WAIT and its end, in every network namespace.
    pub ends: bool,
    /// That a RST was sent for a socket that has just closed.
    pub resets: bool,
    /// That a socket is being reset: [`RESET`](tcpclose_common::event::flags::RESET) is known.
    pub received_resets: bool,
    /// The names of the kernel's reasons for a RST that it sends, by number; none where it gives no reason.
    pub reset_reasons: &'static [&'static str],
    /// CLOCK_MONOTONIC, nanoseconds: hook records from before this are ignored. The hooks are attached one by one, the
    /// state hook last: until then they report births of sockets whose closes are not reported, and the first dump, which
    /// finds their minisockets, begins later.
    pub since_ns: u64,
}

impl HookCoverage {
    /// The name of the kernel's reason number `raw`; `None` where it gives none.
    pub fn reset_reason(&self, raw: u16) -> Option<&'static str> {
        self.reset_reasons.get(usize::from(raw)).copied().filter(|_| raw != 0)
    }
}
