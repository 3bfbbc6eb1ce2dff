//! Probe, tracker and metrics: what happened to every socket, from records and dumps. Used on one thread.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use tcpclose_common::control::Counters;
use tcpclose_common::event::Record;
use tcpclose_common::state::{CLOSE_PHASE, TcpState};
use tokio::sync::Notify;

use crate::linux::age::{proven_age, write_look};
use crate::linux::host;
use crate::linux::netns::{FoundNetns, NetnsPath};
use crate::linux::netns_dump::{DumpRequest, EnteredNetns, NetnsChunk, NetnsDumps};
use crate::linux::sock_diag::Socket;
use crate::metrics::Metrics;
use crate::metrics::charge::Charge;
use crate::metrics::gauges::{Gauges, StuckAfter};
use crate::metrics::port_labels::PortLabels;
use crate::names::{Flow, LastWrite, NetnsOwner};
use crate::probe::{Probe, StateHook};
use crate::report::verdict::Verdicts;
use crate::tracker::dump::{DumpChunk, DumpScope, DumpedSocket};
use crate::tracker::netns_gone::NetnsSearchResult;
use crate::tracker::socket::{SocketKind, TrackedSocket};
use crate::tracker::vanished::{DumpCoverage, Suspect};
use crate::tracker::{HostParameters, Tracker};

use crate::agent::config::Config;
use crate::agent::dump_stats::DumpStats;
use crate::agent::malloc_trim;
use crate::agent::mptcp::MptcpSockets;
use crate::agent::namespaces::{Namespaces, ids_of};
use crate::agent::silent_hook::SilenceWatch;
use crate::agent::tracker_output::TrackerOutput;
use crate::agent::watchers::Watchers;

/// Every close-phase socket, and the listeners.
pub const EVERYTHING: DumpRequest =
    DumpRequest { states: CLOSE_PHASE | TcpState::TimeWait.bit() | TcpState::Listen.bit(), info: true };

pub struct Tracking {
    pub probe: Probe,
    pub tracker: Tracker,
    pub mptcp: MptcpSockets,
    /// Metrics and watchers, which take the tracker's events.
    pub output: TrackerOutput,
    pub namespaces: Namespaces,
    pub dumps: DumpStats,
    pub ring: RingCounts,
    /// Wakes tasks that rest while nothing is tracked: records came, or a dump met sockets.
    pub activity: Rc<Notify>,
    pub stuck_after: StuckAfter,
    /// The owner of each network namespace and the user who made it, by the namespace's id.
    netns_owners: HashMap<u32, (NetnsOwner, u32)>,
    /// The first dump is complete.
    pub ready: bool,
    /// Whether the state hook reports anything.
    silence: SilenceWatch,
    /// The kernel's TCPTimeWaitOverflow when the agent began.
    overflows_before: u64,
}

/// Records of the ring buffer.
#[derive(Clone, Copy, Debug, Default)]
pub struct RingCounts {
    /// Taken from the ring, decodable or not.
    pub received: u64,
    pub malformed: u64,
    /// Lost so far, as of the last check.
    lost: u64,
}

impl Tracking {
    /// `time_wait_ns`: the length of TIME-WAIT if it could be measured.
    pub fn new(probe: Probe, config: &Config, time_wait_ns: Option<u64>) -> Self {
        let namespaces = Namespaces::new(config.netns);
        let by_cookie = probe.hook == StateHook::Btf;
        let host = HostParameters {
            netns: namespaces.own().id,
            everywhere: namespaces.everywhere(),
            netns_known: probe.reads_fields,
            ephemeral: host::ip_local_port_range(),
        };
        let mut tracker = Tracker::new(host, by_cookie);
        if let Some(ns) = time_wait_ns {
            tracker.set_time_wait_ns(ns);
        }
        tracker.set_hooks(probe.coverage);
        let labels = PortLabels::new(config.max_ports, &config.name_ports);
        Self {
            probe,
            tracker,
            mptcp: MptcpSockets::default(),
            output: TrackerOutput {
                metrics: Metrics::new(labels),
                watchers: Watchers::default(),
                verdicts: Verdicts::default(),
            },
            namespaces,
            dumps: DumpStats::new(config.dump_interval.as_nanos() as u64),
            ring: RingCounts::default(),
            activity: Rc::default(),
            stuck_after: config.stuck_after.clone(),
            netns_owners: HashMap::new(),
            ready: false,
            silence: SilenceWatch::default(),
            overflows_before: host::time_wait_overflows().unwrap_or(0),
        }
    }

