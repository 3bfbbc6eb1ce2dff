//! When which dump is due. Pure: the clock is an argument.
//!
//! The host's own network namespace and all others have a pace each, so that however many others there are, and whatever
//! is in them, the host's is dumped at its own interval. All dumps together aim at two thirds of 1 % of a core; the
//! rest of the one percent is for the ring's timer, the state file and the search for namespaces. No pause is longer than
//! `--reconcile-max`: beyond that freshness wins over the budget.

use crate::agent::cpu_budget::{CpuBudget, SHARE};

const SECOND_NS: u64 = 1_000_000_000;
/// By what others have in the kernel's one table of connections they delay the host's own dump no longer than this ...
const OTHERS_DELAY_NS: u64 = 3 * SECOND_NS;
/// ... unless its dumps would then take more than a thirtieth of a core.
const LEAST_SHARE: u64 = 30;
/// A socket that a dump meets costs about this much (6.18); the rest is the walk over what others have.
const SOCKET_NS: u64 = 1500;
/// Between two slices of a round that has to hurry.
const HURRY_NS: u64 = 50_000_000;
/// A pause that is longer is worth a look at whether what made it long is still there.
const LONG_NS: u64 = 2 * SECOND_NS;
/// Namespaces of one dump whose cost is remembered one by one: the dearest.
const DEAREST: usize = 4;

/// What the user has asked for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `--dump-interval`: no dump of one kind comes sooner after another.
    pub interval_ns: u64,
    /// `--reconcile-max`.
    pub max_ns: u64,
}

/// What a namespace's part of a dump has cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// What identifies the namespace.
    pub id: u32,
    pub cpu_ns: u64,
    /// Sockets that the dump met there.
    pub met: u64,
}

/// Dumps of one kind.
#[derive(Clone, Debug, Default)]
struct Lane {
    pace: CpuBudget,
    /// When the last one was over.
    over_ns: u64,
    /// What it is to cost in pauses: the dearest namespaces, and all the others.
    dearest: Vec<Charge>,
    rest_ns: u64,
    /// No more than that counts: what dumps cost as a rule.
    usual_ns: u64,
}

impl Lane {
    fn took(&mut self, over_ns: u64, charges: &[Charge]) {
        let all_ns = charges.iter().map(|charge| charge.cpu_ns).sum();
        self.over_ns = over_ns;
        self.usual_ns = self.pace.usual_ns(all_ns);
        self.dearest = charges.to_vec();
        self.dearest.sort_unstable_by_key(|charge| std::cmp::Reverse(charge.cpu_ns));
        self.dearest.truncate(DEAREST);
        self.rest_ns = all_ns.saturating_sub(self.dearest.iter().map(|charge| charge.cpu_ns).sum());
    }

    fn cost_ns(&self) -> u64 {
        let all: u64 = self.dearest.iter().map(|charge| charge.cpu_ns).sum();
        (all + self.rest_ns).min(self.usual_ns)
    }

    /// Takes in how many sockets are in a namespace now: what it cost, it would cost no more.
    fn shrank(&mut self, id: u32, now: u64) {
        for charge in self.dearest.iter_mut().filter(|charge| charge.id == id && now < charge.met) {
            let left = u128::from(charge.cpu_ns) * u128::from(now) / u128::from(charge.met);
            (charge.cpu_ns, charge.met) = (left as u64, now);
        }
        if now == 0 {
            self.dearest.retain(|charge| charge.id != id);
        }
    }
}

/// What is left to do in other namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// CPU time that it will take, as far as is known.
    pub cpu_ns: u64,
    /// The slices of dumps that this makes.
    pub slices: u64,
    /// CLOCK_MONOTONIC of the oldest of the dumps that are to be made again.
    pub since_ns: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Scheduler {
    host: Lane,
    others: Lane,
    /// CPU time besides their own that the dumps of others pause for: the host's, and looks at the ports in use.
    owed_ns: u64,
    backlog: Option<Backlog>,
    /// Nothing was to be done until then.
    host_idle_ns: u64,
    others_idle_ns: u64,
}

impl Scheduler {
    pub fn host_due_ns(&self, limits: Limits) -> u64 {
        (self.host.over_ns + self.host_pause_ns(limits)).max(self.host_idle_ns)
    }

    fn host_pause_ns(&self, Limits { interval_ns, max_ns }: Limits) -> u64 {
        let cost = self.host.cost_ns();
        let met: u64 = self.host.dearest.iter().map(|charge| charge.met).sum();
        let own = met.saturating_mul(SOCKET_NS).min(cost);
        let delay = (cost - own).saturating_mul(SHARE.into()).min(OTHERS_DELAY_NS);
        let pause = own.saturating_mul(SHARE.into()).saturating_add(delay);
        pause.max(cost.saturating_mul(LEAST_SHARE)).min(max_ns).max(interval_ns)
    }

