//! Minisockets that have just ended: what is reported of one after its end is ignored.
//!
//! An end can be reported more than once: whoever found the minisocket before its timer fired calls
//! `inet_twsk_deschedule_put` although the handler has already begun (net/ipv4/inet_timewait_sock.c, 5.8 to 6.18: the
//! timer is then found not pending, and only the reference is put). And a FIN that came at the same moment can flip a
//! minisocket that is ending. All of that comes within a few other ends: as long as a reference is held between a look-up
//! and its use.

use std::collections::VecDeque;

/// The number that is remembered: those of some milliseconds at the worst rate.
const MOST: usize = 4096;

/// The cookies of the minisockets that ended last, 32 KiB of them at most.
#[derive(Default)]
pub(super) struct Tombstones(VecDeque<u64>);

impl Tombstones {
    pub(super) fn push(&mut self, cookie: u64) {
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(cookie);
    }

    /// A linear search: only for a cookie that no tracked socket has.
    pub(super) fn contains(&self, cookie: u64) -> bool {
        self.0.contains(&cookie)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_remembers_the_last_ones_and_no_more() {
        let mut ended = Tombstones::default();
        for cookie in 1..=MOST as u64 + 10 {
            ended.push(cookie);
        }
        assert_eq!(ended.0.len(), MOST);
        assert!(!ended.contains(10) && ended.contains(11) && ended.contains(MOST as u64 + 10));
    }
}
