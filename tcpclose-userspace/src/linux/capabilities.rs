//! The capabilities of this process, and how the agent gives them up.
//!
//! Capabilities are a thread's own, and a thread begins with those of the one that starts it (kernel/capability.c,
//! capset(); kernel/cred.c, copy_creds(), 5.8 to 6.18). So the agent's first thread drops capabilities before it starts
//! another, the threads of its pool drop theirs when they begin, and those that only the start needs are dropped by the
//! first thread, the only one to have them.

use std::io;
use std::thread;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

use crate::linux::host::Capability;

/// The capabilities that a search for owners needs: other users' executables, descriptors and namespaces.
const OWNERS: CapabilitySet = CapabilitySet::SYS_PTRACE.union(CapabilitySet::DAC_READ_SEARCH);

/// What is lost without each of those.
const LOST: [(Capability, &str); 2] = [
    (
        Capability::SysPtrace,
        "other users' executables are unknown, and so are sockets in the network namespaces of their processes",
    ),
    (
        Capability::DacReadSearch,
        "a walk over /proc misses other users' files, and a search for network namespaces misses those that only a descriptor \
         holds",
    ),
];

/// The capabilities that an agent keeps after its probe is attached, of those that it was started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptCapabilities {
    /// CAP_SYS_ADMIN, to enter other network namespaces, or a cgroup namespace that shows more.
    pub enter: bool,
    /// CAP_NET_ADMIN, to destroy sockets.
    pub kill: bool,
    /// The helper that names stacks gets what reading other users' processes takes.
    pub stacks: bool,
}

impl KeptCapabilities {
    /// Effective on every thread.
    fn working(self) -> CapabilitySet {
        if self.enter { OWNERS | CapabilitySet::SYS_ADMIN } else { OWNERS }
    }

    /// Permitted on the first thread, to pass on; it uses only the working ones itself.
    fn held(self) -> CapabilitySet {
        if self.kill { self.working() | CapabilitySet::NET_ADMIN } else { self.working() }
    }

    /// To be called by the first thread before it starts another. No program that it executes gains a capability, but for those of
    /// [`passing_on`]; CAP_NET_ADMIN is dropped unless sockets may be destroyed.
    pub fn begin(self) {
        // Only this program is executed, as a helper. A seccomp filter or a lack of CAP_SETPCAP can
        // refuse each of these.
        let _ = set_no_new_privs(true);
        let _ = clear_ambient_capability_set();
        // A helper that names stacks reads other users' processes.
        let passed_on = if self.stacks { OWNERS } else { CapabilitySet::empty() };
        for bit in (0..u64::BITS).filter(|bit| passed_on.bits() & 1 << bit == 0) {
            if remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)).is_err() {
                break;
            }
        }
        let all = CapabilitySet::all();
        let permitted = if self.kill { all } else { all - CapabilitySet::NET_ADMIN };
        limit(permitted, all - CapabilitySet::NET_ADMIN);
    }

    /// To be called by each other thread when it begins.
    pub fn on_thread(self) {
        limit(self.working(), self.working());
    }

    /// To be called by the first thread when the probe is attached. CAP_BPF stays if `works` returns that the maps cannot be
    /// read without it: before 5.19 every bpf() needs it where kernel.unprivileged_bpf_disabled is not 0
    /// (kernel/bpf/syscall.c, __sys_bpf()).
    pub fn settle(self, works: impl FnOnce() -> bool) {
        let maps = CapabilitySet::BPF;
        limit(self.held() | maps, self.working());
        if works() {
            limit(self.held(), self.working());
        } else {
            limit(self.held() | maps, self.working() | maps);
        }
    }
}

/// Drops `capability` on this thread and on those that it starts.
pub fn give_up(capability: Capability) {
    let rest = CapabilitySet::all() - set(capability);
    limit(rest, rest);
}

/// Drops all capabilities on this thread and on those that it starts; programs that it executes gain none.
///
/// # Errors
/// When a seccomp filter refuses that.
pub fn give_up_all() -> io::Result<()> {
    let none = CapabilitySet::empty();
    set_no_new_privs(true)?;
    // A seccomp filter can refuse it; what is not permitted is not ambient either (security/commoncap.c, cap_capset(),
    // 5.8 to 6.18).
    let _ = clear_ambient_capability_set();
    Ok(set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?)
}

/// Runs `work`, and lets the programs that it starts have what reading other users' processes takes, as far as this thread has
/// that.
pub fn passing_on<T>(work: impl FnOnce() -> T) -> T {
    let inheritable = |set: CapabilitySet| {
        let sets = capabilities(None)?;
        set_capabilities(None, CapabilitySets { inheritable: set & sets.permitted, ..sets })
    };
    // Each of these may be refused; then the helper says what it cannot read.
    let _ = inheritable(OWNERS);
    for bit in (0..u64::BITS).filter(|bit| OWNERS.bits() & 1 << bit != 0) {
        let _ = configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << bit), true);
    }
    let done = work();
    let _ = clear_ambient_capability_set();
    let _ = inheritable(CapabilitySet::empty());
    done
}

/// Drops all capabilities on this thread but those that reading other users' processes takes; programs that it executes gain
/// none.
///
/// # Errors
/// When a seccomp filter refuses that.
pub fn keep_for_reading_processes() -> io::Result<()> {
    set_no_new_privs(true)?;
    let _ = clear_ambient_capability_set();
    let kept = capabilities(None)?.permitted & OWNERS;
    let none = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: none })?)
}

