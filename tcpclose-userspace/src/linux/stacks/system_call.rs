//! Which system call a thread is in.
//!
//! The kernel completes a read that io_uring has taken on whenever the thread comes by: in any other system call, or out of an
//! interrupt. The user's stack is that of something else then, which must not be said to have read.

/// System calls that connect, accept, read and write, on x86-64 (arch/x86/entry/syscalls/syscall_64.tbl) and arm64
/// (scripts/syscall.tbl); 5.15 to 6.18.
const USING_SOCKETS: &[u64] = if cfg!(target_arch = "aarch64") {
    &[63, 64, 65, 66, 67, 68, 69, 70, 71, 76, 77, 202, 203, 206, 207, 211, 212, 242, 243, 269, 285, 286, 287]
} else {
    &[0, 1, 17, 18, 19, 20, 40, 42, 43, 44, 45, 46, 47, 275, 276, 288, 295, 296, 299, 307, 326, 327, 328]
};

/// Whether the call with this number uses sockets by itself. What is no number, as in an interrupt, is no call.
pub fn uses_sockets(number: u64) -> bool {
    USING_SOCKETS.contains(&number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_uring_and_interrupts_do_not_read() {
        let read = if cfg!(target_arch = "aarch64") { 63 } else { 0 };
        assert!(uses_sockets(read));
        // io_uring_enter(), and what x86 has there in an interrupt.
        assert!(!uses_sockets(426) && !uses_sockets(u64::from(u32::MAX)) && !uses_sockets(u64::MAX));
    }
}