    /// Takes records from the ring. Returns whether there may be more.
    pub fn drain(&mut self) -> bool {
        let before_ns = host::monotonic_ns();
        let Self { probe, tracker, mptcp, output, .. } = self;
        let taken = probe.ring.drain(|record| match record {
            Record::Mptcp(step) => mptcp.record(step, tracker, output),
            record => tracker.record(record, output),
        });
        // These records were made before; events that wait for one that has not come yet wait no longer.
        if !taken.more {
            tracker.settle(before_ns, output);
        }
        self.ring.received += taken.records;
        self.ring.malformed += taken.malformed;
        if taken.records > 0 {
            self.activity.notify_waiters();
        }
        taken.more
    }

    /// Takes all records that are in the ring now. Returns whether it became empty.
    pub fn drain_all(&mut self) -> bool {
        /// More than the largest ring holds; newer records are not waited for.
        const ROUNDS: usize = 100;
        (0..ROUNDS).any(|_| !self.drain())
    }

    /// Takes all records that are in the ring now. Returns the instant until which every step is known; 0
    /// when records were lost.
    pub fn drain_for_save(&mut self) -> u64 {
        let now_ns = host::monotonic_ns();
        let complete = self.drain_all() && self.records_lost() == self.ring.lost;
        if complete { now_ns } else { 0 }
    }

    fn records_lost(&self) -> u64 {
        self.counters().lost + self.probe.recursion_misses() + self.ring.malformed
    }

    /// Whether the state hook is known to report nothing.
    pub fn is_hook_silent(&self) -> bool {
        // A record may have come since the last dump.
        self.silence.is_silent() && self.tracker.silent_hook().is_some()
    }

    /// Why counters and durations are incomplete; `None` where the state hook reports.
    pub fn silence(&self) -> Option<String> {
        self.tracker.silent_hook()?;
        self.silence.why(self.probe.hook, host::monotonic_ns())
    }

    /// TIME-WAITs that the kernel skipped since the agent began: in every network namespace if hooks report
    /// them, else by the kernel's own counter, in this one.
    pub fn overflows(&self) -> u64 {
        if self.probe.coverage.births {
            return self.output.metrics.overflows();
        }
        host::time_wait_overflows().unwrap_or(0).saturating_sub(self.overflows_before)
    }

    /// Records made and lost by the probe; zeros when the map cannot be read.
    pub fn counters(&self) -> Counters {
        self.probe.ring.counters().unwrap_or_default()
    }

    /// Whether records were lost since the last call, which is a reason to reconcile at once.
    pub fn check_for_losses(&mut self) -> bool {
        let lost = self.records_lost();
        let more = lost.saturating_sub(self.ring.lost);
        if more > 0 {
            log::warn!(
                "{more} records lost: the next reconcile corrects the gauges (tcpclose_events_lost_total shows the stage)"
            );
            self.tracker.records_lost(host::monotonic_ns());
            self.output.watchers.send_lost(more);
            self.dumps.records_lost();
        } else {
            self.dumps.nothing_lost(host::monotonic_ns());
        }
        self.ring.lost = lost;
        more > 0
    }

    /// The namespaces with tracked sockets.
    pub fn netns_with_sockets(&self) -> HashSet<u32> {
        ids_of(self.tracker.sockets())
    }

    /// Begins a round over the namespaces of `found`. `searched`: those with tracked sockets when the search began;
    /// `None` without a search.
    pub fn begin_round(&mut self, found: FoundNetns, searched: Option<HashSet<u32>>, started_ns: u64) {
        let with_sockets = self.netns_with_sockets();
        self.namespaces.begin(found, searched, &with_sockets, started_ns);
    }