    pub fn others_due_ns(&self, limits: Limits) -> u64 {
        (self.others.over_ns + self.others_pause_ns(limits)).max(self.others_idle_ns)
    }

    fn others_pause_ns(&self, Limits { interval_ns, max_ns }: Limits) -> u64 {
        let budget = self.others_budget_ns().min(max_ns);
        let Some(backlog) = self.backlog else { return budget.max(interval_ns) };
        // So that the last slice is in before the oldest number is too old.
        let left = backlog.since_ns.saturating_add(max_ns).saturating_sub(self.others.over_ns);
        let left = left.saturating_sub(backlog.cpu_ns);
        let hurried = left / backlog.slices.max(1);
        if hurried < budget { hurried.max(HURRY_NS) } else { budget.max(interval_ns) }
    }

    fn others_budget_ns(&self) -> u64 {
        self.others.cost_ns().saturating_add(self.owed_ns).saturating_mul(SHARE.into())
    }

    /// The longest pause of now.
    pub fn pause_ns(&self, limits: Limits) -> u64 {
        self.host_pause_ns(limits).max(self.others_pause_ns(limits))
    }

    /// Whether dumps take more than their share of a core, so that no number is older than it may be.
    pub fn is_over_budget(&self, limits: Limits) -> bool {
        // A third more than the share is still 1 %.
        let over = |pause: u64, cost: u64| cost.saturating_mul(u64::from(SHARE) * 2 / 3) > pause;
        over(self.host_pause_ns(limits), self.host.cost_ns())
            || over(self.others_pause_ns(limits), self.others.cost_ns())
    }

    /// A dump was over at `now_ns`. `host`: what identifies the host's namespace.
    pub fn took(&mut self, now_ns: u64, host: Option<u32>, charges: &[Charge]) {
        let (of_host, of_others): (Vec<Charge>, Vec<Charge>) =
            charges.iter().partition(|charge| Some(charge.id) == host);
        if !of_others.is_empty() {
            self.owed_ns = 0;
            self.others.took(now_ns, &of_others);
        }
        if !of_host.is_empty() {
            self.owed_ns = self.owed_ns.saturating_add(of_host.iter().map(|charge| charge.cpu_ns).sum());
            self.host.took(now_ns, &of_host);
        }
    }

    /// A dump that failed at `now_ns` is tried again after the interval.
    pub fn failed(&mut self, now_ns: u64, limits: Limits) {
        self.idle_host(now_ns, limits);
        self.idle_others(now_ns, limits);
    }

    /// Other looks have taken `cpu_ns`.
    pub fn owes(&mut self, cpu_ns: u64) {
        self.owed_ns = self.owed_ns.saturating_add(cpu_ns);
    }

    /// What is left of the dumps of others.
    pub fn set_backlog(&mut self, backlog: Option<Backlog>) {
        self.backlog = backlog;
    }

    /// There was nothing to dump.
    pub fn idle_host(&mut self, now_ns: u64, Limits { interval_ns, .. }: Limits) {
        self.host_idle_ns = now_ns.saturating_add(interval_ns);
    }

    pub fn idle_others(&mut self, now_ns: u64, Limits { interval_ns, .. }: Limits) {
        self.others_idle_ns = now_ns.saturating_add(interval_ns);
        // In a time without dumps others have the share to themselves.
        self.owed_ns = 0;
    }

    /// The namespaces that make a pause long, and how many sockets a dump met there: whether they are still there is worth
    /// a look.
    pub fn dearest(&self, limits: Limits) -> Vec<Charge> {
        let mut dearest = Vec::new();
        if self.host_pause_ns(limits) > LONG_NS {
            dearest.extend(&self.host.dearest);
        }
        if self.others_pause_ns(limits) > LONG_NS {
            dearest.extend(&self.others.dearest);
        }
        dearest
    }

    /// So many sockets are in a namespace now; 0 also when it is gone.
    pub fn shrank(&mut self, id: u32, now: u64) {
        self.host.shrank(id, now);
        self.others.shrank(id, now);
    }
}

/// Puts work of several users in an order in which each gets the same share: `items` are (user, cost, what), for each
/// user in the order in which that one's are to be done.
pub fn in_turn<T>(items: Vec<(u32, u64, T)>) -> Vec<T> {
    let mut spent = std::collections::HashMap::new();
    let mut keyed: Vec<(u64, T)> = items
        .into_iter()
        .map(|(user, cost, what)| {
            let before: &mut u64 = spent.entry(user).or_default();
            let key = *before;
            *before = key.saturating_add(cost.max(1));
            (key, what)
        })
        .collect();
    keyed.sort_by_key(|(key, _)| *key);
    keyed.into_iter().map(|(_, what)| what).collect()
}

#[cfg(test)]
mod tests;
