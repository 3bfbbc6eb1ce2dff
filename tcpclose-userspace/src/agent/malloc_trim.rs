//! What glibc's malloc would keep of what was freed.

/// From here on large blocks are mapped on their own, and unmapped when freed: by default glibc raises the size from which
/// it does so up to 32 MB as large blocks come and go. What a flood of connections took would stay.
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

/// Gives free pages back to the kernel, those between blocks in use too.
pub fn give_back() {
    // SAFETY: under malloc's own lock; what is allocated stays where it is.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