    /// Takes the namespaces that a slice of the round did not get to. Returns whether the round is complete
    /// and followed a search; then sockets end whose namespace is gone.
    pub fn slice_done(&mut self, rest: Vec<NetnsPath>, lost: bool) -> bool {
        let with_sockets = self.netns_with_sockets();
        let Some(finished) = self.namespaces.slice_done(rest, &with_sockets) else { return false };
        self.dumps.round_ns = finished.started_ns;
        self.output.metrics.port_facts().round_done();
        let Self { netns_owners, namespaces, .. } = self;
        netns_owners.retain(|id, _| namespaces.get(*id).is_some());
        if !finished.searched {
            return false;
        }
        let Self { tracker, mptcp, output, namespaces, .. } = self;
        let round = NetnsSearchResult {
            found: &|id| finished.found.contains(&id),
            former: &|id| namespaces.was_found(id),
            sure: finished.sure,
            lost,
            started_ns: finished.started_ns,
            finished_ns: host::monotonic_ns(),
        };
        tracker.round(&round, output);
        let with_sockets: HashSet<u32> = ids_of(tracker.sockets());
        namespaces.forget(&with_sockets);
        mptcp.retain_netns(|netns| namespaces.get(netns).is_some());
        self.dumps.lost_others_ns = self.dumps.lost_others_ns.filter(|_| !lost);
        true
    }

    /// Merges a part of a running dump. All records that were in the ring at that time must have been taken
    /// before.
    pub fn merge_chunk(&mut self, chunk: &NetnsChunk, request: DumpRequest) {
        let uptime_ns = host::uptime_ns();
        let (of_mptcp, of_tcp): (Vec<&(u32, Socket)>, Vec<_>) =
            chunk.sockets.iter().partition(|(_, socket)| socket.mptcp.is_some());
        let seen: Vec<DumpedSocket> =
            of_tcp.iter().map(|(netns, socket)| dumped(socket, *netns, uptime_ns)).collect();
        let scope = self.scope(request, chunk.started_ns);
        let entered: Vec<(u32, u32)> =
            chunk.entered.iter().map(|entered| (entered.id, entered.inum)).collect();
        for EnteredNetns { id, owner, creator, local_ports, .. } in &chunk.entered {
            self.tracker.set_local_ports(*id, local_ports.clone());
            self.netns_owners.insert(*id, (*owner, *creator));
        }
        let merged = DumpChunk { entered: &entered, seen: &seen };
        self.tracker.dump_chunk(&scope, &merged, &mut self.output);
        for (netns, socket) in of_mptcp {
            self.mptcp.see(socket, *netns, uptime_ns, &self.tracker);
        }
        if !self.mptcp.is_empty() {
            of_tcp.iter().for_each(|(netns, socket)| self.mptcp.see_tcp(socket, *netns, &self.tracker));
        }
        self.note_ports(&of_tcp);
    }

    /// Notes who has the ports of `dumped`, as far as names of ports depend on it.
    fn note_ports(&mut self, dumped: &[&(u32, Socket)]) {
        let Self { tracker, output, netns_owners, .. } = self;
        let relevant = |socket: &Socket| matches!(socket.state, TcpState::Listen | TcpState::CloseWait);
        for (netns, socket) in dumped.iter().filter(|(_, socket)| relevant(socket)) {
            let Some(&(owner, creator)) = netns_owners.get(netns) else { continue };
            let charge = Charge::of(owner, *netns, creator, socket.uid);
            let metrics = &mut output.metrics;
            match socket.state {
                TcpState::Listen => metrics.port_facts().listens(socket.flow.local_port, charge),
                _ => {
                    let tracked = tracker.find(*netns, socket.cookie, &socket.flow);
                    if let Some(pair) =
                        tracked.map(TrackedSocket::pair).filter(|pair| !metrics.is_named(*pair))
                    {
                        metrics.port_facts().holds(pair, charge);
                    }
                }
            }
        }
    }

