//! Which dump is due when. Pure: the clock is an argument.
//!
//! The host's own network namespace and all others have a budget each, so the host's is dumped at its own
//! interval, however many others there are and whatever is in them. All dumps together aim at two thirds of 1
//! % of a core; the rest of the 1 % is for the ring's timer, the state file and the search for namespaces. No
//! pause is longer than `--reconcile-max`: beyond that, fresh numbers win over the budget.

mod lane;

use std::time::Duration;

use crate::agent::cpu_budget::SHARE;
use crate::agent::scheduler::lane::Lane;

pub use crate::agent::scheduler::lane::NetnsCost;

/// The CPU time after which the rest of a dump's namespaces wait for the next one.
pub const SLICE: Duration = Duration::from_millis(50);

const SECOND_NS: u64 = 1_000_000_000;
/// The kernel has one table of connections, so sockets of others delay the host's own dump; no longer than
/// this ...
const OTHERS_DELAY_NS: u64 = 3 * SECOND_NS;
/// ... unless its dumps would then take more than a thirtieth of a core.
const LEAST_SHARE: u64 = 30;
/// A socket that a dump meets costs about this much (6.18); the rest is the walk over what others have.
const SOCKET_NS: u64 = 1500;
/// Pause between two slices of a round that is late.
const HURRY_NS: u64 = 50_000_000;
/// During a longer pause the namespaces that made it long are checked: they may be gone.
const LONG_NS: u64 = 2 * SECOND_NS;
/// How often that is.
const TICK_NS: u64 = SECOND_NS;
/// The longest rest while nothing is tracked and no record comes.
const REST_NS: u64 = 10 * SECOND_NS;
/// Between two warnings that dumps exceed the budget.
const WARN_AGAIN_NS: u64 = 600 * SECOND_NS;

/// Bounds that the user has set.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `--dump-interval`: the shortest pause between two dumps of one kind.
    pub interval_ns: u64,
    /// `--reconcile-max`.
    pub max_ns: u64,
}

/// Work that is left in other namespaces than the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// CPU time that it will take, as far as is known.
    pub cpu_ns: u64,
    /// The slices that this makes.
    pub slices: u64,
    /// CLOCK_MONOTONIC of the oldest dump that is to be repeated.
    pub since_ns: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Scheduler {
    host: Lane,
    others: Lane,
    /// CPU time besides their own that the dumps of others pause for: dumps of the host's, and port usage.
    owed_ns: u64,
    backlog: Option<Backlog>,
    /// There is nothing to dump before then.
    host_idle_ns: u64,
    others_idle_ns: u64,
    /// Beginning of the last round of the reconcile.
    reconciled_ns: u64,
    /// Records were lost since the last round began, and before that.
    lost: bool,
    lost_before: bool,
    /// The last turn of others was a slice of a round.
    was_round: bool,
    /// A rest has been made since the last dump.
    rested: bool,
    warned_ns: Option<u64>,
}

/// The state of the agent that decides what is due.
#[derive(Clone, Copy, Debug)]
pub struct Inputs {
    pub limits: Limits,
    /// `--reconcile-interval`.
    pub reconcile_ns: u64,
    /// A user waits for a reconcile.
    pub requested: bool,
    /// No socket is tracked.
    pub idle: bool,
    /// A round of the reconcile is under way.
    pub in_round: bool,
    /// A dump has left absences that were not looked up.
    pub unsettled: bool,
    /// No search for namespaces is worth waiting for.
    pub search_settled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wait so many nanoseconds, or until sockets are tracked or a request arrives. An idle host is not woken
    /// for nothing.
    Rest(u64),
    /// Wait so many nanoseconds, or until the search for namespaces ends or a request arrives.
    Wait(u64),
    /// Dumps are due: of the host's namespace, of the others, or of both.
    Dump { host: bool, others: bool },
}

/// What to dump when the others are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OthersTurn {
    /// The next slice of the round.
    RoundSlice,
    /// The namespaces that need it.
    Targets,
    Nothing,
}

/// Whose turn a dump was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Host,
    Others,
}

impl Scheduler {
    /// `now_ns`: the first dumps are complete.
    pub fn new(now_ns: u64) -> Self {
        Self { reconciled_ns: now_ns, ..Self::default() }
    }

