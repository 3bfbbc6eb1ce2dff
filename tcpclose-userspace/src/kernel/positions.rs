//! How full a ring buffer is: the two positions that kernel and consumer keep at its start.

use std::io;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The first two pages of a ring, mapped to be read: the consumer's position, then the producer's
/// (kernel/bpf/ringbuf.c, struct bpf_ringbuf, 5.8 to 6.18).
pub struct Positions {
    pages: NonNull<u8>,
    page_size: usize,
}

impl Positions {
    /// Those of the ring with this descriptor. The mapping keeps the ring alive, not the descriptor.
    pub fn of(ring: RawFd) -> io::Result<Self> {
        let page_size = rustix::param::page_size();
        // SAFETY: a new mapping at a place of the kernel's choice.
        let pages =
            unsafe { libc::mmap(ptr::null_mut(), 2 * page_size, libc::PROT_READ, libc::MAP_SHARED, ring, 0) };
        if pages == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(pages.cast()) {
            Some(pages) => Ok(Self { pages, page_size }),
            None => Err(io::Error::other("mapped at 0")),
        }
    }

    /// Bytes that were written and are not taken yet.
    pub fn used(&self) -> u64 {
        // The consumer is this thread; what the kernel adds meanwhile can only make the difference larger.
        let [consumer, producer] = [0, self.page_size].map(|at| {
            // SAFETY: each position is an aligned `unsigned long` at the start of its page, in a mapping that lives as
            // long as self; the kernel writes it whole.
            unsafe { self.pages.add(at).cast::<AtomicUsize>().as_ref() }.load(Ordering::Relaxed)
        });
        producer.wrapping_sub(consumer) as u64
    }
}

impl Drop for Positions {
    fn drop(&mut self) {
        // SAFETY: this mapping and no other, made with this length; nothing borrows from it any more.
        unsafe { libc::munmap(self.pages.as_ptr().cast(), 2 * self.page_size) };
    }
}
