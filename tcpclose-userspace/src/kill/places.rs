//! Where the network namespaces are that orders lead to: searched for when the first order needs it, not once a socket.
//! Places are remembered, never a handle.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use crate::linux::netns;
use crate::linux::netns::{Descriptors, Netns, NetnsPath};
use crate::report::kill::outcome::KillOutcome;

/// A namespace that was searched for in vain is not searched for again before.
const SEARCH_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Places {
    /// What the last search has found, by inode.
    found: HashMap<u32, NetnsPath>,
    /// Namespaces whose processes it was not allowed to look at.
    denied: u32,
    in_vain: HashMap<u32, Instant>,
}

/// Why nothing was done in a namespace.
enum SkipReason {
    /// Nothing leads there.
    NoWay,
    /// Another namespace has its inode.
    Gone,
    Failed(io::Error),
}

impl Places {
    /// Does `what` inside the namespace that has the inode `inum`; `id` tells it from a later one, if it is not 0.
    ///
    /// # Errors
    /// What becomes of the order when the namespace is not entered.
    pub fn inside<T: Send>(
        &mut self,
        inum: u32,
        id: u32,
        what: impl FnOnce() -> T + Send,
    ) -> Result<T, KillOutcome> {
        let mut what = Some(what);
        let known = match netns::own() {
            Ok(own) if own.inum == inum => netns::own_place().ok(),
            _ => self.found.get(&inum).cloned(),
        };
        let mut failed = SkipReason::NoWay;
        if let Some(place) = &known {
            match go(place, id, &mut what) {
                Ok(done) => return Ok(done),
                Err(why) => failed = why,
            }
        }
        // A thread that led there may have ended, and another be there.
        if !matches!(&failed, SkipReason::Failed(why) if why.kind() != ErrorKind::NotFound)
            && self.search(inum)
        {
            match self.found.get(&inum) {
                Some(place) => match go(place, id, &mut what) {
                    Ok(done) => return Ok(done),
                    Err(why) => failed = why,
                },
                None => failed = SkipReason::NoWay,
            }
            if matches!(&failed, SkipReason::NoWay | SkipReason::Gone) {
                self.in_vain.insert(inum, Instant::now());
            }
        }
        Err(self.outcome(inum, failed))
    }

    /// Searches, unless that was in vain a moment ago. Whether it has.
    fn search(&mut self, inum: u32) -> bool {
        self.in_vain.retain(|_, at| at.elapsed() < SEARCH_AGAIN);
        if self.in_vain.contains_key(&inum) {
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
            SkipReason::NoWay if self.denied > 0 => format!(
                "its network namespace net:[{inum}] was not found: CAP_SYS_PTRACE and CAP_SYS_ADMIN are needed to enter \
                 those that processes are in"
            ),
            SkipReason::NoWay => format!("nothing leads into its network namespace net:[{inum}] any more"),
            SkipReason::Failed(why) if why.kind() == ErrorKind::PermissionDenied => {
                format!("CAP_SYS_ADMIN is needed to enter its network namespace net:[{inum}] ({why})")
            }
            SkipReason::Failed(why) => format!("its network namespace net:[{inum}] was not entered: {why}"),
        };
        // No errno: that would be the kernel's word on the socket.
        KillOutcome::Refused { errno: None, why }
    }
}

/// Goes to `place` and does `what`, which is taken, if that is the namespace that is meant.
fn go<T: Send>(
    place: &NetnsPath,
    id: u32,
    what: &mut Option<impl FnOnce() -> T + Send>,
) -> Result<T, SkipReason> {
    let done = netns::with_visitor(|visitor| {
        let Netns { id: entered, .. } = visitor.enter(place).map_err(SkipReason::Failed)?;
        if id != 0 && entered != id {
            return Err(SkipReason::Gone);
        }
        what.take().map(|what| what()).ok_or(SkipReason::NoWay)
    });
    match done {
        Ok(done) => done,
        Err(why) => Err(SkipReason::Failed(why)),
    }
}
