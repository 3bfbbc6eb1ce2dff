//! SIGHUP: reads the settings again, applies those that may change while the agent runs, and names the
//! others.

use std::io::{self, Write as _};
use std::rc::Rc;

use tokio::task::{JoinHandle, spawn_local};

use crate::agent::config::{Config, SocketAccess};
use crate::agent::kill_permission;
use crate::agent::owners;
use crate::agent::parts::Parts;
use crate::agent::server::access;
use crate::agent::server::access::ScrapeAccess;
use crate::agent::signals::Signals;
use crate::agent::systemd::notify::Notify;
use crate::failure::{Failure, printable};
use crate::linux::capabilities;
use crate::linux::host::Capability;

/// Reads the settings as they are now.
pub type ReadSettings<'a> = &'a dyn Fn() -> Result<Config, Failure>;

pub struct Reload {
    parts: Parts,
    access: Rc<ScrapeAccess>,
    /// The settings in use.
    now: Config,
    /// The task that counts owners.
    owners: Option<JoinHandle<()>>,
}

/// The names of settings that differ between two configurations.
#[derive(Debug, Default, PartialEq, Eq)]
struct Differences {
    /// Applied by a reload.
    reloadable: Vec<&'static str>,
    /// Applied by a restart only.
    fixed: Vec<&'static str>,
}

impl Reload {
    /// Starts to count owners if `config` asks for it.
    pub fn new(parts: Parts, access: Rc<ScrapeAccess>, config: &Config) -> Self {
        let mut reload = Self { parts, access, now: config.clone(), owners: None };
        reload.count_owners();
        reload
    }

    /// Reloads at each SIGHUP, for as long as the agent runs.
    pub async fn run(&mut self, signals: &Signals, read: ReadSettings<'_>, notify: &Notify) {
        loop {
            signals.hangup().await;
            notify.reloading();
            let message = match read() {
                Ok(next) => {
                    let web = self.access.reread().await;
                    self.apply(next, web)
                }
                Err(failure) => format!("{failure} (nothing was reloaded)"),
            };
            // Whatever the log level: a user has asked. A closed standard error is no failure.
            let _ = writeln!(io::stderr(), "{}", printable(&message));
            notify.ready(message.trim_start_matches("tcpclose: "));
        }
    }

    /// Applies the reloadable settings of `next`. Returns the message for the user; `web` is applied already.
    fn apply(&mut self, next: Config, web: access::WebReload) -> String {
        let (merged, Differences { mut reloadable, fixed }) = merge(&self.now, next);
        self.now = merged;
        if web == access::WebReload::New {
            reloadable.push("the content of web-config");
        }
        let changed = |name| reloadable.contains(&name);
        if changed("allow-kill") {
            // Held by this thread alone, and by those that carry out an order.
            capabilities::give_up(Capability::NetAdmin);
        }
        let Parts { tracking, intervals, kill, allowed_hosts, .. } = &self.parts;
        allowed_hosts.replace(self.now.allowed_hosts.clone());
        tracking.borrow_mut().stuck_after = self.now.stuck_after.clone();
        kill.allowed.set(self.now.allow_kill);
        kill.group.replace(self.now.kill_group.clone());
        intervals.dump.set(self.now.dump_interval);
        intervals.reconcile.set(self.now.reconcile_interval);
        intervals.max.set(self.now.reconcile_max);
        log::set_max_level(self.now.log_level);
        if changed("owner-interval") {
            self.count_owners();
        }

        let mut message = format!(
            "tcpclose: reloaded: {}",
            listed(&reloadable).unwrap_or("nothing has changed".to_owned())
        );
        if let Some(fixed) = listed(&fixed) {
            message += &format!("; restart the agent to apply {fixed}");
        }
        if let Some(warning) = kill_permission::without_effect(&self.now)
            .filter(|_| changed("allow-kill") || changed("kill-group"))
        {
            message += &format!("; {warning}");
        }
        if let Some(Failure { what, why, .. }) = self.access.wrong() {
            message += &format!("; the previous web configuration stays in use: {what}: {why}");
        }
        message
    }

    /// Restarts the task that counts owners, or ends it.
    fn count_owners(&mut self) {
        if let Some(running) = self.owners.take() {
            running.abort();
            self.parts.stuck_counts.take();
        }
        let count = |interval| spawn_local(owners::run(self.parts.clone(), interval));
        self.owners = self.now.owner_interval.map(count);
    }
}

impl Differences {
    fn fixed<T: PartialEq + Clone>(&mut self, name: &'static str, now: &T, next: &T) -> T {
        if now != next {
            self.fixed.push(name);
        }
        now.clone()
    }

