//! Who watches, and what waits for them.
//!
//! A step that nobody watches costs one look at an empty list. Each watcher has a queue of its own, with an end: who reads
//! slowly misses steps, is told how many, and holds up nobody. Lines are written by who reads, not by who drains.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use crate::linux::host;
use crate::metrics::Metrics;
use crate::report::watch::filter::WatchFilter;
use crate::report::watch::line::Lost;
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::transition::Transition;

/// At the same time. Each may hold [`MOST_WAITING`] steps, 2 MB.
pub const MOST_WATCHERS: usize = 8;

/// Steps that wait for a reader: what 1,000 closes make.
const MOST_WAITING: usize = 8192;

/// How long what the wall clock was ahead of the other is believed.
const AHEAD_LASTS_NS: u64 = 1_000_000_000;

/// Everybody who watches.
#[derive(Default)]
pub struct Watchers {
    watchers: Vec<Weak<Watcher>>,
    /// CLOCK_MONOTONIC, and by how much the wall clock was ahead of it then: looked up together, so that every watcher
    /// has one time for one step.
    ahead: Option<(u64, i64)>,
}

struct Watcher {
    filter: WatchFilter,
    queue: RefCell<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<WatchItem>,
    /// Steps that found no room since the last that did.
    lost: u64,
    reader: Option<Waker>,
}

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchItem {
    /// And the wall clock of it, nanoseconds since 1970.
    Step(Transition, u64),
    Lost(Lost),
}

/// One who watches, until it is dropped.
pub struct Subscription(Rc<Watcher>);

impl Watchers {
    /// Whether anybody watches.
    pub fn is_watched(&self) -> bool {
        !self.watchers.is_empty()
    }

    /// Lets one more watch; `None` when there are as many as may be.
    pub fn watch(&mut self, filter: WatchFilter) -> Option<Subscription> {
        self.watchers.retain(|watcher| watcher.strong_count() > 0);
        if self.watchers.len() >= MOST_WATCHERS {
            return None;
        }
        let watcher = Rc::new(Watcher { filter, queue: RefCell::default() });
        self.watchers.push(Rc::downgrade(&watcher));
        Some(Subscription(watcher))
    }

    /// Tells everybody of a step that their filter lets through.
    fn tell(&mut self, step: &Transition) {
        let wall_ns = self.wall_of(step.at_ns);
        self.each(|watcher| {
            if watcher.filter.passes(step) {
                watcher.queue.borrow_mut().push(WatchItem::Step(step.clone(), wall_ns));
            }
        });
    }

    /// Tells everybody that `lost` records never came from the kernel.
    pub fn tell_lost(&mut self, lost: u64) {
        self.each(|watcher| watcher.queue.borrow_mut().push(WatchItem::Lost(Lost { lost, in_kernel: true })));
    }

    fn wall_of(&mut self, at_ns: u64) -> u64 {
        let now_ns = host::monotonic_ns();
        let ahead = match self.ahead {
            Some((looked_ns, ahead)) if now_ns.saturating_sub(looked_ns) < AHEAD_LASTS_NS => ahead,
            _ => {
                let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                let ahead = wall.as_nanos() as i64 - now_ns as i64;
                self.ahead = Some((now_ns, ahead));
                ahead
            }
        };
        at_ns.saturating_add_signed(ahead)
    }

    fn each(&mut self, mut what: impl FnMut(&Watcher)) {
        self.watchers.retain(|watcher| watcher.upgrade().inspect(|watcher| what(watcher)).is_some());
    }
}