    fn scope(&self, request: DumpRequest, started_ns: u64) -> DumpScope {
        DumpScope { states: request.states, started_ns, first: !self.ready }
    }

    /// Finishes dumps whose chunks are all merged. `all`: they covered every namespace. Returns at most
    /// `lookups` tracked sockets that the dumps should have met and did not.
    pub fn finish_dumps(
        &mut self,
        dumps: &NetnsDumps,
        request: DumpRequest,
        all: bool,
        lookups: usize,
    ) -> Vec<Suspect> {
        self.drain_all();
        self.namespaces.dumped(dumps);
        let mut covers = DumpCoverage { all, ..DumpCoverage::default() };
        for dumped in &dumps.namespaces {
            covers.netns.insert(dumped.netns.id, dumped.netns.inum);
            if dumped.dump.malformed > 0 {
                log::warn!(
                    "cannot read {} sockets of a dump: sock_diag sent malformed answers (report this with `uname -r`)",
                    dumped.dump.malformed
                );
            }
        }
        let scope = self.scope(request, dumps.started_ns);
        let suspects = self.tracker.dump_finished(&scope, &covers, lookups, &mut self.output);
        if request.states & TcpState::CloseWait.bit() != 0 {
            self.mptcp.dumped(&covers, dumps.started_ns);
        }
        let host = self.namespaces.host().filter(|host| covers.netns.contains_key(host));
        if request == EVERYTHING && (host.is_some() || all) {
            self.dumps.lost_host_ns = None;
        }
        let silent = self.tracker.silent_hook();
        // Losses that are not noticed yet explain it as well.
        if silent.is_none() || self.records_lost() == self.ring.lost {
            self.silence.judge(silent, self.probe.hook);
        }
        if self.tracker.take_gave_back() {
            malloc_trim::give_back();
        }
        if !self.tracker.is_empty() {
            self.activity.notify_waiters();
        }
        suspects
    }

    /// Ends the sockets of `gone`, which an exact lookup did not find either.
    pub fn end_vanished(&mut self, gone: &[Suspect]) {
        self.drain_all();
        let now_ns = host::monotonic_ns();
        for suspect in gone {
            self.tracker.gone(suspect, now_ns, &mut self.output);
        }
    }

    /// The gauges of this moment.
    pub fn gauges(&mut self, now_ns: u64) -> Gauges {
        let Self { output, tracker, mptcp, stuck_after, namespaces, .. } = self;
        let reached = |netns| namespaces.reaches(netns);
        let kind = |socket: &TrackedSocket| tracker.port_kind(socket);
        let sockets = mptcp.without_subflows(tracker.sockets_and_writes()).chain(mptcp.iter());
        output.metrics.gauges(sockets, &kind, stuck_after, &reached, now_ns)
    }

    /// Every socket that is known, with its program's last write if a dump has seen it in CLOSE-WAIT.
    pub fn sockets_and_writes(&self) -> impl Iterator<Item = (&TrackedSocket, Option<&LastWrite>)> {
        self.mptcp.without_subflows(self.tracker.sockets_and_writes()).chain(self.mptcp.iter())
    }

    /// The tracked counterpart of a dumped socket.
    pub fn find(&self, netns: u32, cookie: u64, flow: &Flow) -> Option<&TrackedSocket> {
        self.tracker.find(netns, cookie, flow)
    }
}

/// A dumped socket of the namespace `netns`, for the tracker.
fn dumped(socket: &Socket, netns: u32, uptime_ns: u64) -> DumpedSocket {
    DumpedSocket {
        state: socket.state,
        kind: if socket.minisocket { SocketKind::Minisocket } else { SocketKind::Socket },
        flow: socket.flow,
        cookie: socket.cookie,
        netns,
        interface: socket.interface,
        seen_ns: socket.seen_ns,
        expires_ns: socket.expires_ns.unwrap_or(0),
        age: proven_age(socket, uptime_ns),
        write: write_look(socket, uptime_ns),
        opening: socket.opening,
        without_backlog: socket.is_without_backlog(),
    }
}
