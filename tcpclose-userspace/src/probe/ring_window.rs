//! The consuming end of a ring buffer as the kernel shares it (kernel/bpf/ringbuf.c, struct bpf_ringbuf, 5.8 to 6.18): a
//! page with the consumer's position, one with the producer's, then the data, twice over. A page is the kernel's
//! (`RINGBUF_POS_PAGES`, PAGE_SIZE): 4 KiB on x86-64, 4, 16 or 64 KiB on arm64.
//!
//! aya's consumer maps all of that, and the kernel puts every page into the page table at once
//! (`ringbuf_map_mmap_kern()`, remap_vmalloc_range): a ring of 8 MiB made the agent's resident memory 16 MiB larger, from
//! its start to its end. This one maps a window on the data that moves along. It publishes its position once in a while,
//! for each time takes the cache line with it from under the CPUs that reserve records.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use aya::maps::MapData;

/// Mapped at a time: to move it costs two system calls and a page table entry a page, some microseconds for what four
/// thousand records take.
const WINDOW: usize = 256 << 10;
/// Consumed at most before the kernel is told.
const UNTOLD: usize = 4 << 10;
/// Longer than any record: one that lies across two windows is put together in so many bytes.
const LONGEST: usize = 128;

/// `BPF_RINGBUF_HDR_SZ`, `BPF_RINGBUF_BUSY_BIT` and `BPF_RINGBUF_DISCARD_BIT` (include/uapi/linux/bpf.h).
const HEADER: usize = 8;
const BUSY: u32 = 1 << 31;
const DISCARD: u32 = 1 << 30;

/// A part of the ring, mapped shared. Unmapped when dropped.
struct RingMapping {
    start: NonNull<u8>,
    length: usize,
}

impl RingMapping {
    fn of(ring: RawFd, at: usize, length: usize, protection: libc::c_int) -> io::Result<Self> {
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), length, protection, libc::MAP_SHARED, ring, at as libc::off_t)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(start.cast()) {
            Some(start) => Ok(Self { start, length }),
            None => Err(io::Error::other("mapped at 0")),
        }
    }

    /// The position at the start of a page.
    fn position(&self) -> &AtomicUsize {
        // SAFETY: an aligned `unsigned long` at the start of its page, in a mapping that lives as long as self; kernel
        // and consumer write it whole.
        unsafe { self.start.cast().as_ref() }
    }
}