/// Runs `work` on a thread of its own, on which all capabilities of the calling one are effective.
///
/// # Errors
/// When the thread cannot be started.
pub fn with_everything_held(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name("privileged".to_owned());
    thread.spawn(move || {
        limit(CapabilitySet::all(), CapabilitySet::all());
        work();
    })?;
    Ok(())
}

/// Whether this thread may use `capability`, effective or not.
pub fn holds(capability: Capability) -> bool {
    capabilities(None).is_ok_and(|sets| sets.permitted.contains(set(capability)))
}

/// The capabilities that this thread has, then a line per missing one with what is lost.
pub fn in_words() -> Vec<String> {
    let held: Vec<&str> =
        Capability::ALL.into_iter().filter(|&one| holds(one)).map(Capability::name).collect();
    let held = if held.is_empty() { "none".to_owned() } else { held.join(", ") };
    let missing = LOST.into_iter().filter(|(capability, _)| !holds(*capability));
    let missing = missing.map(|(capability, lost)| format!("without {}, {lost}", capability.name()));
    std::iter::once(held).chain(missing).collect()
}

const fn set(capability: Capability) -> CapabilitySet {
    CapabilitySet::from_bits_retain(1 << capability as u8)
}

/// Limits this thread to `permitted`, with `effective` in effect; programs that it executes inherit none.
fn limit(permitted: CapabilitySet, effective: CapabilitySet) {
    let limited = capabilities(None).and_then(|now| {
        let permitted = now.permitted & permitted;
        let effective = permitted & effective;
        set_capabilities(None, CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() })
    });
    // The kernel never refuses to drop capabilities; a seccomp filter may.
    if let Err(why) = limited {
        warn_once(why);
    }
}

/// Warns once, for the pool's threads come and go.
fn warn_once(why: Errno) {
    static WARNED: std::sync::Once = std::sync::Once::new();
    WARNED.call_once(|| {
        log::warn!("cannot drop capabilities: {} (a seccomp filter may refuse capset)", io::Error::from(why))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each on a thread of its own: what is given up is gone.
    fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| scope.spawn(work).join().unwrap())
    }

    fn sets() -> (CapabilitySet, CapabilitySet) {
        let now = capabilities(None).unwrap();
        (now.permitted, now.effective)
    }

    #[test]
    fn what_is_given_up_is_gone_and_nothing_comes_by_it() {
        let (before, _) = sets();
        let (kill, without) = (
            KeptCapabilities { enter: true, kill: true, stacks: true },
            KeptCapabilities { enter: false, kill: false, stacks: false },
        );
        for kept in [kill, without] {
            on_a_thread(|| {
                kept.begin();
                let (permitted, effective) = sets();
                assert_eq!(
                    permitted.contains(CapabilitySet::NET_ADMIN),
                    kept.kill && before.contains(CapabilitySet::NET_ADMIN)
                );
                assert!(!effective.contains(CapabilitySet::NET_ADMIN));
                kept.settle(|| true);
                assert_eq!(sets(), (before & kept.held(), before & kept.working()));
                assert_eq!(on_a_thread(sets), sets());
                on_a_thread(|| {
                    kept.on_thread();
                    assert_eq!(sets(), (before & kept.working(), before & kept.working()));
                });
                give_up(Capability::NetAdmin);
                assert!(!holds(Capability::NetAdmin));
            });
        }
        assert_eq!(sets().0, before);
    }

    #[test]
    fn who_gives_all_up_has_none_left() {
        on_a_thread(|| {
            give_up_all().unwrap();
            assert_eq!(sets(), (CapabilitySet::empty(), CapabilitySet::empty()));
        });
    }

    #[test]
    fn maps_that_cannot_be_read_without_it_keep_it() {
        let (before, _) = sets();
        let bpf = before & CapabilitySet::BPF;
        on_a_thread(|| {
            let kept = KeptCapabilities { enter: false, kill: false, stacks: false };
            kept.settle(|| {
                assert!(!sets().1.contains(CapabilitySet::BPF));
                false
            });
            assert_eq!(sets(), (before & OWNERS | bpf, before & OWNERS | bpf));
        });
    }

    #[test]
    fn only_who_destroys_has_it_in_effect() {
        let (before, _) = sets();
        on_a_thread(|| {
            let kept = KeptCapabilities { enter: false, kill: true, stacks: false };
            kept.begin();
            kept.settle(|| true);
            let (tell, reported) = std::sync::mpsc::channel();
            with_everything_held(move || tell.send(sets()).unwrap()).unwrap();
            assert_eq!(reported.recv().unwrap(), (before & kept.held(), before & kept.held()));
            assert!(!sets().1.contains(CapabilitySet::NET_ADMIN));
        });
    }

    #[test]
    fn what_is_missing_is_reported_with_what_is_lost() {
        on_a_thread(|| {
            limit(CapabilitySet::SYS_ADMIN, CapabilitySet::SYS_ADMIN);
            let words = in_words();
            assert_eq!(words.len(), 3, "{words:?}");
            assert!(words[1].starts_with("without CAP_SYS_PTRACE, other users' executables are unknown"));
            assert!(words[2].starts_with("without CAP_DAC_READ_SEARCH, "));
            assert!(["CAP_SYS_ADMIN", "none"].contains(&words[0].as_str()));
        });
    }
}