    /// What to do at `now_ns`.
    pub fn next(&mut self, now_ns: u64, inputs: &Inputs) -> Action {
        let in_hand = self.lost || inputs.unsettled || inputs.in_round || inputs.requested;
        if inputs.idle && !in_hand && !std::mem::replace(&mut self.rested, true) {
            let until_round = self.reconciled_ns.saturating_add(inputs.reconcile_ns).saturating_sub(now_ns);
            return Action::Rest(until_round.min(REST_NS));
        }
        let (host_ns, others_ns) = (self.host_due_ns(inputs.limits), self.others_due_ns(inputs.limits));
        let left = host_ns.min(others_ns).saturating_sub(now_ns);
        if left > 0 && !(inputs.requested && inputs.search_settled) {
            return Action::Wait(left.min(TICK_NS));
        }
        self.rested = false;
        Action::Dump {
            host: inputs.requested && !inputs.in_round || now_ns >= host_ns,
            others: inputs.requested || now_ns >= others_ns,
        }
    }

    /// Whether a round of the reconcile is to begin at `now_ns`. `new_namespace`: sockets are in one that no
    /// search has found yet.
    pub fn is_round_due(&self, now_ns: u64, inputs: &Inputs, new_namespace: impl FnOnce() -> bool) -> bool {
        !inputs.in_round
            && (inputs.requested || self.lost || self.is_overdue(now_ns, inputs) || new_namespace())
    }

    /// Whether that round goes over the known namespaces if there is no result of a search.
    pub fn may_use_known(&self, now_ns: u64, inputs: &Inputs) -> bool {
        inputs.search_settled && (inputs.requested || self.is_overdue(now_ns, inputs))
    }

    fn is_overdue(&self, now_ns: u64, inputs: &Inputs) -> bool {
        now_ns.saturating_sub(self.reconciled_ns) >= inputs.reconcile_ns
    }

    /// A round begins. `searched`: over the result of a search; without one it cannot prove that a lost
    /// socket is gone.
    pub fn round_begins(&mut self, now_ns: u64, searched: bool) {
        self.reconciled_ns = now_ns;
        self.lost_before = searched && std::mem::take(&mut self.lost);
        self.was_round = true;
    }

    /// Whether records were lost before the round began.
    pub fn lost_before_round(&self) -> bool {
        self.lost_before
    }

    /// A slice of the round failed, and the round with it.
    pub fn round_failed(&mut self) {
        self.lost |= self.lost_before;
    }

    /// Records were lost: a round is due.
    pub fn records_lost(&mut self) {
        self.lost = true;
    }

    /// Decides the turn of the others. Slices of a round and dumps of `targets` alternate, unless a user
    /// waits.
    pub fn others_turn(&mut self, inputs: &Inputs, targets: bool) -> OthersTurn {
        self.was_round = inputs.in_round && (inputs.requested || !(self.was_round && targets));
        match (self.was_round, targets) {
            (true, _) => OthersTurn::RoundSlice,
            (false, true) => OthersTurn::Targets,
            (false, false) => OthersTurn::Nothing,
        }
    }

    /// A dump ended at `now_ns`. `host`: the id of the host's namespace. Returns whether the dump was of that
    /// one alone.
    pub fn dump_done(
        &mut self,
        now_ns: u64,
        limits: Limits,
        turn: Turn,
        host: Option<u32>,
        charges: &[NetnsCost],
    ) -> bool {
        self.charge(now_ns, host, charges);
        let is_host = |charge: &NetnsCost| Some(charge.id) == host;
        let host_alone = charges.iter().all(is_host);
        if turn == Turn::Host && !charges.iter().any(is_host) {
            self.idle_host(now_ns, limits);
        }
        if turn == Turn::Others && host_alone {
            self.idle_others(now_ns, limits);
        }
        host_alone
    }

    /// Whether to warn at `now_ns` that dumps exceed the budget.
    pub fn is_warning_due(&mut self, now_ns: u64, limits: Limits) -> bool {
        let recent = self.warned_ns.is_some_and(|at| now_ns.saturating_sub(at) < WARN_AGAIN_NS);
        let due = self.is_over_budget(limits) && !recent;
        if due {
            self.warned_ns = Some(now_ns);
        }
        due
    }

    fn host_due_ns(&self, limits: Limits) -> u64 {
        (self.host.over_ns + self.host_pause_ns(limits)).max(self.host_idle_ns)
    }

    fn host_pause_ns(&self, Limits { interval_ns, max_ns }: Limits) -> u64 {
        let cost = self.host.cost_ns();
        let met: u64 = self.host.expensive.iter().map(|charge| charge.met).sum();
        let own = met.saturating_mul(SOCKET_NS).min(cost);
        let delay = (cost - own).saturating_mul(SHARE.into()).min(OTHERS_DELAY_NS);
        let pause = own.saturating_mul(SHARE.into()).saturating_add(delay);
        pause.max(cost.saturating_mul(LEAST_SHARE)).min(max_ns).max(interval_ns)
    }

    fn others_due_ns(&self, limits: Limits) -> u64 {
        (self.others.over_ns + self.others_pause_ns(limits)).max(self.others_idle_ns)
    }

