//! The series of owners, which have names that processes choose.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use super::common::Agent;
use super::stage::{self, Child, NAME_FILE, helper};
use super::{Named, PATIENCE};

/// What one user's processes may have within an hour: eight, the last of which is `other`.
const OF_ONE: usize = 8;

/// An unprivileged user's program takes a new name before each scan: after its eighth series it is counted as `other`.
#[test]
#[ignore = "needs root"]
fn a_process_that_renames_itself_makes_few_series() {
    Named::new("renamed").inside(|| {
        let _alone = stage::alone();
        let agent = Agent::start(&["--stuck-after", "1s", "--owner-interval", "200ms", "--netns", "current"]);
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let file = folder.path().join("name");
        let own = std::process::id();
        let named = |nth: usize| format!("n{nth}-{own}");
        fs::write(&file, named(0)).unwrap();
        let null = fs::File::open("/dev/null").unwrap();
        let mut renamed = Child::holding(helper("renamed").env(NAME_FILE, &file), &null);
        renamed.until_it_says("leaks");
        let seen = RefCell::new(BTreeSet::new());
        for nth in 0..2 * OF_ONE {
            let name = named(nth);
            // Whole: the program reads it at any moment.
            let next = folder.path().join("next");
            fs::write(&next, &name).unwrap();
            fs::rename(&next, &file).unwrap();
            agent.metrics_when(PATIENCE, &name, |metrics| {
                // This process, which asks, may be too slow to close what the agent has closed.
                let is_theirs = |comm: &str| comm == "other" || comm.ends_with(&format!("-{own}"));
                let counts: Vec<(String, f64)> = metrics
                    .select("tcpclose_stuck_owner_sockets", &[])
                    .map(|(labels, n)| (labels["comm"].clone(), n))
                    .filter(|(comm, _)| is_theirs(comm))
                    .collect();
                seen.borrow_mut().extend(counts.iter().map(|(comm, _)| comm.clone()));
                counts == [(name.clone(), 1.0)] || counts == [("other".to_owned(), 1.0)]
            });
        }
        let seen = seen.into_inner();
        assert!(seen.contains(&named(0)) && seen.contains("other"), "{seen:?}");
        assert!(seen.len() <= OF_ONE, "{seen:?}");
    });
}
