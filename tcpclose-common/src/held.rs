//! The output of the iterator over all tasks' files: descriptors, one after the other.

/// A file descriptor on a socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The socket's inode.
    pub inode: u64,
    /// The socket's cookie; 0 if nobody has asked for one.
    pub cookie: u64,
    /// The process (`tgid`), as the first PID namespace numbers it.
    pub pid: u32,
    pub fd: u32,
}

const _: () = assert!(size_of::<Held>() == Held::SIZE);

impl Held {
    /// Bytes of one.
    pub const SIZE: usize = 24;

    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        let ([inode, cookie, ids], []) = bytes.as_chunks::<8>() else { return Self::default() };
        let [a, b, c, d, fd @ ..] = *ids;
        Self {
            inode: u64::from_ne_bytes(*inode),
            cookie: u64::from_ne_bytes(*cookie),
            pid: u32::from_ne_bytes([a, b, c, d]),
            fd: u32::from_ne_bytes(fd),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_iterator_writes_is_what_the_agent_reads() {
        let held = Held {
            inode: 0x1122_3344_5566_7788,
            cookie: 0x0102_0304_0506_0708,
            pid: 0x99aa_bbcc,
            fd: 0xddee_ff00,
        };
        // SAFETY: repr(C), Copy, and without padding: its size is the sum of its fields'.
        let bytes: [u8; Held::SIZE] = unsafe { core::mem::transmute(held) };
        assert_eq!(Held::decode(&bytes), held);
    }
}
