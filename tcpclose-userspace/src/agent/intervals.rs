//! The intervals that a reload may change; loops read them before each pause.

use std::cell::Cell;
use std::time::Duration;

use crate::agent::config::Config;

pub struct Intervals {
    pub dump: Cell<Duration>,
    pub reconcile: Cell<Duration>,
    /// No pause between two looks that gauges rest on is longer than this.
    pub max: Cell<Duration>,
}

impl Intervals {
    pub const fn of(config: &Config) -> Self {
        Self {
            dump: Cell::new(config.dump_interval),
            reconcile: Cell::new(config.reconcile_interval),
            max: Cell::new(config.reconcile_max),
        }
    }
}
