//! Two samples of the same tuples: ports taken and released in between, and the time until none is left.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::report::exhaustion::port_table::{PortHolder, PortTable, Tuple};

/// The most tuples that a sample keeps: the fullest.
const REMEMBERED: usize = 1024;

/// A port and the low half of its socket's cookie.
type Mark = (u16, u32);

/// The ports in use in all namespaces at one time.
#[derive(Clone, Debug, Default)]
pub struct UsageSample {
    /// CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// By the namespace's id.
    tuples: HashMap<(u32, Tuple), Vec<Mark>>,
    /// No tuple is missing.
    whole: bool,
}

/// The change of one tuple between two samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// Ports that another socket has now: a lower bound, for ports taken and released in between are not seen.
    pub taken: usize,
    pub released: usize,
    pub seconds: f64,
}

impl UsageSample {
    /// Keeps the fullest of `tables`, each with its namespace's id.
    pub fn of<'a>(tables: impl Iterator<Item = (u32, &'a PortTable)>, at_ns: u64) -> Self {
        let mut whole = true;
        let mut all: Vec<(u32, &Tuple, &[PortHolder])> = Vec::new();
        for (netns, table) in tables {
            whole &= table.forgotten == 0;
            all.extend(table.tuples().map(|(tuple, taken)| (netns, tuple, taken)));
        }
        if all.len() > REMEMBERED {
            whole = false;
            all.select_nth_unstable_by_key(REMEMBERED, |(_, _, taken)| Reverse(taken.len()));
            all.truncate(REMEMBERED);
        }
        let tuples =
            all.into_iter().map(|(netns, tuple, taken)| ((netns, *tuple), taken.iter().map(mark).collect()));
        Self { at_ns, tuples: tuples.collect(), whole }
    }

    /// The change since this sample of `tuple` in the namespace `netns`, whose ports are `now`, in the order of ports.
    /// `None` where this sample lacks the tuple.
    pub fn change(&self, netns: u32, tuple: &Tuple, now: &[PortHolder], now_ns: u64) -> Option<Change> {
        let before: &[Mark] = match self.tuples.get(&(netns, *tuple)) {
            Some(before) => before,
            None if self.whole => &[],
            None => return None,
        };
        let kept = now.iter().map(mark).filter(|mark| before.binary_search(mark).is_ok()).count();
        let seconds = now_ns.saturating_sub(self.at_ns) as f64 / 1e9;
        Some(Change { taken: now.len() - kept, released: before.len() - kept, seconds })
    }
}

/// The low half of a cookie suffices: the kernel counts cookies up.
const fn mark(taken: &PortHolder) -> Mark {
    (taken.port, taken.cookie as u32)
}

impl Change {
    pub fn taken_per_second(&self) -> f64 {
        self.taken as f64 / self.seconds
    }

    /// Ports taken minus ports released, per second; negative where the tuple empties.
    pub fn growth_per_second(&self) -> f64 {
        (self.taken as f64 - self.released as f64) / self.seconds
    }

    /// Seconds until `free` ports are taken at this rate; `None` where free ports are not becoming fewer.
    pub fn seconds_left(&self, free: u32) -> Option<f64> {
        let growth = self.growth_per_second();
        (growth > 0.0).then(|| f64::from(free) / growth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::ephemeral_ports::PortSink;
    use crate::linux::sock_diag::Socket;
    use crate::report::exhaustion::port_table::tests::{choice, socket};
    use tcpclose_common::state::TcpState;

    fn table(sockets: impl Iterator<Item = (u16, u64)>) -> PortTable {
        let mut table = PortTable::new(choice(1000..=60000, ""));
        for (port, cookie) in sockets {
            let socket = socket(TcpState::Established, &format!("10.0.0.1:{port}"), "10.0.0.2:443");
            table.take(&Socket { cookie, ..socket });
        }
        table.finish();
        table
    }

    #[test]
    fn a_change_is_known_by_port_and_socket() {
        const S: u64 = 1_000_000_000;
        // 1000 to 1009; then 1000 and 1001 are given back, 1002 has changed hands, 1010 to 1014 are new.
        let before = table((1000..1010).map(|port| (port, u64::from(port))));
        let now = table((1002..1015).map(|port| (port, if port == 1002 { 9 } else { u64::from(port) })));
        let look = UsageSample::of([(7, &before)].into_iter(), 10 * S);
        let (tuple, taken) = now.tuples().next().unwrap();
        let change = look.change(7, tuple, taken, 12 * S).unwrap();
        assert_eq!(change, Change { taken: 6, released: 3, seconds: 2.0 });
        assert_eq!((change.taken_per_second(), change.growth_per_second()), (3.0, 1.5));
        assert_eq!(change.seconds_left(3), Some(2.0));
        assert_eq!(Change { released: 6, ..change }.seconds_left(3), None);
        let elsewhere = look.change(8, tuple, taken, 12 * S).unwrap();
        assert_eq!((elsewhere.taken, elsewhere.released), (13, 0), "it is new there");
        assert_eq!(UsageSample { whole: false, ..look }.change(8, tuple, taken, 12 * S), None);
    }
}
