//! The paths to the network namespaces of orders: searched for when an order needs an unknown one, and
//! remembered. No handle is kept.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use crate::linux::netns;
use crate::linux::netns::{Descriptors, Netns, NetnsPath};
use crate::report::kill::outcome::KillOutcome;

/// A search without success is not repeated for so long.
const SEARCH_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Places {
    /// The result of the last search, by inode.
    found: HashMap<u32, NetnsPath>,
    /// Processes whose namespaces it was not allowed to read.
    denied: u32,
    not_found: HashMap<u32, Instant>,
}

/// Why nothing was done in a namespace.
enum SkipReason {
    /// No path leads there.
    NotFound,
    /// Another namespace has its inode.
    Gone,
    Failed(io::Error),
}

impl Places {
    /// Runs `work` inside the namespace with the inode `inum`. `id`: unless 0, distinguishes it from a later
    /// one with this inode.
    ///
    /// # Errors
    /// The result of the order when the namespace cannot be entered.
    pub fn inside<T: Send>(
        &mut self,
        inum: u32,
        id: u32,
        work: impl FnOnce() -> T + Send,
    ) -> Result<T, KillOutcome> {
        let mut work = Some(work);
        let known = match netns::own() {
            Ok(own) if own.inum == inum => netns::own_place().ok(),
            _ => self.found.get(&inum).cloned(),
        };
        let mut failed = SkipReason::NotFound;
        if let Some(place) = &known {
            match enter(place, id, &mut work) {
                Ok(done) => return Ok(done),
                Err(why) => failed = why,
            }
        }
        // The thread that led there may have ended, and another have its id.
        if !matches!(&failed, SkipReason::Failed(why) if why.kind() != ErrorKind::NotFound)
            && self.search(inum)
        {
            match self.found.get(&inum) {
                Some(place) => match enter(place, id, &mut work) {
                    Ok(done) => return Ok(done),
                    Err(why) => failed = why,
                },
                None => failed = SkipReason::NotFound,
            }
            if matches!(&failed, SkipReason::NotFound | SkipReason::Gone) {
                self.not_found.insert(inum, Instant::now());
            }
        }
        Err(self.outcome(inum, failed))
    }

    /// Searches, unless that was without success a moment ago. Returns whether it has searched.
    fn search(&mut self, inum: u32) -> bool {
        self.not_found.retain(|_, at| at.elapsed() < SEARCH_AGAIN);
        if self.not_found.contains_key(&inum) {
            return false;
        }
        let Ok(mut found) = netns::find(&Descriptors::NONE) else { return false };
        if !found.places.iter().any(|place| place.inum == inum) {
            let Ok(more) = netns::find(&Descriptors::All) else { return false };
            found = more;
        }
        self.denied = found.denied;
        self.found = found.places.into_iter().map(|place| (place.inum, place)).collect();
        true
    }

    fn outcome(&self, inum: u32, failed: SkipReason) -> KillOutcome {
        let why = match failed {
            SkipReason::Gone => {
                let why = "its network namespace has gone".to_owned();
                return KillOutcome::Spared { why };
            }
            SkipReason::NotFound if self.denied > 0 => format!(
                "its network namespace net:[{inum}] was not found: CAP_SYS_PTRACE and CAP_SYS_ADMIN are needed to enter \
                 the namespaces of other processes"
            ),
            SkipReason::NotFound => {
                format!(
                    "its network namespace net:[{inum}] can no longer be found through any process, file or descriptor"
                )
            }
            SkipReason::Failed(why) if why.kind() == ErrorKind::PermissionDenied => {
                format!("CAP_SYS_ADMIN is needed to enter its network namespace net:[{inum}] ({why})")
            }
            SkipReason::Failed(why) => format!("cannot enter its network namespace net:[{inum}]: {why}"),
        };
        // No errno, which would stand for the socket's refusal by the kernel.
        KillOutcome::Refused { errno: None, why }
    }
}

/// Enters `place`, and runs `work` if that is the namespace `id`.
fn enter<T: Send>(
    place: &NetnsPath,
    id: u32,
    work: &mut Option<impl FnOnce() -> T + Send>,
) -> Result<T, SkipReason> {
    let done = netns::with_visitor(|visitor| {
        let Netns { id: entered, .. } = visitor.enter(place).map_err(SkipReason::Failed)?;
        if id != 0 && entered != id {
            return Err(SkipReason::Gone);
        }
        work.take().map(|work| work()).ok_or(SkipReason::NotFound)
    });
    match done {
        Ok(done) => done,
        Err(why) => Err(SkipReason::Failed(why)),
    }
}
