//! Watches without an agent.

use std::ops::ControlFlow;
use std::rc::Rc;

use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use crate::agent::config::Config;
use crate::agent::reconcile;
use crate::agent::ring_loop;
use crate::agent::server::handlers::watch::WatchStream;
use crate::agent::start::{LAST_WAIT, attach, cannot_start, first_dump};
use crate::agent::tracking::Tracking;
use crate::failure::Failure;
use crate::probe;
use crate::report::requests::WATCH_IDLE;
use crate::report::watch::filter::WatchFilter;
use crate::report::watch::line::Item;

/// Attaches a probe of its own, calls `ready`, and hands what comes to `each` until that has enough; `None`
/// when nothing has come for a while. Serves nothing, and leaves nothing behind.
///
/// # Errors
/// When something that it needs is missing, as for [`run`](crate::agent::run), and what `each` fails with.
pub fn watch_alone(
    config: &Config,
    filter: WatchFilter,
    ready: impl FnOnce(&Tracking),
    mut each: impl FnMut(Option<Vec<Item>>) -> Result<ControlFlow<()>, Failure>,
) -> Result<(), Failure> {
    probe::require(config.state_hook)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot_start)?;
    let done = LocalSet::new().block_on(&runtime, async {
        let parts = attach(config, Rc::default()).await?;
        let tracking = Rc::clone(&parts.tracking);
        spawn_local(ring_loop::run(Rc::clone(&tracking), Rc::default()));
        first_dump(&tracking).await?;
        let Ok(mut lines) = WatchStream::begin(filter, &tracking) else {
            return Ok(());
        };
        ready(&tracking.borrow());
        spawn_local(reconcile::run(parts));
        loop {
            let items = timeout(WATCH_IDLE, lines.next()).await.ok();
            if each(items)?.is_break() {
                return Ok(());
            }
        }
    });
    runtime.shutdown_timeout(LAST_WAIT);
    done
}
