//! SIGHUP: the settings are read again. What can change while the agent runs does, and what cannot is said.

use std::cell::{Cell, RefCell};
use std::io::{self, Write as _};
use std::rc::Rc;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_local};

use crate::agent::config::Config;
use crate::agent::owners;
use crate::agent::server::access;
use crate::agent::server::access::ScrapeAccess;
use crate::agent::signals::Signals;
use crate::agent::systemd::notify::Notify;
use crate::agent::tracking::Tracking;
use crate::failure::{Failure, printable};
use crate::linux::capabilities;
use crate::linux::host::Capability;

/// Reads the settings as they are now.
pub type ReadSettings<'a> = &'a dyn Fn() -> Result<Config, Failure>;

/// Between dumps; they are looked at before each one.
pub struct Intervals {
    pub dump: Cell<Duration>,
    pub reconcile: Cell<Duration>,
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

    /// No look that gauges rest on is further from the next than this.
    pub fn most(&self) -> Duration {
        self.max.get()
    }
}

/// What the agent runs by, and where to change it.
pub struct Reload {
    engine: Rc<RefCell<Tracking>>,
    access: Rc<ScrapeAccess>,
    intervals: Rc<Intervals>,
    now: Config,
    owners: Option<JoinHandle<()>>,
}

impl Reload {
    /// Begins to count owners, if that is what `config` says.
    pub fn new(
        engine: Rc<RefCell<Tracking>>,
        access: Rc<ScrapeAccess>,
        intervals: Rc<Intervals>,
        config: &Config,
    ) -> Self {
        let mut reload = Self { engine, access, intervals, now: config.clone(), owners: None };
        reload.count_owners();
        reload
    }

    /// Reloads at each SIGHUP, for as long as the agent runs.
    pub async fn run(&mut self, signals: &Signals, again: ReadSettings<'_>, notify: &Notify) {
        loop {
            signals.hangup().await;
            notify.reloading();
            let said = match again() {
                Ok(next) => {
                    let web = self.access.reread().await;
                    self.take(&next, web)
                }
                Err(failure) => format!("{failure}; nothing is reloaded"),
            };
            // Whatever the log level: somebody has asked. And nobody may be there to read it.
            let _ = writeln!(io::stderr(), "{}", printable(&said));
            notify.ready(said.trim_start_matches("tcpclose: "));
        }
    }

    /// Takes what it can of `next`, and says what that is; and what `web` came to, which is taken already.
    fn take(&mut self, next: &Config, web: access::WebReload) -> String {
        let now = &self.now;
        let fixed = [
            ("listen", now.listen != next.listen),
            ("web-config", now.web_config != next.web_config),
            ("socket", now.socket != next.socket),
            ("socket-mode", now.access.mode != next.access.mode),
            ("socket-owner", now.access.owner != next.access.owner),
            ("socket-group", now.access.group != next.access.group),
            ("state-dir", now.state_dir != next.state_dir),
            ("max-ports", now.max_ports != next.max_ports),
            ("name-port", now.name_ports != next.name_ports),
            ("state-hook", now.state_hook != next.state_hook),
            ("time-wait", now.time_wait != next.time_wait),
            ("owners", now.owners != next.owners),
            ("netns", now.netns != next.netns),
            ("ring-size", now.ring_size != next.ring_size),
            // An agent that was to destroy nothing has given the capability up.
            ("allow-kill", next.allow_kill && !now.allow_kill),
        ];
        let allow_kill = now.allow_kill && next.allow_kill;
        let changed = [
            ("stuck-after", now.stuck_after != next.stuck_after),
            ("reconcile-interval", now.reconcile_interval != next.reconcile_interval),
            ("reconcile-max", now.reconcile_max != next.reconcile_max),
            ("dump-interval", now.dump_interval != next.dump_interval),
            ("owner-interval", now.owner_interval != next.owner_interval),
            ("allow-kill", now.allow_kill != allow_kill),
            ("kill-group", now.kill_group != next.kill_group),
            ("log-level", now.log_level != next.log_level),
            ("what web-config says", web == access::WebReload::New),
        ];
        let owners_change = self.now.owner_interval != next.owner_interval;
        self.now.stuck_after = next.stuck_after.clone();
        self.now.reconcile_interval = next.reconcile_interval;
        self.now.reconcile_max = next.reconcile_max;
        self.now.dump_interval = next.dump_interval;
        self.now.owner_interval = next.owner_interval;
        if self.now.allow_kill && !allow_kill {
            // Held by this thread alone, and by those that carry an order out.
            capabilities::give_up(Capability::NetAdmin);
        }
        self.now.allow_kill = allow_kill;
        self.now.kill_group.clone_from(&next.kill_group);
        self.now.log_level = next.log_level;
        {
            let mut engine = self.engine.borrow_mut();
            engine.stuck_after = self.now.stuck_after.clone();
            engine.allow_kill = self.now.allow_kill;
            engine.kill_group.clone_from(&self.now.kill_group);
        }
        self.intervals.dump.set(self.now.dump_interval);
        self.intervals.reconcile.set(self.now.reconcile_interval);
        self.intervals.max.set(self.now.reconcile_max);
        log::set_max_level(self.now.log_level);
        if owners_change {
            self.count_owners();
        }

        let mut said =
            format!("tcpclose: reloaded: {}", names(&changed).unwrap_or("nothing has changed".to_owned()));
        if let Some(fixed) = names(&fixed) {
            said += &format!("; restart it for {fixed}");
        }
        if let Some(Failure { what, why, .. }) = self.access.wrong() {
            said += &format!("; what web-config said before stays in use: {what}: {why}");
        }
        said
    }

    /// Counts owners at the interval of now, or no longer.
    fn count_owners(&mut self) {
        if let Some(running) = self.owners.take() {
            running.abort();
            self.engine.borrow_mut().stuck_owners.clear();
        }
        let engine = || Rc::clone(&self.engine);
        self.owners = self
            .now
            .owner_interval
            .map(|interval| spawn_local(owners::run(engine(), interval, Rc::clone(&self.intervals))));
    }
}

/// Those that are true; `None` where none is.
fn names(of: &[(&str, bool)]) -> Option<String> {
    let names: Vec<&str> = of.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_named() {
        assert_eq!(names(&[("a", false)]), None);
        assert_eq!(names(&[("a", true), ("b", false), ("c", true)]).as_deref(), Some("a, c"));
    }
}
