//! Watchers of transitions, and their queues.
//!
//! A transition that nobody watches costs a check of an empty list. Each watcher has a bounded queue of its
//! own: slow readers lose transitions, the stream reports how many, and nobody else waits. The reader's task
//! writes the lines.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use crate::linux::host;
use crate::report::watch::filter::WatchFilter;
use crate::report::watch::line::Lost;
use crate::tracker::transition::Transition;

/// Watchers at a time. Each may hold [`MOST_WAITING`] transitions, 2 MB.
pub const MOST_WATCHERS: usize = 8;

/// Transitions that wait for a reader: those of 1,000 closes.
const MOST_WAITING: usize = 8192;

/// How long an offset of the wall clock from CLOCK_MONOTONIC is used.
const OFFSET_LASTS_NS: u64 = 1_000_000_000;

#[derive(Default)]
pub struct Watchers {
    watchers: Vec<Weak<Watcher>>,
    /// CLOCK_MONOTONIC, and the offset of the wall clock from it then: one for all, so that every watcher has
    /// the same time for a transition.
    wall_offset: Option<(u64, i64)>,
}

struct Watcher {
    filter: WatchFilter,
    queue: RefCell<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<WatchItem>,
    /// Transitions that did not fit since the last that did.
    lost: u64,
    reader: Option<Waker>,
}

/// What a watcher gets.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchItem {
    /// With its wall clock, nanoseconds since 1970.
    Step(Transition, u64),
    Lost(Lost),
}

/// A watcher, until it is dropped.
pub struct Subscription(Rc<Watcher>);

impl Watchers {
    /// Whether anybody watches.
    pub fn is_watched(&self) -> bool {
        !self.watchers.is_empty()
    }

    /// Adds a watcher; `None` when there are [`MOST_WATCHERS`].
    pub fn watch(&mut self, filter: WatchFilter) -> Option<Subscription> {
        self.watchers.retain(|watcher| watcher.strong_count() > 0);
        if self.watchers.len() >= MOST_WATCHERS {
            return None;
        }
        let watcher = Rc::new(Watcher { filter, queue: RefCell::default() });
        self.watchers.push(Rc::downgrade(&watcher));
        Some(Subscription(watcher))
    }

    /// Queues a transition for every watcher whose filter lets it through.
    pub fn send(&mut self, step: &Transition) {
        let wall_ns = self.wall_of(step.at_ns);
        self.each(|watcher| {
            if watcher.filter.passes(step) {
                watcher.queue.borrow_mut().push(WatchItem::Step(step.clone(), wall_ns));
            }
        });
    }

    /// Reports to every watcher that `lost` records never came from the kernel.
    pub fn send_lost(&mut self, lost: u64) {
        self.each(|watcher| watcher.queue.borrow_mut().push(WatchItem::Lost(Lost { lost, in_kernel: true })));
    }

    fn wall_of(&mut self, at_ns: u64) -> u64 {
        let now_ns = host::monotonic_ns();
        let offset = match self.wall_offset {
            Some((read_ns, offset)) if now_ns.saturating_sub(read_ns) < OFFSET_LASTS_NS => offset,
            _ => {
                let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                let offset = wall.as_nanos() as i64 - now_ns as i64;
                self.wall_offset = Some((now_ns, offset));
                offset
            }
        };
        at_ns.saturating_add_signed(offset)
    }

    fn each(&mut self, mut send: impl FnMut(&Watcher)) {
        self.watchers.retain(|watcher| watcher.upgrade().inspect(|watcher| send(watcher)).is_some());
    }
}

impl Queue {
    fn push(&mut self, item: WatchItem) {
        // One place is kept for the count of lost ones.
        if self.waiting.len() + 1 >= MOST_WAITING {
            self.lost += match item {
                WatchItem::Step(..) => 1,
                WatchItem::Lost(Lost { lost, .. }) => lost,
            };
            return;
        }
        self.push_lost();
        self.waiting.push_back(item);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Queues the count of lost transitions, where they are missing.
    fn push_lost(&mut self) {
        if self.lost > 0 {
            let lost = std::mem::take(&mut self.lost);
            self.waiting.push_back(WatchItem::Lost(Lost { lost, in_kernel: false }));
        }
    }
}

impl Subscription {
    /// What has come, in order, at most `most` items; never none.
    pub fn poll_take(&self, context: &mut Context<'_>, most: usize) -> Poll<Vec<WatchItem>> {
        let mut queue = self.0.queue.borrow_mut();
        if queue.waiting.len() <= most {
            queue.push_lost();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::transition::fin_wait_2_to_time_wait;

    fn take(watch: &Subscription, most: usize) -> Vec<WatchItem> {
        match watch.poll_take(&mut Context::from_waker(Waker::noop()), most) {
            Poll::Ready(items) => items,
            Poll::Pending => Vec::new(),
        }
    }

    /// The transitions, without their wall clocks.
    fn steps(items: &[WatchItem]) -> Vec<Transition> {
        items
            .iter()
            .filter_map(|item| match item {
                WatchItem::Step(step, _) => Some(step.clone()),
                WatchItem::Lost(_) => None,
            })
            .collect()
    }

    fn step(port: u16) -> Transition {
        Transition { port, ..fin_wait_2_to_time_wait() }
    }

    #[test]
    fn each_watcher_gets_what_its_filter_lets_through_and_their_number_is_bounded() {
        let mut watchers = Watchers::default();
        assert!(!watchers.is_watched());
        watchers.send(&step(1));
        let all = watchers.watch(WatchFilter::default()).unwrap();
        let one = watchers.watch(WatchFilter { ports: vec![2], ..WatchFilter::default() }).unwrap();
        (1..4).for_each(|port| watchers.send(&step(port)));
        let all_items = take(&all, 9);
        assert_eq!(steps(&all_items), [1, 2, 3].map(step));
        assert_eq!(take(&one, 9), all_items[1..2]);
        assert!(take(&one, 9).is_empty());
        let more: Vec<Subscription> =
            (2..MOST_WATCHERS).map(|_| watchers.watch(WatchFilter::default()).unwrap()).collect();
        assert!(watchers.watch(WatchFilter::default()).is_none());
        drop(one);
        let late = watchers.watch(WatchFilter::default());
        assert!(late.is_some());
        drop((all, more, late));
        watchers.send(&step(1));
        assert!(!watchers.is_watched());
    }

    #[test]
    fn a_slow_reader_loses_steps_with_a_count_where_they_are_missing() {
        let mut watchers = Watchers::default();
        let watch = watchers.watch(WatchFilter::default()).unwrap();
        let most = MOST_WAITING - 1;
        (0..most + 5).for_each(|_| watchers.send(&step(1)));
        watchers.send_lost(2);
        assert_eq!(take(&watch, 10).len(), 10);
        watchers.send(&step(2));
        let items = take(&watch, usize::MAX);
        assert_eq!(items.len(), most - 10 + 2);
        let lost = WatchItem::Lost(Lost { lost: 7, in_kernel: false });
        assert_eq!(items[items.len() - 2], lost);
        assert_eq!(steps(&items[items.len() - 1..]), [step(2)]);
        // And after the last transition, too.
        (0..most + 3).for_each(|_| watchers.send(&step(1)));
        let items = take(&watch, usize::MAX);
        assert_eq!(items.last(), Some(&WatchItem::Lost(Lost { lost: 3, in_kernel: false })));
        watchers.send_lost(4);
        assert_eq!(take(&watch, 9), [WatchItem::Lost(Lost { lost: 4, in_kernel: true })]);
    }
}