    fn reloadable<T: PartialEq>(&mut self, name: &'static str, now: &T, next: T) -> T {
        if *now != next {
            self.reloadable.push(name);
        }
        next
    }
}

/// The settings after a reload, and what differs in `next`. Every setting is classified here: a new field of
/// [`Config`] does not compile until it is.
fn merge(now: &Config, next: Config) -> (Config, Differences) {
    let mut settings = Differences::default();
    let merged = Config {
        listen: settings.fixed("listen", &now.listen, &next.listen),
        web_config: settings.fixed("web-config", &now.web_config, &next.web_config),
        allowed_hosts: settings.reloadable("allowed-host", &now.allowed_hosts, next.allowed_hosts),
        socket: settings.fixed("socket", &now.socket, &next.socket),
        access: SocketAccess {
            mode: settings.fixed("socket-mode", &now.access.mode, &next.access.mode),
            owner: settings.fixed("socket-owner", &now.access.owner, &next.access.owner),
            group: settings.fixed("socket-group", &now.access.group, &next.access.group),
        },
        state_dir: settings.fixed("state-dir", &now.state_dir, &next.state_dir),
        // Of use during the start only.
        wait: now.wait,
        max_ports: settings.fixed("max-ports", &now.max_ports, &next.max_ports),
        name_ports: settings.fixed("name-port", &now.name_ports, &next.name_ports),
        state_hook: settings.fixed("state-hook", &now.state_hook, &next.state_hook),
        time_wait: settings.fixed("time-wait", &now.time_wait, &next.time_wait),
        owners: settings.fixed("owners", &now.owners, &next.owners),
        netns: settings.fixed("netns", &now.netns, &next.netns),
        stacks: settings.fixed("stacks", &now.stacks, &next.stacks),
        stacks_after: settings.fixed("stacks-after", &now.stacks_after, &next.stacks_after),
        stacks_for: settings.fixed("stacks-for", &now.stacks_for, &next.stacks_for),
        ring_size: settings.fixed("ring-size", &now.ring_size, &next.ring_size),
        stuck_after: settings.reloadable("stuck-after", &now.stuck_after, next.stuck_after),
        reconcile_interval: settings.reloadable(
            "reconcile-interval",
            &now.reconcile_interval,
            next.reconcile_interval,
        ),
        reconcile_max: settings.reloadable("reconcile-max", &now.reconcile_max, next.reconcile_max),
        dump_interval: settings.reloadable("dump-interval", &now.dump_interval, next.dump_interval),
        owner_interval: settings.reloadable("owner-interval", &now.owner_interval, next.owner_interval),
        allow_kill: match (now.allow_kill, next.allow_kill) {
            // An agent without it has given the capability up.
            (false, allow) => settings.fixed("allow-kill", &false, &allow),
            (true, allow) => settings.reloadable("allow-kill", &true, allow),
        },
        kill_group: settings.reloadable("kill-group", &now.kill_group, next.kill_group),
        log_level: settings.reloadable("log-level", &now.log_level, next.log_level),
    };
    (merged, settings)
}

/// `a, b`; `None` for none.
fn listed(names: &[&str]) -> Option<String> {
    (!names.is_empty()).then(|| names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_settings_that_differ_are_named() {
        let now = Config::alone();
        assert_eq!(merge(&now, now.clone()).1, Differences::default());
        let next = Config {
            ring_size: 1 << 20,
            access: SocketAccess { group: Some(7), ..now.access },
            dump_interval: Duration::from_secs(9),
            wait: Duration::from_secs(9),
            ..now.clone()
        };
        let (merged, differences) = merge(&now, next.clone());
        assert_eq!((merged.dump_interval, merged.ring_size), (next.dump_interval, now.ring_size));
        assert_eq!(differences.reloadable, ["dump-interval"]);
        assert_eq!(differences.fixed, ["socket-group", "ring-size"]);
        assert_eq!(listed(&differences.fixed).as_deref(), Some("socket-group, ring-size"));
        assert_eq!(listed(&[]), None);
    }

    #[test]
    fn destroying_can_be_forbidden_and_not_allowed_by_a_reload() {
        let may = Config { allow_kill: true, ..Config::alone() };
        let may_not = Config::alone();
        let reloaded = |now: &Config, next: &Config| {
            let (merged, differences) = merge(now, next.clone());
            (merged.allow_kill, differences.reloadable, differences.fixed)
        };
        assert_eq!(reloaded(&may, &may_not), (false, vec!["allow-kill"], vec![]));
        assert_eq!(reloaded(&may_not, &may), (false, vec![], vec!["allow-kill"]));
        assert_eq!(reloaded(&may, &may), (true, vec![], vec![]));
    }
}
