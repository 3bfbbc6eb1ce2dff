//! The state of a process that cannot act.

word! {
    /// Why a process's first thread does not run, from `/proc/PID/stat` (fs/proc/array.c, task_state_array, 5.8 to 6.18).
    pub enum ProcessState {
        /// `T`: by SIGSTOP or job control.
        Stopped = "stopped",
        /// `t`: a debugger holds it.
        Traced = "traced",
        /// `D`: it waits in the kernel, and no signal wakes it; for a moment this is usual.
        Uninterruptible = "uninterruptible",
        /// `Z`: it has ended; other threads may run.
        Zombie = "zombie",
    }
}

impl ProcessState {
    /// The state with the letter in `/proc/PID/stat`; `None` where it runs, or waits as programs do.
    pub const fn of_letter(letter: u8) -> Option<Self> {
        match letter {
            b'T' => Some(Self::Stopped),
            b't' => Some(Self::Traced),
            b'D' => Some(Self::Uninterruptible),
            b'Z' => Some(Self::Zombie),
            _ => None,
        }
    }
}
