//! The events that hooks report.

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
    /// CLOCK_MONOTONIC, nanoseconds: hook records from before this are ignored. The hooks are attached one by one, the
    /// state hook last: until then they report births of sockets whose closes are not reported, and the first dump, which
    /// finds their minisockets, begins later.
    pub since_ns: u64,
}
