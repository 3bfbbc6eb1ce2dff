//! How far apart an agent's dumps are: as it means them to be, and as they were on a machine that did too much else.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{Agent, Metrics};

/// Between two looks of [`watch`].
const PAUSE: Duration = Duration::from_millis(250);

/// What one agent's metrics told of its dumps.
pub struct DumpGaps {
    /// Of which namespaces: the label of `tcpclose_gauges_age_seconds`.
    netns: &'static str,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    apart: f64,
    took: f64,
    /// The age of what dumps alone tell, and when that was heard.
    last: Option<(f64, Instant)>,
}

impl DumpGaps {
    /// Of the network namespace of this machine's PID 1.
    pub fn of_host() -> Self {
        Self { netns: "host", seen: Mutex::default() }
    }

    /// Of any other.
    pub fn elsewhere() -> Self {
        Self { netns: "others", seen: Mutex::default() }
    }

    /// Takes note of `metrics`, which are of now.
    pub fn note(&self, metrics: &Metrics) {
        let sum = |name: &str, labels: &[(&str, &str)]| metrics.sum(name, labels);
        let age = sum("tcpclose_gauges_age_seconds", &[("netns", self.netns)]);
        let took = sum("tcpclose_dump_seconds", &[]);
        let meant = sum("tcpclose_reconcile_interval_seconds", &[]) + took;
        self.saw(meant, took, age, Instant::now());
    }

    fn saw(&self, meant: f64, took: f64, age: f64, now: Instant) {
        let seen = &mut *self.seen.lock().unwrap();
        // The dump before `now` came at some time since the look before, at the latest just now.
        let was = seen.last.replace((age, now)).map_or(0.0, |(age, when)| {
            let since = now - when;
            let late = age > meant || since > 2 * PAUSE;
            if late { age + since.as_secs_f64() } else { 0.0 }
        });
        seen.took = seen.took.max(took);
        seen.apart = seen.apart.max(meant).max(age).max(was);
    }

    /// The longest from one dump's look at a socket to the next one's, seconds.
    pub fn apart(&self) -> f64 {
        self.seen.lock().unwrap().apart
    }

    /// The longest dump, seconds.
    pub fn took(&self) -> f64 {
        self.seen.lock().unwrap().took
    }
}

/// Takes note of all of them, until `done`.
pub fn watch<'a>(agents: &[(&'a Agent, &'a DumpGaps)], done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        sleep(PAUSE);
        for (agent, gaps) in agents {
            gaps.note(&agent.metrics());
        }
    }
}

/// Sets it when dropped, so that a test that fails ends its [`watch`], too.
pub struct Done<'a>(pub &'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_gap_is_what_was_meant_unless_a_dump_was_late() {
    let gaps = DumpGaps::of_host();
    let begun = Instant::now();
    let at = |ms| begun + Duration::from_millis(ms);
    for (ms, age) in [(0, 0.9), (250, 0.1), (500, 0.35)] {
        gaps.saw(1.05, 0.05, age, at(ms));
    }
    assert_eq!((gaps.apart(), gaps.took()), (1.05, 0.05));
    // It is late already, and came within the next look.
    gaps.saw(1.05, 0.05, 1.2, at(750));
    assert_eq!(gaps.apart(), 1.2);
    gaps.saw(1.05, 0.05, 0.1, at(1000));
    assert_eq!(gaps.apart(), 1.45);
    // Nobody looked for long.
    gaps.saw(1.05, 0.05, 0.1, at(4000));
    assert_eq!(gaps.apart(), 3.1);
}
