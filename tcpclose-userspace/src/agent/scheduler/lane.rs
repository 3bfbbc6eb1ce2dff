//! The costs of dumps of one kind: of the host's namespace, or of the others.

use crate::agent::cpu_budget::CpuBudget;

/// Namespaces of one dump whose cost is remembered one by one: the most expensive.
const MOST_EXPENSIVE: usize = 4;

/// What the dump of one namespace has cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetnsCost {
    /// The namespace's id.
    pub id: u32,
    pub cpu_ns: u64,
    /// Sockets that the dump met there.
    pub met: u64,
}

/// Dumps of one kind.
#[derive(Clone, Debug, Default)]
pub struct Lane {
    budget: CpuBudget,
    /// End of the last one.
    pub over_ns: u64,
    /// Its cost, for which a pause is made: the most expensive namespaces, and all the others.
    pub expensive: Vec<NetnsCost>,
    rest_ns: u64,
    /// The usual cost of these dumps: no more than that counts.
    usual_ns: u64,
}

impl Lane {
    pub fn charge(&mut self, over_ns: u64, charges: &[NetnsCost]) {
        let all_ns = charges.iter().map(|charge| charge.cpu_ns).sum();
        self.over_ns = over_ns;
        self.usual_ns = self.budget.usual_ns(all_ns);
        self.expensive = charges.to_vec();
        self.expensive.sort_unstable_by_key(|charge| std::cmp::Reverse(charge.cpu_ns));
        self.expensive.truncate(MOST_EXPENSIVE);
        self.rest_ns = all_ns.saturating_sub(self.expensive.iter().map(|charge| charge.cpu_ns).sum());
    }

    pub fn cost_ns(&self) -> u64 {
        let all: u64 = self.expensive.iter().map(|charge| charge.cpu_ns).sum();
        (all + self.rest_ns).min(self.usual_ns)
    }

    /// Lowers the cost of a namespace that has `now` sockets left.
    pub fn shrank(&mut self, id: u32, now: u64) {
        for charge in self.expensive.iter_mut().filter(|charge| charge.id == id && now < charge.met) {
            let left = u128::from(charge.cpu_ns) * u128::from(now) / u128::from(charge.met);
            (charge.cpu_ns, charge.met) = (left as u64, now);
        }
        if now == 0 {
            self.expensive.retain(|charge| charge.id != id);
        }
    }
}