impl Drop for RingMapping {
    fn drop(&mut self) {
        // SAFETY: this mapping and no other, made with this length; nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// The one consumer of a ring.
pub(super) struct RingWindow {
    map: MapData,
    page_size: usize,
    /// Bytes of data: a power of two, a page or more.
    size: usize,
    consumed: RingMapping,
    produced: RingMapping,
    window: RingMapping,
    /// Where in the data the window begins.
    window_at: usize,
    /// Up to here records have been handed out, and the kernel knows it.
    at: usize,
    reported: usize,
    /// Up to here there were records when last looked.
    end: usize,
    torn: [u8; LONGEST],
}

impl RingWindow {
    pub(super) fn new(map: MapData) -> Result<Self> {
        let page_size = rustix::param::page_size();
        let size = map.info()?.max_entries() as usize;
        let ring = map.fd().as_fd().as_raw_fd();
        let part = |at, length, protection| {
            RingMapping::of(ring, at, length, protection).context("the ring cannot be mapped")
        };
        let consumed = part(0, page_size, libc::PROT_READ | libc::PROT_WRITE)?;
        let at = consumed.position().load(Ordering::Relaxed);
        // Both are powers of two, and mappings begin at a page.
        let window = WINDOW.max(page_size).min(size);
        let window_at = at & (size - 1) & !(window - 1);
        Ok(Self {
            consumed,
            produced: part(page_size, page_size, libc::PROT_READ)?,
            window: part(2 * page_size + window_at, window, libc::PROT_READ)?,
            map,
            page_size,
            size,
            window_at,
            at,
            reported: at,
            end: at,
            torn: [0; LONGEST],
        })
    }

    /// In bytes, as the kernel made the ring: aya rounds up to whole pages what it asks for.
    pub(super) fn size(&self) -> u32 {
        // From max_entries, a u32.
        u32::try_from(self.size).unwrap_or(u32::MAX)
    }

    /// Bytes that were written and are not taken yet.
    pub(super) fn used(&self) -> u64 {
        self.produced.position().load(Ordering::Relaxed).wrapping_sub(self.at) as u64
    }

    /// The next record; `None` where there is none, or where the next one is still being written. One that is longer than
    /// any comes out empty.
    ///
    /// # Errors
    /// When memory for a page table is lacking: nothing is lost by it yet.
    pub(super) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            if self.at.wrapping_sub(self.reported) >= UNTOLD.min(self.size / 4) {
                self.tell();
            }
            if self.at == self.end {
                self.end = self.produced.position().load(Ordering::Acquire);
                if self.at == self.end {
                    self.tell();
                    return Ok(None);
                }
            }
            let start = self.at & (self.size - 1);
            self.look_at(start)?;
            let header = self.window.start.as_ptr().wrapping_add(start - self.window_at);
            // SAFETY: records begin at multiples of 8, so that the header's first word is aligned and all in this window.
            // With its busy bit gone what is behind it has been written (bpf_ringbuf_commit(): xchg).
            let word = unsafe { (*header.cast::<AtomicU32>()).load(Ordering::Acquire) };
            if word & BUSY != 0 {
                self.tell();
                return Ok(None);
            }
            let length = (word & !DISCARD) as usize;
            let next = self.at.wrapping_add((HEADER + length).next_multiple_of(8));
            if word & DISCARD == 0 {
                let (start, length) =
                    ((start + HEADER) & (self.size - 1), if length > LONGEST { 0 } else { length });
                let torn = self.bring(start, length)?;
                self.at = next;
                let body = if torn { self.torn.get(..length) } else { Some(self.seen(start, length)) };
                return Ok(Some(body.unwrap_or_default()));
            }
            self.at = next;
        }
    }

    /// Says how far records are taken. Those handed out before are gone then.
    pub(super) fn tell(&mut self) {
        if self.reported != self.at {
            self.reported = self.at;
            self.consumed.position().store(self.at, Ordering::Release);
        }
    }

    /// Brings the `length` bytes of data at `start` to where they can be read: into the window or, where they lie across
    /// two, together in `torn`, which it says.
    fn bring(&mut self, start: usize, length: usize) -> io::Result<bool> {
        self.look_at(start)?;
        let here = self.window_at + self.window.length - start;
        if length <= here {
            return Ok(false);
        }
        let mut torn = self.torn;
        let (head, tail) = torn.split_at_mut(here);
        head.copy_from_slice(self.seen(start, here));
        let rest = (start + here) & (self.size - 1);
        self.look_at(rest)?;
        if let Some(tail) = tail.get_mut(..length - here) {
            tail.copy_from_slice(self.seen(rest, length - here));
        }
        self.torn = torn;
        Ok(true)
    }

    /// Bytes in the window.
    fn seen(&self, start: usize, length: usize) -> &[u8] {
        let inside = start.checked_sub(self.window_at).filter(|at| at + length <= self.window.length);
        let Some(at) = inside else { return &[] };
        // SAFETY: inside the mapping, which is not replaced while this borrows self. The kernel writes nothing here until
        // it is told that the record is taken, which needs self mutably.
        unsafe { slice::from_raw_parts(self.window.start.as_ptr().add(at), length) }
    }

    /// Moves the window to where the data at `start` are.
    fn look_at(&mut self, start: usize) -> io::Result<()> {
        let length = self.window.length;
        let at = start & !(length - 1);
        if at != self.window_at {
            let ring = self.as_raw_fd();
            self.window = RingMapping::of(ring, 2 * self.page_size + at, length, libc::PROT_READ)?;
            self.window_at = at;
        }
        Ok(())
    }
}

impl AsRawFd for RingWindow {
    fn as_raw_fd(&self) -> RawFd {
        self.map.fd().as_fd().as_raw_fd()
    }
}
