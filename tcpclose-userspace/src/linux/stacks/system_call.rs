//! Which system call a thread is in, by the instructions before its instruction pointer, or by the function of libc that it is in:
//! glibc ≥ 2.41 makes most calls at one place.
//!
//! The kernel completes a read that io_uring has taken on whenever the thread comes by: in any other system call, or out of an
//! interrupt. The user's stack is that of something else then, which must not be said to have read.

use crate::linux::stacks::frames::{Frame, Stack};

/// What the instructions say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemCall {
    /// One that uses sockets, or one whose number the instructions do not say.
    Possible,
    /// Another one, io_uring's, or none.
    Other,
}

/// How many bytes before the instruction pointer are looked at.
pub const BEFORE: usize = 8;

/// System calls that connect, read and write, on x86-64 (arch/x86/entry/syscalls/syscall_64.tbl) and arm64 (scripts/syscall.tbl).
const USING_SOCKETS: &[u32] = if cfg!(target_arch = "aarch64") {
    &[63, 64, 65, 66, 67, 68, 69, 70, 71, 76, 77, 202, 203, 206, 207, 211, 212, 242, 243, 269, 285, 286, 287]
} else {
    &[0, 1, 17, 18, 19, 20, 40, 42, 43, 44, 45, 46, 47, 275, 276, 288, 295, 296, 299, 307, 326, 327, 328]
};

impl SystemCall {
    /// By the bytes before the instruction pointer.
    pub fn before(bytes: [u8; BEFORE]) -> Self {
        let number = if cfg!(target_arch = "aarch64") { arm64(bytes) } else { x86_64(bytes) };
        match number {
            Number::Known(number) if USING_SOCKETS.contains(&number) => Self::Possible,
            Number::Unknown => Self::Possible,
            Number::Known(_) | Number::Passed | Number::None => Self::Other,
        }
    }
}

/// Functions of libc that wait, and use no socket's data.
const WAITING: &[&str] = &[
    "clock_nanosleep",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "futex",
    "nanosleep",
    "pause",
    "poll",
    "ppoll",
    "pselect",
    "pthread_cond_timedwait",
    "pthread_cond_wait",
    "select",
    "sem_wait",
    "sigsuspend",
    "sigtimedwait",
    "sleep",
    "syscall",
    "usleep",
    "wait4",
    "waitid",
    "waitpid",
];

/// Whether the named stack of a thread says that it waits for something else: its innermost function with a name does.
pub fn waits(stack: &Stack) -> bool {
    let is_named = |frame: &&Frame| frame.function.is_some();
    let Some(Frame { function: Some(function), module: Some(module), .. }) =
        stack.frames.iter().find(is_named)
    else {
        return false;
    };
    let file = module.rsplit('/').next().unwrap_or(module);
    let name = function.trim_start_matches('_');
    let name = name.strip_prefix("GI_").unwrap_or(name).trim_start_matches('_');
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    file.starts_with("libc.so") && WAITING.contains(&name)
}

/// The number of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Known(u32),
    /// That of `syscall()`, whose caller says it: those that have functions of their own are not called by it, io_uring's are.
    Passed,
    Unknown,
    /// No system call.
    None,
}

fn x86_64(bytes: [u8; BEFORE]) -> Number {
    match bytes {
        // mov $number, %eax; syscall
        [_, 0xb8, a, b, c, d, 0x0f, 0x05] => Number::Known(u32::from_le_bytes([a, b, c, d])),
        // xor %eax, %eax; syscall
        [.., 0x31 | 0x33, 0xc0, 0x0f, 0x05] => Number::Known(0),
        // mov 8(%rsp), %r9; syscall: the seventh argument of glibc's function.
        [_, 0x4c, 0x8b, 0x4c, 0x24, 0x08, 0x0f, 0x05] => Number::Passed,
        // syscall, int $0x80, sysenter
        [.., 0x0f, 0x05] | [.., 0xcd, 0x80] | [.., 0x0f, 0x34] => Number::Unknown,
        _ => Number::None,
    }
}

fn arm64(bytes: [u8; BEFORE]) -> Number {
    let [a, b, c, d, rest @ ..] = bytes;
    // svc #0
    if rest != [0x01, 0x00, 0x00, 0xd4] {
        return Number::None;
    }
    // mov x8, #number
    match u32::from_le_bytes([a, b, c, d]) {
        mov if mov & 0x7fe0_001f == 0x5280_0008 => Number::Known(mov >> 5 & 0xffff),
        _ => Number::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_that_wait_do_not_read() {
        let frame = |function: Option<&str>, module: &str| Frame {
            function: function.map(str::to_owned),
            module: Some(module.to_owned()),
            ..Frame::default()
        };
        let waits = |frames: &[Frame]| waits(&Stack { frames: frames.to_vec(), cut: None });
        let libc = "/usr/lib/x86_64-linux-gnu/libc.so.6";
        let inner = frame(None, libc);
        assert!(waits(&[
            inner.clone(),
            frame(Some("clock_nanosleep"), libc),
            frame(Some("main"), "/opt/api")
        ]));
        assert!(waits(&[frame(Some("__GI___poll"), libc)]));
        assert!(!waits(&[inner.clone(), frame(Some("__recv"), libc), frame(Some("poll"), libc)]));
        assert!(!waits(&[inner, frame(Some("poll"), "/opt/api")]));
        assert!(!waits(&[]));
    }

    #[test]
    fn instructions_say_the_number() {
        assert_eq!(x86_64([0, 0xb8, 0xe6, 0, 0, 0, 0x0f, 0x05]), Number::Known(230));
        assert_eq!(x86_64([0, 0, 0, 0, 0x31, 0xc0, 0x0f, 0x05]), Number::Known(0));
        assert_eq!(x86_64([0, 0x4c, 0x8b, 0x4c, 0x24, 0x08, 0x0f, 0x05]), Number::Passed);
        assert_eq!(x86_64([0, 0, 0, 0, 0x89, 0xc8, 0x0f, 0x05]), Number::Unknown);
        assert_eq!(x86_64([0, 0, 0, 0, 0, 0, 0x89, 0xc8]), Number::None);
        // mov x8, #63; svc #0
        assert_eq!(arm64([0xe8, 0x07, 0x80, 0xd2, 0x01, 0, 0, 0xd4]), Number::Known(63));
        assert_eq!(arm64([0x28, 0x08, 0x80, 0x52, 0x01, 0, 0, 0xd4]), Number::Known(65));
        assert_eq!(arm64([0, 0, 0, 0, 0x01, 0, 0, 0xd4]), Number::Unknown);
        assert_eq!(arm64([0x01, 0, 0, 0xd4, 0, 0, 0, 0]), Number::None);
    }
}
