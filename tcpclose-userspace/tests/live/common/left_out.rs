//! How often the kernel has not run agents' programs, by its own counts and not by what agents say: whoever holds an
//! agent's word against the truth can then tell what no agent can know from what ours forgot.
//!
//! A program is left out where it would run again on a CPU in the middle of itself: that is counted for fentry and fexit
//! (kernel/bpf/trampoline.c, __bpf_prog_enter_recur(); since 5.12) and for tp_btf (kernel/trace/bpf_trace.c,
//! __bpf_trace_run(); since 6.1, earlier it runs). The classic tracepoint's is left out when any program of a perf event
//! runs on that CPU, or a map is written (kernel/trace/bpf_trace.c, trace_call_bpf(), bpf_prog_active), and only since 6.7
//! is that counted. Before, the miss shows beside an agent at the tp_btf backend: what that one's program was called for and
//! the other's never ran for. On a machine of its own a program takes a microsecond or less, and none of this is ever
//! seen; an emulated one takes a hundred times that, and several agents' programs run one after the other.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use tcpclose::probe::prog_stats::ProgramStats;

use crate::common::Agent;

/// The state hook's programs, as far as the kernel keeps names (BPF_OBJ_NAME_LEN).
const BTF: &str = "set_state_btf";
const CLASSIC: &str = "set_state_trace";

/// The kernel's counts of several agents' programs, from a moment on.
pub struct Witness {
    agents: Vec<Programs>,
    /// As they were at that moment.
    before: Vec<Counts>,
    /// The kernel counts runs for as long as this is open.
    _counting: OwnedFd,
}

/// Where the kernel tells of one agent's programs.
struct Programs {
    classic: bool,
    state: PathBuf,
    all: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    classic: bool,
    /// How often the state hook's program ran, and how often it was left out, as far as that is counted.
    state: ProgramStats,
    /// How often any of its programs was left out, as far as that is counted.
    missed: u64,
}

impl Witness {
    /// Begins to count for agents, all of which are attached.
    pub fn begin<'a>(agents: impl IntoIterator<Item = &'a Agent>) -> Self {
        let counting = enable_stats(Stats::RunTime).unwrap();
        // Another's may be unloaded meanwhile.
        let named = loaded_programs().flatten();
        let names: BTreeMap<u32, String> = named
            .map(|program| (program.id(), program.name_as_str().unwrap_or_default().to_owned()))
            .collect();
        let agents = agents.into_iter().map(|agent| Programs::of(agent, &names)).collect();
        let mut witness = Self { agents, before: Vec::new(), _counting: counting };
        witness.before = witness.look();
        witness
    }

    /// How many events each agent was not told of since then: at least so many, and exactly so many where nothing else
    /// happens on the machine.
    pub fn left_out(&self) -> Vec<u64> {
        let grown: Vec<Counts> =
            self.look().into_iter().zip(&self.before).map(|(now, before)| now.since(*before)).collect();
        let events = grown.iter().filter(|agent| !agent.classic).map(Counts::called).max();
        grown.iter().map(|agent| agent.left_out(events.filter(|_| !counts()))).collect()
    }

    /// One look at all agents' counts, in which nothing ran between the first and the last: programs are read one after
    /// the other. Where things never stand still, some look.
    fn look(&self) -> Vec<Counts> {
        let look = || self.agents.iter().map(Programs::counts).collect::<Vec<_>>();
        let mut last = look();
        for _ in 0..50 {
            let next = look();
            if next == last {
                break;
            }
            last = next;
        }
        last
    }
}

impl Programs {
    fn of(agent: &Agent, names: &BTreeMap<u32, String>) -> Self {
        let all = ProgramStats::files(agent.pid()).unwrap();
        let named = |name| all.iter().find(|(id, _)| names.get(id).is_some_and(|has| has == name));
        let (classic, (_, state)) = match (named(BTF), named(CLASSIC)) {
            (Some(state), None) => (false, state),
            (None, Some(state)) => (true, state),
            _ => panic!("an agent has one program on the state hook, not those of {all:?}"),
        };
        Self { classic, state: state.clone(), all: all.into_values().collect() }
    }

    fn counts(&self) -> Counts {
        let read = |file: &PathBuf| ProgramStats::parse(&fs::read_to_string(file).unwrap());
        Counts {
            classic: self.classic,
            state: read(&self.state),
            missed: self.all.iter().map(read).map(|runs| runs.missed).sum(),
        }
    }
}

impl Counts {
    fn since(self, before: Self) -> Self {
        let state = ProgramStats {
            count: self.state.count - before.state.count,
            ns: self.state.ns - before.state.ns,
            missed: self.state.missed - before.state.missed,
        };
        Self { state, missed: self.missed - before.missed, ..self }
    }

    /// How many events its program was called for, ran or not.
    fn called(&self) -> u64 {
        self.state.count + self.state.missed
    }

    /// How many events it was not told of; `events`: how many there were, where the kernel does not count what it leaves
    /// out of the classic tracepoint.
    fn left_out(&self, events: Option<u64>) -> u64 {
        let uncounted = events.filter(|_| self.classic).unwrap_or(0).saturating_sub(self.called());
        self.missed + uncounted
    }
}

/// Whether this kernel counts all that it leaves out.
pub fn counts() -> bool {
    since_6_7(&rustix::system::uname().release().to_string_lossy())
}

/// Whether trace_call_bpf() of this release counts what it leaves out.
fn since_6_7(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (6, 7),
        _ => panic!("{release} is no release of Linux"),
    }
}

#[test]
fn what_the_kernel_does_not_count_is_what_the_other_backend_was_called_for() {
    let counts =
        |classic, count, missed| Counts { classic, state: ProgramStats { count, ns: 0, missed }, missed };
    assert_eq!(counts(true, 98, 0).left_out(Some(100)), 2);
    assert_eq!(counts(true, 100, 0).left_out(Some(100)), 0);
    assert_eq!(counts(true, 98, 2).left_out(None), 2);
    assert_eq!(counts(false, 97, 3).left_out(Some(100)), 3);
    assert_eq!(counts(false, 97, 3).called(), 100);
    assert!(
        !since_6_7("6.1.0-56-cloud-amd64") && !since_6_7("5.15.0") && since_6_7("6.12.117+deb12-cloud-amd64")
    );
    assert!(since_6_7("6.7-rc1") && since_6_7("7.0.0"));
}
