//! Who may destroy sockets through this agent, and the network namespaces that orders have led to.

use std::cell::{Cell, RefCell};

use crate::agent::config::Config;
use crate::kill::places::Places;
use crate::linux::users::UnixGroup;

#[derive(Debug, Default)]
pub struct KillPermission {
    /// `--allow-kill`.
    pub allowed: Cell<bool>,
    /// `--kill-group`: its members may, besides root.
    pub group: RefCell<Option<UnixGroup>>,
    /// Taken by the order that is being carried out.
    pub places: RefCell<Places>,
}

/// The warning about a setting that does nothing.
pub fn without_effect(config: &Config) -> Option<&'static str> {
    (config.kill_group.is_some() && !config.allow_kill).then_some(
        "kill-group has no effect: no socket is destroyed through this agent (add allow-kill, or remove kill-group)",
    )
}

impl KillPermission {
    pub fn of(config: &Config) -> Self {
        Self {
            allowed: Cell::new(config.allow_kill),
            group: RefCell::new(config.kill_group.clone()),
            places: RefCell::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_may_do_nothing_is_a_warning() {
        let kill_group = Some(UnixGroup { name: "ops".to_owned(), gid: 7 });
        let group = Config { kill_group, ..Config::alone() };
        assert!(without_effect(&group).is_some_and(|why| why.contains("add allow-kill")));
        assert_eq!(without_effect(&Config { allow_kill: true, ..group }), None);
        assert_eq!(without_effect(&Config::alone()), None);
    }
}
