//! What each backend reports, read from docs/coverage.toml: the expectations of every case come from there.

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use serde::Deserialize;

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
    /// In the order of `backends` in the file.
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

/// A row of the file: something that is true of a case.
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
    const ALL: [Self; 33] = [
        Self::AcceptedHere,
        Self::OpenedHere,
        Self::Socket,
        Self::FinWait2ByFin,
        Self::FinWait2Cut,
        Self::FinWait2Brief,
        Self::MinisocketByFin,
        Self::MinisocketCut,
        Self::MinisocketSkipped,
        Self::TimeWait,
        Self::TimeWaitElsewhere,
        Self::Graceful,
        Self::GracefulWaited,
        Self::GracefulElsewhere,
        Self::GracefulOverflow,
        Self::ResetReceived,
        Self::ResetReceivedClosed,
        Self::ResetReceivedMinisocket,
        Self::ResetSent,
        Self::ResetSentMinisocket,
        Self::Aborted,
        Self::Timeout,
        Self::FinWait2Expired,
        Self::Destroyed,
        Self::DestroyedMinisocket,
        Self::FinWait2Overflow,
        Self::Expired,
        Self::Reused,
        Self::Recycled,
        Self::Reset,
        Self::DestroyedTimeWait,
        Self::Purged,
        Self::Overflow,
    ];

    /// Its row in the file.
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

    /// What `backend` reports of it.
    pub fn reported(self, backend: Backend) -> &'static str {
        let row = COVERAGE.get(self.row());
        let row = row.unwrap_or_else(|| panic!("docs/coverage.toml has no row `{}`", self.row()));
        let column = Backend::ALL.iter().position(|&r| r == backend).expect("every backend has a column");
        &row[column]
    }
}

#[derive(Deserialize)]
struct File {
    backends: Vec<String>,
    section: Vec<Section>,
}

#[derive(Deserialize)]
struct Section {
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    truth: String,
    reported: Vec<String>,
}

/// By truth, what each of [`Backend::ALL`] reports.
static COVERAGE: LazyLock<HashMap<String, Vec<String>>> = LazyLock::new(|| {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/coverage.toml"));
    let file: File = toml::from_str(text).expect("docs/coverage.toml");
    assert_eq!(file.backends, Backend::ALL.map(|backend| backend.to_string()));
    let rows = file.section.into_iter().flat_map(|section| section.rows);
    rows.map(|row| {
        assert_eq!(row.reported.len(), Backend::ALL.len(), "{}", row.truth);
        (row.truth, row.reported)
    })
    .collect()
});

#[test]
fn every_row_of_the_file_belongs_to_a_truth() {
    let mut rows: Vec<&String> = COVERAGE.keys().collect();
    rows.sort();
    let mut truths: Vec<&str> = Truth::ALL.map(Truth::row).to_vec();
    truths.sort_unstable();
    assert_eq!(rows, truths);
}
