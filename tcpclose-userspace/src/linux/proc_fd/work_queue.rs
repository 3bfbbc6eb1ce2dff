//! Work for several threads, each of which may make more of it.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Work for several threads, each of which may make more of it.
pub struct WorkQueue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    work: VecDeque<T>,
    /// How many items are being worked on.
    busy: usize,
}

impl<T> WorkQueue<T> {
    pub fn of(work: VecDeque<T>) -> Self {
        Self { state: Mutex::new(State { work, busy: 0 }), changed: Condvar::new() }
    }

    /// The next item. Waits while the queue is empty but items in work may add some; `None` when all is done.
    pub fn take(&self) -> Option<T> {
        let mut state = self.state();
        loop {
            if let Some(work) = state.work.pop_front() {
                state.busy += 1;
                return Some(work);
            }
            if state.busy == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Appends an item, so that a large process waits for all others.
    pub fn put(&self, work: T) {
        self.state().work.push_back(work);
        self.changed.notify_one();
    }

    /// Marks one taken item as done.
    pub fn done(&self) {
        let mut state = self.state();
        state.busy -= 1;
        if state.busy == 0 && state.work.is_empty() {
            self.changed.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_back_comes_after_all_others() {
        let queue = WorkQueue::of([(1, 0), (2, 0)].into());
        assert_eq!(queue.take(), Some((1, 0)));
        queue.put((1, 1024));
        queue.done();
        for expected in [Some((2, 0)), Some((1, 1024)), None] {
            let next = queue.take();
            assert_eq!(next, expected);
            if next.is_some() {
                queue.done();
            }
        }
    }
}
