//! Where a test runs: a network namespace and ports of its own.

use super::place::Netns;

/// Outside the local port range, away from other tests' ports, and different for runs side by side: a state hook sees
/// every network namespace.
pub fn first_port(offset: u16) -> u16 {
    12_000 + (std::process::id() % 500) as u16 * 16 + offset
}

/// Runs `test` in a network namespace that goes with it.
pub fn in_a_namespace(sysctls: &[(&str, &str)], test: impl FnOnce() + Send) {
    let netns = Netns::new(sysctls).unwrap();
    let run = || {
        netns.enter().unwrap();
        test();
    };
    let done = std::thread::scope(|scope| scope.spawn(run).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
