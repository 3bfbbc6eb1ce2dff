//! When a program last wrote to a socket: what looks at the kernel's counters prove.

use crate::names::age::Age;

/// What one look at a socket proves of the program's last write. Instants are CLOCK_MONOTONIC, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteLook {
    /// The kernel made its answer then or later.
    pub made_ns: u64,
    /// Bytes that the program has written since the connection opened.
    pub written: u64,
    /// For how many milliseconds of its life, all told, the socket has had bytes that the peer had not acknowledged. A byte is among
    /// them from its write until then.
    pub busy_ms: u32,
    /// The kernel's last segment with data did not leave before this; 0 where that is not proven.
    pub sent_ns: u64,
    /// The last write was not after this: every byte had been sent by then.
    pub latest_ns: u64,
}

/// When a program last wrote to a socket, by all looks so far. A write is no segment: the kernel sends again what nobody
/// acknowledges for a quarter of an hour after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastWrite {
    /// Not before this; 0 where nothing is proven.
    pub earliest_ns: u64,
    /// Not after this.
    pub latest_ns: u64,
    /// The kernel made the last answer then or later.
    made_ns: u64,
    /// Bytes written by then.
    pub written: u64,
    busy_ms: u32,
}

/// A period of being busy is counted in ticks, and may be longer than that by one at either end, nanoseconds.
const BUSY_TICKS_NS: u64 = 20_000_000;

impl LastWrite {
    /// What `look` proves, given what was `known` before it.
    pub fn seen(known: Option<Self>, look: WriteLook) -> Self {
        // What left then had been written no longer before than the socket was busy.
        let since = |busy_ms: u32| match look.sent_ns {
            0 => 0,
            sent_ns => sent_ns.saturating_sub(u64::from(busy_ms) * 1_000_000 + BUSY_TICKS_NS),
        };
        let alone = since(look.busy_ms);
        let (earliest_ns, latest_ns) = match known {
            None => (alone, look.latest_ns),
            Some(known) if known.written == look.written => {
                (alone.max(known.earliest_ns), look.latest_ns.min(known.latest_ns))
            }
            // The new bytes were written after the look before this one. What left last is among them, and then it waited no
            // longer than the socket was busy since; or it was there before, and then the socket was busy all the time.
            Some(known) => {
                let busy_since = look.busy_ms.wrapping_sub(known.busy_ms);
                (since(busy_since).max(known.made_ns), look.latest_ns)
            }
        };
        Self {
            earliest_ns: earliest_ns.min(latest_ns),
            latest_ns,
            made_ns: look.made_ns,
            written: look.written,
            busy_ms: look.busy_ms,
        }
    }

    /// How long ago that was at `now_ns`.
    pub fn age(&self, now_ns: u64) -> Age {
        Age {
            min_ns: now_ns.saturating_sub(self.latest_ns),
            max_ns: (self.earliest_ns != 0).then(|| now_ns.saturating_sub(self.earliest_ns)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    /// A look at `at` seconds; the kernel sent last at `sent`, and was busy for `busy` of them.
    fn look(at: u64, written: u64, sent: u64, busy: u32) -> WriteLook {
        WriteLook { made_ns: at * S, written, busy_ms: busy * 1000, sent_ns: sent * S, latest_ns: sent * S }
    }

    #[test]
    fn what_is_sent_again_is_no_write() {
        // Written at 100, and sent again at 101, 103, 107, 115, 131: busy since.
        let mut known = None;
        for (at, sent) in [(102, 101), (104, 103), (110, 107), (120, 115), (140, 131)] {
            let seen = LastWrite::seen(known, look(at, 5, sent, (at - 100) as u32));
            // The last segment left `at - sent` before the look, during which it was busy too.
            assert!(seen.earliest_ns <= 100 * S && 100 * S <= seen.latest_ns, "{seen:?}");
            assert_eq!(seen.latest_ns, 101 * S, "by the first look it had written all that it ever did");
            known = Some(seen);
        }
    }

    #[test]
    fn new_bytes_were_written_since_the_look_before() {
        let first = LastWrite::seen(None, look(100, 5, 90, 80));
        assert_eq!((first.earliest_ns, first.latest_ns), (10 * S - BUSY_TICKS_NS, 90 * S));
        // Busy for one second of the ten since.
        let next = LastWrite::seen(Some(first), look(110, 6, 108, 81));
        assert_eq!((next.earliest_ns, next.latest_ns), (107 * S - BUSY_TICKS_NS, 108 * S));
        // Busy all the time.
        let next = LastWrite::seen(Some(first), look(110, 6, 108, 90));
        assert_eq!(next.earliest_ns, 100 * S);
        // More waits to be sent.
        let more = WriteLook { latest_ns: 110 * S, ..look(110, 6, 108, 90) };
        assert_eq!(LastWrite::seen(Some(first), more).latest_ns, 110 * S);
        // Nothing new: the first look holds.
        let same = LastWrite::seen(Some(first), WriteLook { sent_ns: 0, ..look(110, 5, 109, 90) });
        assert_eq!((same.earliest_ns, same.latest_ns), (first.earliest_ns, first.latest_ns));
    }

    #[test]
    fn an_unproven_bound_is_none() {
        let seen = LastWrite::seen(None, WriteLook { sent_ns: 0, ..look(100, 5, 90, 1) });
        assert_eq!(seen.age(101 * S), Age { min_ns: 11 * S, max_ns: None });
    }
}
