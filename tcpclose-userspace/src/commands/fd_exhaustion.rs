//! The time until a process runs out of file descriptors.

use rustc_hash::FxHashMap;

use crate::names::Diagnosis;
use crate::report::sockets::{Owner, StuckSocket};

/// The rate at which each process loses file descriptors to stuck sockets of all groups.
#[derive(Debug, Default)]
pub struct FdRates {
    /// By pid.
    ages: FxHashMap<u32, FdAges>,
    /// The age from which sockets count, seconds.
    bound: f64,
}

/// The sockets of one process, with a descriptor each.
#[derive(Debug)]
struct FdAges {
    held: u32,
    /// The age of the oldest and of the youngest in seconds.
    oldest: f64,
    youngest: f64,
}

impl FdRates {
    /// Of the sockets that are proven to be `bound` seconds old and not still sending.
    pub fn of(sockets: &[StuckSocket], bound: f64) -> Self {
        let mut rates = Self { bound, ..Self::default() };
        let takes_descriptors = |socket: &&StuckSocket| {
            !matches!(socket.diagnosis, Some(Diagnosis::NotAccepted | Diagnosis::StillSending))
                && socket.is_past(bound)
        };
        for socket in sockets.iter().filter(takes_descriptors) {
            let age = socket.age.min_seconds;
            for owner in &socket.owners {
                let new = FdAges { held: 0, oldest: age, youngest: age };
                let ages = rates.ages.entry(owner.pid).or_insert(new);
                ages.held += 1;
                ages.oldest = ages.oldest.max(age);
                ages.youngest = ages.youngest.min(age);
            }
        }
        rates
    }

    /// Seconds until `owner` has no descriptor left; `None` without a limit or a known rate.
    pub fn full_in(&self, owner: &Owner) -> Option<f64> {
        let left = owner.fds_limit?.saturating_sub(owner.fds_used?);
        if left == 0 {
            return Some(0.0);
        }
        let ages = self.ages.get(&owner.pid)?;
        let (burst, steps) = (ages.oldest - ages.youngest, ages.held - 1);
        // The time without a new one counts: a leak that has ended slows down. Younger sockets than the bound are not here yet.
        let span = ages.oldest - self.bound.min(ages.youngest);
        // Two sockets, or a single burst, give no rate.
        (steps >= 2 && burst >= 1.0).then(|| left as f64 * span / f64::from(steps))
    }
}
