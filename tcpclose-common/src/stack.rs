//! User stacks at the moments that matter for a leaked socket, as the probe keeps them by socket.

/// What a program did to a socket.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Moment {
    /// `connect()`.
    Opened = 0,
    /// A read that returned the end of the stream, in CLOSE-WAIT.
    EndRead = 1,
    /// A write after the peer's FIN.
    Written = 2,
    /// `accept()`, only where somebody asked for it.
    Accepted = 3,
}

impl Moment {
    pub const ALL: [Self; 4] = [Self::Opened, Self::EndRead, Self::Written, Self::Accepted];
    /// Those whose stacks are kept by the socket's cookie.
    pub const BY_COOKIE: [Self; 3] = [Self::Opened, Self::EndRead, Self::Written];
}

/// The key of a [`StackRecord`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StackKey {
    /// The socket's cookie. Of [`Moment::Accepted`], whose socket has none yet: the process (`tgid`) in the upper half, and the
    /// descriptor that accept() returned.
    pub id: u64,
    /// A [`Moment`].
    pub moment: u32,
    /// 0, so that no byte of the key is undefined.
    pub padding: u32,
}

impl StackKey {
    pub const fn new(cookie: u64, moment: Moment) -> Self {
        Self { id: cookie, moment: moment as u32, padding: 0 }
    }

    /// Of what a process accepted last with a descriptor.
    pub const fn accepted(pid: u32, fd: u32) -> Self {
        Self::new((pid as u64) << 32 | fd as u64, Moment::Accepted)
    }
}

/// Most frames that the kernel finds by frame pointers.
pub const FRAMES: usize = 64;
/// Most words that are copied from the user's stack pointer upwards.
pub const WORDS: usize = 128;

/// A thread's user registers and the top of its stack, which unwinding begins with, and the frames that the kernel found.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackRecord {
    /// CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// The process (`tgid`), as the first PID namespace numbers it.
    pub pid: u32,
    pub tid: u32,
    /// The instruction pointer.
    pub ip: u64,
    /// The stack pointer.
    pub sp: u64,
    /// The frame pointer.
    pub fp: u64,
    /// The link register; 0 where there is none (x86-64).
    pub lr: u64,
    /// The inode number of the socket that was accepted; else 0.
    pub inode: u64,
    /// The number of the system call that the thread is in, 32 bits.
    pub call: u64,
    /// How many bytes of `frames` are valid; negative: the kernel's error.
    pub frame_bytes: i32,
    /// How many of `words` are valid.
    pub word_count: u32,
    /// Instruction pointers, the innermost first, found by frame pointers.
    pub frames: [u64; FRAMES],
    /// The words at `sp`.
    pub words: [u64; WORDS],
}

impl StackRecord {
    /// The frames that the kernel found by frame pointers.
    pub fn found(&self) -> &[u64] {
        let count = usize::try_from(self.frame_bytes).unwrap_or(0) / size_of::<u64>();
        self.frames.get(..count).unwrap_or(&self.frames)
    }

    /// The words that were copied.
    pub fn copied(&self) -> &[u64] {
        self.words.get(..self.word_count as usize).unwrap_or(&self.words)
    }
}

const _: () = assert!(size_of::<StackRecord>() == 72 + 8 * (FRAMES + WORDS));

/// Most processes whose stacks are taken at a time.
pub const MOST_ARMED: u32 = 16;
/// Most stacks that the kernel holds: 13 MB of records.
pub const MOST_STACKS: u32 = 8_192;

/// Counters, indices into a per-CPU array.
pub mod counter {
    /// Stacks that were taken.
    pub const TAKEN: u32 = 0;
    /// Stacks that did not fit.
    pub const FULL: u32 = 1;
    pub const COUNT: u32 = 2;
}
