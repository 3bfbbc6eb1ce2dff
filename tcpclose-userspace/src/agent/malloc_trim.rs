//! Returns freed memory to the kernel, which glibc's malloc would keep.

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

/// Returns free pages to the kernel, those between blocks in use too.
pub fn give_back() {
    // SAFETY: under malloc's own lock; allocated blocks stay where they are.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