    fn others_pause_ns(&self, Limits { interval_ns, max_ns }: Limits) -> u64 {
        let budget = self.others_budget_ns().min(max_ns);
        let Some(backlog) = self.backlog else { return budget.max(interval_ns) };
        // The last slice must be complete before the oldest number is too old.
        let left = backlog.since_ns.saturating_add(max_ns).saturating_sub(self.others.over_ns);
        let left = left.saturating_sub(backlog.cpu_ns);
        let hurried = left / backlog.slices.max(1);
        if hurried < budget { hurried.max(HURRY_NS) } else { budget.max(interval_ns) }
    }

    fn others_budget_ns(&self) -> u64 {
        self.others.cost_ns().saturating_add(self.owed_ns).saturating_mul(SHARE.into())
    }

    /// The longest pause at present.
    pub fn pause_ns(&self, limits: Limits) -> u64 {
        self.host_pause_ns(limits).max(self.others_pause_ns(limits))
    }

    /// Whether dumps exceed their share of a core, so that no number is older than it may be.
    pub fn is_over_budget(&self, limits: Limits) -> bool {
        // A third more than the share is still 1 %.
        let over = |pause: u64, cost: u64| cost.saturating_mul(u64::from(SHARE) * 2 / 3) > pause;
        over(self.host_pause_ns(limits), self.host.cost_ns())
            || over(self.others_pause_ns(limits), self.others.cost_ns())
    }

    /// Charges a dump that ended at `now_ns`. `host`: the id of the host's namespace.
    fn charge(&mut self, now_ns: u64, host: Option<u32>, charges: &[NetnsCost]) {
        let (of_host, of_others): (Vec<NetnsCost>, Vec<NetnsCost>) =
            charges.iter().partition(|charge| Some(charge.id) == host);
        if !of_others.is_empty() {
            self.owed_ns = 0;
            self.others.charge(now_ns, &of_others);
        }
        if !of_host.is_empty() {
            self.owed_ns = self.owed_ns.saturating_add(of_host.iter().map(|charge| charge.cpu_ns).sum());
            self.host.charge(now_ns, &of_host);
        }
    }

    /// A dump that failed at `now_ns` is repeated after the interval.
    pub fn dump_failed(&mut self, now_ns: u64, limits: Limits) {
        self.idle_host(now_ns, limits);
        self.idle_others(now_ns, limits);
    }

    /// Charges `cpu_ns` of other work.
    pub fn charge_other(&mut self, cpu_ns: u64) {
        self.owed_ns = self.owed_ns.saturating_add(cpu_ns);
    }

    /// Sets what is left of the dumps of others.
    pub fn set_backlog(&mut self, backlog: Option<Backlog>) {
        self.backlog = backlog;
    }

    /// There was nothing to dump in the host's namespace.
    pub fn idle_host(&mut self, now_ns: u64, Limits { interval_ns, .. }: Limits) {
        self.host_idle_ns = now_ns.saturating_add(interval_ns);
    }

    pub fn idle_others(&mut self, now_ns: u64, Limits { interval_ns, .. }: Limits) {
        self.others_idle_ns = now_ns.saturating_add(interval_ns);
        // Without dumps of others, the host's have the share to themselves.
        self.owed_ns = 0;
    }

    /// The namespaces that make a pause long, with the sockets that a dump met there: the caller checks
    /// whether these are still there.
    pub fn expensive(&self, limits: Limits) -> Vec<NetnsCost> {
        let mut expensive = Vec::new();
        if self.host_pause_ns(limits) > LONG_NS {
            expensive.extend(&self.host.expensive);
        }
        if self.others_pause_ns(limits) > LONG_NS {
            expensive.extend(&self.others.expensive);
        }
        expensive
    }

    /// A namespace has `now` sockets left; 0 if it is gone.
    pub fn shrank(&mut self, id: u32, now: u64) {
        self.host.shrank(id, now);
        self.others.shrank(id, now);
    }
}

/// Orders work of several users so that each gets the same share. `items`: (user, cost, work), in the order
/// of each user's own work.
pub fn in_turn<T>(items: Vec<(u32, u64, T)>) -> Vec<T> {
    let mut spent = std::collections::HashMap::new();
    let mut keyed: Vec<(u64, T)> = items
        .into_iter()
        .map(|(user, cost, work)| {
            let before: &mut u64 = spent.entry(user).or_default();
            let key = *before;
            *before = key.saturating_add(cost.max(1));
            (key, work)
        })
        .collect();
    keyed.sort_by_key(|(key, _)| *key);
    keyed.into_iter().map(|(_, work)| work).collect()
}

#[cfg(test)]
mod tests;
