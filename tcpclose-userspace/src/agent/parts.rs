//! The parts of a running agent. Each owns its data; a task gets those that it needs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::sync::Notify;

use crate::agent::config::Config;
use crate::agent::intervals::Intervals;
use crate::agent::kill_permission::KillPermission;
use crate::agent::looks::Looks;
use crate::agent::port_usage::PortUsage;
use crate::agent::reconcile_requests::ReconcileRequests;
use crate::agent::server::allowed_hosts::AllowedHost;
use crate::agent::stacks::Stacks;
use crate::agent::tracking::Tracking;
use crate::metrics::rates::RateHistory;
use crate::report::owner_counts::StuckCounts;

#[derive(Clone)]
pub struct Parts {
    pub tracking: Rc<RefCell<Tracking>>,
    pub intervals: Rc<Intervals>,
    pub reconcile_requests: Rc<ReconcileRequests>,
    pub kill: Rc<KillPermission>,
    /// Counters of the last minute.
    pub rates: Rc<RefCell<RateHistory>>,
    pub port_usage: Rc<RefCell<PortUsage>>,
    /// As of the last owner scan.
    pub stuck_counts: Rc<RefCell<StuckCounts>>,
    pub stacks: Rc<RefCell<Stacks>>,
    /// Wakes the task that takes stacks.
    pub stacks_wake: Rc<Notify>,
    pub looks: Looks,
    /// `--allowed-host`.
    pub allowed_hosts: Rc<RefCell<Vec<AllowedHost>>>,
    /// A `--web-config` file is wrong, and its former content is in use.
    pub web_config_wrong: Rc<Cell<bool>>,
}

impl Parts {
    pub fn new(tracking: Tracking, config: &Config, web_config_wrong: Rc<Cell<bool>>) -> Self {
        Self {
            tracking: Rc::new(RefCell::new(tracking)),
            intervals: Rc::new(Intervals::of(config)),
            reconcile_requests: Rc::default(),
            kill: Rc::new(KillPermission::of(config)),
            rates: Rc::default(),
            port_usage: Rc::default(),
            stuck_counts: Rc::default(),
            stacks: Rc::new(RefCell::new(Stacks::new(config.arming_rule()))),
            stacks_wake: Rc::default(),
            looks: Looks::default(),
            allowed_hosts: Rc::new(RefCell::new(config.allowed_hosts.clone())),
            web_config_wrong,
        }
    }
}
