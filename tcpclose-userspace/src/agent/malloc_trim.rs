//! Keeps the agent's memory small: what glibc's malloc would keep goes back to the kernel.

/// Maps large blocks on their own, so that they are unmapped when freed. By default glibc raises the size
/// from which it does so up to 32 MB as large blocks come and go, and the memory of a flood of connections
/// would stay.
pub fn map_large_blocks() {
    /// glibc's own default, which is constant once it is set.
    #[cfg(target_env = "gnu")]
    const MAPPED_FROM: libc::c_int = 128 << 10;
    // SAFETY: it sets a number of malloc's own, under malloc's lock.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
    }
}

/// Asks for pages of the usual size alone. Where the kernel gives huge ones to all (`transparent_hugepage/enabled` is
/// `always`, as in Debian), the stack and the heap of each thread would take 2 MiB for a few KiB.
pub fn avoid_huge_pages() {
    // A kernel that refuses has none, or takes more memory: no reason not to start.
    if let Err(why) = rustix::thread::disable_transparent_huge_pages(true) {
        log::debug!("cannot disable huge pages: {why}");
    }
}

/// Returns free pages to the kernel, those between blocks in use too.
pub fn give_back() {
    // SAFETY: under malloc's own lock; allocated blocks stay where they are.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
