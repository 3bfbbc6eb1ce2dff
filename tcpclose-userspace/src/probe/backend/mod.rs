//! The backends: each a way to attach, tried in the order of what it can see.

pub mod fentry;
pub mod stacks;
pub mod task_file;
pub mod tp_btf;
pub mod tracepoint;

/// The backends of the `state` hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateHook {
    /// tp_btf: cookies and direct reads.
    Btf,
    /// The classic tracepoint.
    Tracepoint,
}

impl StateHook {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Btf => "btf",
            Self::Tracepoint => "tracepoint",
        }
    }
}

/// The backends of the `time_wait` hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeWaitHook {
    /// fentry and fexit on the minisocket's functions.
    Hooks,
    /// Dumps by sock_diag.
    Diag,
}

impl TimeWaitHook {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hooks => "hooks",
            Self::Diag => "diag",
        }
    }
}

/// The backends of the `owners` hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnersHook {
    /// The iterator over all tasks' files.
    TaskFile,
    /// A walk over /proc.
    Proc,
}

impl OwnersHook {
    pub const fn name(self) -> &'static str {
        match self {
            Self::TaskFile => "task_file",
            Self::Proc => "proc",
        }
    }
}
