//! What each backend tells, read from the README's own table: the expectations of every case come from there.

use std::fmt;

/// A state hook and a time-wait backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    BtfDiag,
    TracepointDiag,
    /// The classic tracepoint with the kernel's BTF hidden.
    BlindDiag,
    BtfHooks,
    TracepointHooks,
}

impl Backend {
    /// In the order of the table's columns.
    pub const ALL: [Self; 5] =
        [Self::BtfDiag, Self::TracepointDiag, Self::BlindDiag, Self::BtfHooks, Self::TracepointHooks];

    pub const fn state_hook(self) -> &'static str {
        match self {
            Self::BtfDiag | Self::BtfHooks => "btf",
            _ => "tracepoint",
        }
    }

    pub const fn time_wait(self) -> &'static str {
        if self.hooks() { "hooks" } else { "diag" }
    }

    pub const fn hooks(self) -> bool {
        matches!(self, Self::BtfHooks | Self::TracepointHooks)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blind = if *self == Self::BlindDiag { " without BTF" } else { "" };
        f.pad(&format!("{}+{}{blind}", self.state_hook(), self.time_wait()))
    }
}

/// A row of the table: something that is true of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    AcceptedHere,
    OpenedHere,

    Socket,
    FinWait2ByFin,
    FinWait2Cut,
    FinWait2Brief,
    MinisocketByFin,
    MinisocketCut,
    MinisocketSkipped,
    TimeWait,
    TimeWaitElsewhere,

    Graceful,
    GracefulWaited,
    GracefulElsewhere,
    GracefulOverflow,
    ResetReceived,
    ResetReceivedClosed,
    ResetReceivedMinisocket,
    ResetSent,
    ResetSentMinisocket,
    Aborted,
    Timeout,
    FinWait2Expired,
    Destroyed,
    DestroyedMinisocket,
    FinWait2Overflow,

    Expired,
    Reused,
    Recycled,
    Reset,
    DestroyedTimeWait,
    Purged,
    Overflow,
}

impl Truth {
    /// The first cell of its row.
    const fn row(self) -> &'static str {
        match self {
            Self::AcceptedHere => "side: accepted here",
            Self::OpenedHere => "side: opened here",
            Self::Socket => "time in a state of the full socket",
            Self::FinWait2ByFin => "time in FIN-WAIT-2, full socket, until the FIN",
            Self::FinWait2Cut => "time in FIN-WAIT-2, full socket, until anything else",
            Self::FinWait2Brief => "time in FIN-WAIT-2, full socket, over at once",
            Self::MinisocketByFin => "time in FIN-WAIT-2, minisocket, until the FIN",
            Self::MinisocketCut => "time in FIN-WAIT-2, minisocket, until anything else",
            Self::MinisocketSkipped => "time in FIN-WAIT-2, table of minisockets full",
            Self::TimeWait => "time in TIME-WAIT",
            Self::TimeWaitElsewhere => "time in TIME-WAIT, in a network namespace that dumps do not reach",
            Self::Graceful => "both FINs, then CLOSED",
            Self::GracefulWaited => "both FINs, then TIME-WAIT",
            Self::GracefulElsewhere => {
                "both FINs, then TIME-WAIT in a network namespace that dumps do not reach"
            }
            Self::GracefulOverflow => "both FINs, table of minisockets full",
            Self::ResetReceived => "RST, full socket",
            Self::ResetReceivedClosed => "RST, FIN-WAIT-1 or -2, reading ended here",
            Self::ResetReceivedMinisocket => "RST, FIN-WAIT-2 minisocket",
            Self::ResetSent => "data after the program closed, full socket",
            Self::ResetSentMinisocket => "data after the program closed, minisocket",
            Self::Aborted => "linger 0, unread data, disconnect, listener closed, TCP_LINGER2 < 0",
            Self::Timeout => "retries, keepalive or user timeout ran out",
            Self::FinWait2Expired => "FIN-WAIT-2 ran out of its timer",
            Self::Destroyed => "SOCK_DESTROY, full socket",
            Self::DestroyedMinisocket => "SOCK_DESTROY, FIN-WAIT-2 minisocket",
            Self::FinWait2Overflow => "closed in FIN-WAIT-2, table of minisockets full",
            Self::Expired => "TIME-WAIT: timer ran out",
            Self::Reused => "TIME-WAIT: taken by connect()",
            Self::Recycled => "TIME-WAIT: taken by a new SYN",
            Self::Reset => "TIME-WAIT: RST",
            Self::DestroyedTimeWait => "TIME-WAIT: SOCK_DESTROY",
            Self::Purged => "TIME-WAIT: its network namespace went",
            Self::Overflow => "TIME-WAIT: skipped, table of minisockets full",
        }
    }

    /// What `backend` tells of it.
    pub fn told(self, backend: Backend) -> &'static str {
        let cells = README
            .lines()
            .map(|line| line.trim_matches('|').split('|').map(str::trim))
            .find(|cells| cells.clone().next() == Some(self.row()));
        let mut cells = cells.unwrap_or_else(|| panic!("the README's table has no row `{}`", self.row()));
        let column = Backend::ALL.iter().position(|&r| r == backend).expect("every backend has a column");
        cells.nth(column + 1).unwrap_or_else(|| panic!("row `{}` is too short", self.row())).trim_matches('`')
    }
}

static README: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"));