impl Queue {
    fn push(&mut self, told: WatchItem) {
        // One place is kept for the count.
        if self.waiting.len() + 1 >= MOST_WAITING {
            self.lost += match told {
                WatchItem::Step(..) => 1,
                WatchItem::Lost(Lost { lost, .. }) => lost,
            };
            return;
        }
        self.tell_lost();
        self.waiting.push_back(told);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Puts what was lost where it is missing.
    fn tell_lost(&mut self) {
        if self.lost > 0 {
            let lost = std::mem::take(&mut self.lost);
            self.waiting.push_back(WatchItem::Lost(Lost { lost, in_kernel: false }));
        }
    }
}

impl Subscription {
    /// What has come, in order, `most` of it; never nothing.
    pub fn poll_take(&self, context: &mut Context<'_>, most: usize) -> Poll<Vec<WatchItem>> {
        let mut queue = self.0.queue.borrow_mut();
        if queue.waiting.len() <= most {
            queue.tell_lost();
        }
        if queue.waiting.is_empty() {
            queue.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let most = most.min(queue.waiting.len());
        Poll::Ready(queue.waiting.drain(..most).collect())
    }

    pub fn filter(&self) -> &WatchFilter {
        &self.0.filter
    }
}

/// Where the tracker's facts go: to be counted and, while somebody watches, to them.
pub struct Out<'a> {
    pub ledger: &'a mut Metrics,
    pub hub: &'a mut Watchers,
}

impl EventSink for Out<'_> {
    fn event(&mut self, at_ns: u64, event: TrackerEvent) {
        self.ledger.event(at_ns, event);
    }

    fn is_watched(&self) -> bool {
        self.hub.is_watched()
    }

    fn transition(&mut self, transition: Transition) {
        self.hub.tell(&transition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::transition::fin_wait_2_to_time_wait;

    fn take(watch: &Subscription, most: usize) -> Vec<WatchItem> {
        match watch.poll_take(&mut Context::from_waker(Waker::noop()), most) {
            Poll::Ready(told) => told,
            Poll::Pending => Vec::new(),
        }
    }

    /// What was told, without its wall clock.
    fn steps(told: &[WatchItem]) -> Vec<Transition> {
        told.iter()
            .filter_map(|told| match told {
                WatchItem::Step(step, _) => Some(step.clone()),
                WatchItem::Lost(_) => None,
            })
            .collect()
    }

    fn step(port: u16) -> Transition {
        Transition { port, ..fin_wait_2_to_time_wait() }
    }

    #[test]
    fn each_watcher_is_told_what_it_wants_and_no_more_than_some_may_watch() {
        let mut hub = Watchers::default();
        assert!(!hub.is_watched());
        hub.tell(&step(1));
        let all = hub.watch(WatchFilter::default()).unwrap();
        let one = hub.watch(WatchFilter { ports: vec![2], ..WatchFilter::default() }).unwrap();
        (1..4).for_each(|port| hub.tell(&step(port)));
        let all_told = take(&all, 9);
        assert_eq!(steps(&all_told), [1, 2, 3].map(step));
        assert_eq!(take(&one, 9), all_told[1..2]);
        assert!(take(&one, 9).is_empty());
        let more: Vec<Subscription> =
            (2..MOST_WATCHERS).map(|_| hub.watch(WatchFilter::default()).unwrap()).collect();
        assert!(hub.watch(WatchFilter::default()).is_none());
        drop(one);
        let late = hub.watch(WatchFilter::default());
        assert!(late.is_some());
        drop((all, more, late));
        hub.tell(&step(1));
        assert!(!hub.is_watched());
    }

    #[test]
    fn a_slow_reader_loses_steps_with_a_count_where_they_are_missing() {
        let mut hub = Watchers::default();
        let watch = hub.watch(WatchFilter::default()).unwrap();
        let most = MOST_WAITING - 1;
        (0..most + 5).for_each(|_| hub.tell(&step(1)));
        hub.tell_lost(2);
        assert_eq!(take(&watch, 10).len(), 10);
        hub.tell(&step(2));
        let told = take(&watch, usize::MAX);
        assert_eq!(told.len(), most - 10 + 2);
        let lost = WatchItem::Lost(Lost { lost: 7, in_kernel: false });
        assert_eq!(told[told.len() - 2], lost);
        assert_eq!(steps(&told[told.len() - 1..]), [step(2)]);
        // And where nothing comes any more, too.
        (0..most + 3).for_each(|_| hub.tell(&step(1)));
        let told = take(&watch, usize::MAX);
        assert_eq!(told.last(), Some(&WatchItem::Lost(Lost { lost: 3, in_kernel: false })));
        hub.tell_lost(4);
        assert_eq!(take(&watch, 9), [WatchItem::Lost(Lost { lost: 4, in_kernel: true })]);
    }
}
