//! What dumps cannot see, in words.

use std::collections::BTreeMap;

use crate::linux::host;
use crate::linux::host::Capability;
use crate::linux::netns::Scope;
use crate::report;

use crate::agent::namespaces::Namespaces;

/// Namespaces that are named one by one; of more, the number is given.
const MOST_NAMED: usize = 5;

impl Namespaces {
    /// Namespaces that the last round was not allowed to dump.
    pub fn refusals(&self) -> Vec<String> {
        let sockets = "sockets that are older than the agent";
        report::incomplete::not_inspected(sockets, self.refused as usize, self.denied as usize)
    }

    /// Namespaces that no search can find.
    pub fn unsearched(&self) -> Option<String> {
        (self.everywhere() && !host::has_cap(Capability::DacReadSearch)).then(|| {
            "network namespaces held open only by descriptors of other users' processes are not found: \
             CAP_DAC_READ_SEARCH is needed to see those"
                .to_owned()
        })
    }

    /// What the last round did not see. `elsewhere`: inodes of namespaces that are known by records only,
    /// with the number of requested sockets in each.
    pub fn incomplete(&self, elsewhere: &BTreeMap<u32, usize>) -> Vec<String> {
        let mut incomplete = self.refusals();
        incomplete.extend(self.unsearched());
        incomplete.extend(self.unread.clone());
        if elsewhere.is_empty() {
            return incomplete;
        }
        let sockets = match elsewhere.values().sum::<usize>() {
            0 => "sockets that are older than the agent may be".to_owned(),
            1 => "1 socket is".to_owned(),
            n => format!("{n} sockets are"),
        };
        let why = match self.scope {
            Scope::Current => "which --netns current leaves out",
            Scope::All if self.refused > 0 || self.denied > 0 => "which the agent is not allowed to enter",
            Scope::All => "to which no process, file in /run/netns, mount or descriptor leads",
        };
        let unknown = match elsewhere.values().any(|&n| n > 0) {
            true => "their queues and diagnosis are unknown, and older sockets there are missing",
            false => "they are missing",
        };
        incomplete.push(format!(
            "{sockets} in other network namespaces{}, {why}: {unknown}",
            named(elsewhere.keys().copied())
        ));
        incomplete
    }
}

/// The namespaces with these inodes, in brackets; without BTF none is known.
fn named(inums: impl Iterator<Item = u32>) -> String {
    let mut named: Vec<String> =
        inums.filter(|&inum| inum != 0).map(|inum| format!("net:[{inum}]")).collect();
    let more = named.len().saturating_sub(MOST_NAMED);
    if more > 0 {
        named.truncate(MOST_NAMED);
        named.push(format!("and {more} more"));
    }
    if named.is_empty() { String::new() } else { format!(" ({})", named.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_that_cannot_be_found_are_named() {
        let namespaces = Namespaces::new(Scope::All);
        let words = |elsewhere: &[(u32, usize)]| {
            namespaces.incomplete(&elsewhere.iter().copied().collect()).join("; ")
        };
        assert_eq!(words(&[]), "");
        assert_eq!(
            words(&[(4_026_532_001, 2), (4_026_532_008, 1)]),
            "3 sockets are in other network namespaces (net:[4026532001], net:[4026532008]), to which no process, file in \
             /run/netns, mount or descriptor leads: their queues and diagnosis are unknown, and older sockets there \
             are missing"
        );
        assert!(
            words(&[(7, 0)]).starts_with("sockets that are older than the agent may be in other network")
        );
        let many: Vec<(u32, usize)> = (1..=7).map(|inum| (inum, 0)).collect();
        assert!(words(&many).contains("net:[5], and 2 more)"));
    }
}
