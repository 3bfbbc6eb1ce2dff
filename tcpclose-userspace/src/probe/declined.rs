//! The hooks, and the better backends that are not in use.

use std::fmt;

/// What the probe attaches to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// State changes of full sockets, and the fields read from them.
    State,
    /// Minisockets.
    TimeWait,
    /// The processes that hold a socket.
    Owners,
    /// Resets that the kernel sends.
    Reset,
    /// Segments that are sent again after a FIN.
    Retransmit,
    /// User stacks of armed processes.
    Stacks,
}

/// A better backend, or a part of one, that is not in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declined {
    pub hook: Hook,
    /// What was refused, why, and what that costs.
    pub reason: String,
}

impl fmt::Display for Declined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Everything that was declined while the probe was attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeclinedHooks(Vec<Declined>);

impl DeclinedHooks {
    pub fn push(&mut self, hook: Hook, reason: impl Into<String>) {
        self.0.push(Declined { hook, reason: reason.into() });
    }

    pub fn of(&self, hook: Hook) -> impl Iterator<Item = &Declined> {
        self.0.iter().filter(move |declined| declined.hook == hook)
    }

    /// Whether a better backend of `hook` was refused.
    pub fn degrades(&self, hook: Hook) -> bool {
        self.of(hook).next().is_some()
    }

    /// All reasons of `hook` in one line.
    pub(super) fn joined(&self, hook: Hook) -> String {
        self.of(hook).map(|declined| declined.reason.as_str()).collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_reset_hook_degrades_no_other_hook() {
        let mut declined = DeclinedHooks::default();
        declined.push(Hook::Reset, "tcp_send_reset: no such tracepoint");
        assert!(declined.degrades(Hook::Reset));
        for hook in [Hook::State, Hook::TimeWait, Hook::Owners] {
            assert!(!declined.degrades(hook), "{hook:?}");
        }
        declined.push(Hook::State, "a");
        declined.push(Hook::State, "b");
        assert_eq!(declined.joined(Hook::State), "a; b");
        assert_eq!(declined.of(Hook::Reset).count(), 1);
    }
}
