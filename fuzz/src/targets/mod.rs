//! One target a file.

pub mod config;
pub mod query;
pub mod record_format;
pub mod records;
pub mod sock_diag;
pub mod state;
pub mod web;

/// Bytes that are taken from the front.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// As many as there are, at most `most`.
    fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// 0 where there is none.
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }
}
