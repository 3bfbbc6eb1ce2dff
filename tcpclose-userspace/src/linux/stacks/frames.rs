//! Frames of user stacks, before and after they are named.

use serde::{Deserialize, Serialize};

/// A user stack as the probe took it. Addresses are of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawStack {
    pub ip: u64,
    pub sp: u64,
    pub fp: u64,
    /// The link register; 0 on x86-64.
    pub lr: u64,
    /// The number of the system call that the thread is in.
    pub call: u64,
    /// Instruction pointers that frame pointers lead to, the innermost (`ip`) first.
    pub found: Vec<u64>,
    /// The kernel had room for no more of them.
    pub found_all: bool,
    /// The words at `sp`.
    pub words: Vec<u64>,
}

/// A named stack, the innermost frame first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stack {
    pub frames: Vec<Frame>,
    /// Why outer frames are missing; `None` if none are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Cut>,
}

/// Why a stack ends before its outermost frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// It has more frames than are kept.
    Depth,
    /// Outer functions keep no frame pointer, and are farther up the stack than is copied.
    NoFramePointers,
    /// No user stack is that of the code: a worker of io_uring, or a thread that did something else while io_uring completed it.
    NoUserStack,
}

/// A frame of a named stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frame {
    /// Demangled; `None` where the file has no symbol for it. May hold control characters: escape it for a terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// The source file, where debugging information has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// The path of the file as the process mapped it; `None` for code that a runtime has made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// In hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// The offset in that file; the address where there is none.
    pub offset: u64,
    /// The function is inlined in the next frame's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inlined: bool,
}
