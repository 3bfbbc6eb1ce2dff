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

impl KillPermission {
    pub fn of(config: &Config) -> Self {
        Self {
            allowed: Cell::new(config.allow_kill),
            group: RefCell::new(config.kill_group.clone()),
            places: RefCell::default(),
        }
    }
}
