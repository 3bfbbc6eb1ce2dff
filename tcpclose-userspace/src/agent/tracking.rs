//! The one owner of probe, tracker and ledger. Everything that the agent does is a call of this, on one thread.

use std::cell::Cell;
use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::rc::Rc;

use tcpclose_common::control::Counters;
use tcpclose_common::state::{CLOSE_PHASE, TcpState};
use tokio::sync::Notify;

use crate::kill::places::Places;
use crate::linux::age::proven_age;
use crate::linux::host;
use crate::linux::netns::{FoundNetns, NetnsPath};
use crate::linux::netns_dump;
use crate::linux::netns_dump::{DumpRequest, NetnsDumps};
use crate::linux::sock_diag::Socket;
use crate::linux::users::UnixGroup;
use crate::metrics::Metrics;
use crate::metrics::gauges::{Gauges, StuckAfter};
use crate::metrics::port_labels::PortLabels;
use crate::metrics::rates::RateHistory;
use crate::names::{Flow, Phase};
use crate::probe::Probe;
use crate::report::owner_counts::OwnerLabels;
use crate::tracker::dump::{DumpChunk, DumpScope, DumpedSocket};
use crate::tracker::netns_gone::NetnsSearchResult;
use crate::tracker::socket::{SocketKind, TrackedSocket};
use crate::tracker::vanished::{DumpCoverage, Suspect};
use crate::tracker::{HostParameters, Tracker};

use crate::agent::config::Config;
use crate::agent::malloc_trim;
use crate::agent::namespaces::Namespaces;
use crate::agent::reconcile::ids_of;
use crate::agent::server::handlers::exhaustion::ExhaustionRatios;
use crate::agent::watchers::{Out, Watchers};

/// Suspects of one dump that are looked up one by one; the rest wait for the next dump.
pub const MOST_SUSPECTS: usize = 1000;

/// Every close-phase socket, and the listeners.
pub const EVERYTHING: DumpRequest =
    DumpRequest { states: CLOSE_PHASE | TcpState::TimeWait.bit() | TcpState::Listen.bit(), info: true };

/// How the dumps go.
#[derive(Clone, Copy, Debug, Default)]
pub struct DumpStats {
    /// Wall time of the last one, nanoseconds.
    pub last_ns: u64,
    /// Between dumps at present, nanoseconds: stretched so that they take 1 % of a core at most.
    pub interval_ns: u64,
    /// Wall clock of the last whole reconcile, seconds since 1970; 0 before the first.
    pub reconciled_at: f64,
    /// CLOCK_MONOTONIC when that began.
    pub round_ns: u64,
    /// CLOCK_MONOTONIC before which no record was lost that the gauges of the host's namespace, or of others, still lack.
    pub lost_host_ns: Option<u64>,
    pub lost_others_ns: Option<u64>,
    /// CLOCK_MONOTONIC when it was last known that no record is lost.
    sound_ns: u64,
    /// How old the last reconcile may be before every number is.
    pub overdue_ns: u64,
    /// `--reconcile-max`.
    pub max_ns: u64,
    /// They take more than 1 % of a core, so that no number is older than that.
    pub over_budget: bool,
}

/// Where dumps are worth making now, besides the reconcile.
#[derive(Debug, Default)]
pub struct DumpTargets {
    /// Of the host's network namespace.
    pub host: Option<(DumpRequest, Vec<NetnsPath>)>,
    pub others: Option<(DumpRequest, Vec<NetnsPath>)>,
    /// What identifies those others.
    pub needing: HashSet<u32>,
}

pub struct Tracking {
    pub probe: Probe,
    pub tracker: Tracker,
    pub ledger: Metrics,
    /// Who watches.
    pub hub: Watchers,
    /// What the ledger's counters were in the last minute.
    pub rates: RateHistory,
    /// The ports that connect() may take.
    pub exhaustion: ExhaustionRatios,
    pub stuck_after: StuckAfter,
    pub dumps: DumpStats,
    /// How many stuck sockets each owner had when they were looked for last.
    pub stuck_owners: Vec<(OwnerLabels, u64)>,
    /// Records taken from the ring, sound or not.
    pub received: u64,
    /// Records that could not be decoded.
    pub malformed: u64,
    /// Tells those who rest while nothing is tracked that something may be: records were taken, or a dump has met sockets.
    pub stirred: Rc<Notify>,
    /// A user waits for a reconcile that begins after this, CLOCK_MONOTONIC; 0 for nobody.
    pub asked_ns: u64,
    /// Tells the dumps so.
    pub asked: Rc<Notify>,
    /// Records lost so far, as last looked.
    lost: u64,
    pub namespaces: Namespaces,
    pub ephemeral: RangeInclusive<u16>,
    /// The kernel's TCPTimeWaitOverflow when the agent began.
    overflows_before: u64,
    /// The first dump has been taken in.
    pub ready: bool,
    /// `tcpclose kill` may destroy through this agent.
    pub allow_kill: bool,
    /// Who may, besides root.
    pub kill_group: Option<UnixGroup>,
    /// Where its orders have found network namespaces.
    pub kill_places: Places,
    /// What `--web-config` names is wrong, and what it said before is in use.
    pub web_config_wrong: Rc<Cell<bool>>,
}

impl Tracking {
    /// `time_wait_ns`: TIME-WAIT's length where it could be measured.
    pub fn new(probe: Probe, config: &Config, time_wait_ns: Option<u64>) -> Self {
        let namespaces = Namespaces::new(config.netns);
        let ephemeral = host::ip_local_port_range();
        let by_cookie = probe.hook == crate::probe::StateHook::Btf;
        let host = HostParameters {
            netns: namespaces.own().id,
            everywhere: namespaces.everywhere(),
            netns_known: probe.reads_fields,
            ephemeral: ephemeral.clone(),
        };
        let mut tracker = Tracker::new(host, by_cookie);
        if let Some(ns) = time_wait_ns {
            tracker.set_time_wait_ns(ns);
        }
        tracker.set_hooks(probe.coverage);
        Self {
            probe,
            tracker,
            ledger: Metrics::new(PortLabels::new(config.max_ports, &config.name_ports, ephemeral.clone())),
            hub: Watchers::default(),
            rates: RateHistory::default(),
            exhaustion: ExhaustionRatios::default(),
            stuck_after: config.stuck_after.clone(),
            dumps: DumpStats { interval_ns: config.dump_interval.as_nanos() as u64, ..DumpStats::default() },
            stuck_owners: Vec::new(),
            received: 0,
            malformed: 0,
            stirred: Rc::default(),
            asked_ns: 0,
            asked: Rc::default(),
            lost: 0,
            namespaces,
            ephemeral,
            overflows_before: host::time_wait_overflows().unwrap_or(0),
            ready: false,
            allow_kill: config.allow_kill,
            kill_group: config.kill_group.clone(),
            kill_places: Places::default(),
            web_config_wrong: Rc::default(),
        }
    }

    /// Takes what is in the ring. Returns whether there may be more.
    pub fn drain(&mut self) -> bool {
        let before_ns = host::monotonic_ns();
        let Self { probe, tracker, ledger, hub, .. } = self;
        let mut out = Out { ledger, hub };
        let taken = probe.ring.drain(|record| tracker.record(record, &mut out));
        // What is taken now was made before; what waits for a record that has not come by then waits no longer.
        if !taken.more {
            tracker.settle(before_ns, &mut out);
        }
        self.received += taken.records;
        self.malformed += taken.malformed;
        if taken.records > 0 {
            self.stirred.notify_waiters();
        }
        taken.more
    }

    /// Takes all that is in the ring now. Whether that was all.
    pub fn drain_all(&mut self) -> bool {
        /// More than the largest ring holds; what comes in the meantime is not waited for.
        const ROUNDS: usize = 100;
        (0..ROUNDS).any(|_| !self.drain())
    }

    /// Takes all that is in the ring now, and returns the instant until when every step is known; 0 when records were
    /// lost.
    pub fn drain_for_save(&mut self) -> u64 {
        let now_ns = host::monotonic_ns();
        let complete = self.drain_all() && self.records_lost() == self.lost;
        if complete { now_ns } else { 0 }
    }

    fn records_lost(&self) -> u64 {
        self.counters().lost + self.probe.recursion_misses() + self.malformed
    }

    /// TIME-WAITs that the kernel skipped since the agent began: in every network namespace where hooks tell, else by
    /// the kernel's own counter, in this one.
    pub fn overflows(&self) -> u64 {
        if self.probe.coverage.births {
            return self.ledger.overflows();
        }
        host::time_wait_overflows().unwrap_or(0).saturating_sub(self.overflows_before)
    }

    /// Records made and lost by the probe; nothing known when the map cannot be read.
    pub fn counters(&self) -> Counters {
        self.probe.ring.counters().unwrap_or_default()
    }

    /// Whether records were lost since the last call: a reason to reconcile at once.
    pub fn has_lost(&mut self) -> bool {
        let lost = self.records_lost();
        let more = lost > self.lost;
        if more {
            log::warn!("{} records lost", lost - self.lost);
            self.tracker.records_lost(host::monotonic_ns());
            self.hub.tell_lost(lost - self.lost);
            let sound_ns = self.dumps.sound_ns;
            self.dumps.lost_host_ns.get_or_insert(sound_ns);
            self.dumps.lost_others_ns.get_or_insert(sound_ns);
        } else {
            self.dumps.sound_ns = host::monotonic_ns();
        }
        self.lost = lost;
        more
    }

    /// What a dump is worth now, and where, besides the reconcile: minisockets, where no hooks show their ends, and
    /// CLOSE-WAITs that are to be called stuck, since only a dump tells whether their programs still write to them.
    pub fn wanted(&self, now_ns: u64) -> DumpTargets {
        let first = self.stuck_after.first_ns();
        // Without BTF no record tells its namespace, and all are dumped at once.
        let host = self.namespaces.host().filter(|_| self.probe.reads_fields);
        let (mut of_host, mut of_others) = (0, 0);
        let (mut needing, mut anywhere, mut last) = (HashSet::new(), false, 0);
        for life in self.tracker.sockets() {
            let states = if life.kind == SocketKind::Minisocket && !self.probe.coverage.ends {
                TcpState::FinWait2.bit() | TcpState::TimeWait.bit()
            } else if life.phase == Phase::CloseWait && self.needs_look(life, now_ns, first) {
                TcpState::CloseWait.bit()
            } else {
                continue;
            };
            if Some(life.netns) == host {
                of_host |= states;
                continue;
            }
            of_others |= states;
            anywhere |= life.netns == 0;
            // Lives come in runs of one namespace: most need no hashing.
            if std::mem::replace(&mut last, life.netns) != life.netns {
                needing.insert(life.netns);
            }
        }
        let ask = |states| DumpRequest { states, info: states & TcpState::CloseWait.bit() != 0 };
        let ask_host = match self.dumps.lost_host_ns {
            Some(_) if host.is_some() => Some(EVERYTHING),
            _ => (of_host != 0).then(|| ask(of_host)),
        };
        let place = host.and_then(|host| self.namespaces.place(host)).cloned();
        let others = self.namespaces.places(if anywhere { None } else { Some(&needing) });
        let others: Vec<NetnsPath> = others.into_iter().map(|(_, place)| place).collect();
        DumpTargets {
            host: ask_host.zip(place).map(|(ask, place)| (ask, vec![place])),
            others: (!others.is_empty()).then(|| (ask(of_others), others)),
            needing,
        }
    }

    /// Whether a CLOSE-WAIT that may be stuck has not been looked at since it, or its program's last known write, passed
    /// the bound, or not for half of it.
    pub(super) fn needs_look(&self, life: &TrackedSocket, now_ns: u64, first: u64) -> bool {
        let age = life.since.age(now_ns);
        let due_ns = life.since.latest_ns.max(life.sent_ns()).saturating_add(first);
        self.namespaces.reaches(life.netns)
            && (age.is_past(first) || age.may_be_past(first))
            && (life.seen_ns < due_ns && due_ns <= now_ns || now_ns.saturating_sub(life.seen_ns) > first / 2)
    }

    /// Since when a look is due that [`Self::needs_look`] asks for.
    pub(super) fn needed_since(&self, life: &TrackedSocket, first: u64) -> u64 {
        let due_ns = life.since.latest_ns.max(life.sent_ns()).saturating_add(first);
        if life.seen_ns < due_ns { due_ns } else { life.seen_ns.saturating_add(first / 2) }
    }

    /// Whether a life that dumps must follow is in a namespace that nobody has found yet.
    pub fn has_new_namespace(&self) -> bool {
        let mut last = 0;
        self.tracker.sockets().any(|life| {
            let followed = life.phase == Phase::CloseWait
                || life.kind == SocketKind::Minisocket && !self.probe.coverage.ends;
            followed
                && std::mem::replace(&mut last, life.netns) != life.netns
                && self.namespaces.is_new(life.netns)
        })
    }

    /// Where the namespaces are that lives are in.
    pub fn places_with_lives(&self) -> Vec<NetnsPath> {
        let ids = ids_of(self.tracker.sockets());
        self.namespaces.places(Some(&ids)).into_iter().map(|(_, place)| place).collect()
    }

    /// Where sockets in `phase` are, and our own namespace; `None` where some are in a namespace that nobody has found
    /// yet, and before the first dump.
    pub fn places_of(&self, phase: Phase) -> Option<Vec<NetnsPath>> {
        let mut ids = ids_of(self.tracker.sockets().filter(|life| life.phase == phase));
        ids.insert(self.namespaces.own().id);
        let all_found = !ids.iter().any(|id| self.namespaces.is_new(*id));
        let places = self.namespaces.places(Some(&ids));
        (self.ready && all_found).then(|| places.into_iter().map(|(_, place)| place).collect())
    }

    /// Whether so many sockets are in `phase` that some will want an owner.
    pub fn has_many(&self, phase: Phase) -> bool {
        const MANY: usize = 256;
        self.tracker.sockets().filter(|life| life.phase == phase).take(MANY).count() == MANY
    }

    /// Begins a round over what a search has found.
    pub fn begin_round(&mut self, found: FoundNetns, searched: bool, started_ns: u64) {
        let with_lives = ids_of(self.tracker.sockets());
        self.namespaces.begin(found, searched, &with_lives, started_ns);
    }

    /// Whether a user waits for a reconcile.
    pub fn is_asked(&self) -> bool {
        self.asked_ns > self.dumps.round_ns
    }

    /// Takes in where a round has not been yet. Returns whether it is over, if a search has led it; then lives end whose
    /// namespace is gone.
    pub fn go_on_round(&mut self, rest: Vec<NetnsPath>, lost: bool) -> bool {
        let with_lives = ids_of(self.tracker.sockets());
        let Some(finished) = self.namespaces.went_on(rest, &with_lives) else { return false };
        self.dumps.round_ns = finished.started_ns;
        if !finished.searched {
            return false;
        }
        let Self { tracker, ledger, hub, namespaces, .. } = self;
        let round = NetnsSearchResult {
            found: &|id| finished.found.contains(&id),
            former: &|id| namespaces.was_found(id),
            sure: finished.sure,
            lost,
            started_ns: finished.started_ns,
            finished_ns: host::monotonic_ns(),
        };
        tracker.round(&round, &mut Out { ledger, hub });
        let with_lives: HashSet<u32> = ids_of(tracker.sockets());
        namespaces.forget(&with_lives);
        self.dumps.lost_others_ns = self.dumps.lost_others_ns.filter(|_| !lost);
        true
    }

    /// Takes in some of what a dump that is under way has met, after all records that were in the ring then.
    pub fn take_chunk(&mut self, chunk: &netns_dump::NetnsChunk, ask: DumpRequest) {
        let uptime_ns = host::uptime_ns();
        let seen: Vec<DumpedSocket> =
            chunk.sockets.iter().map(|(netns, socket)| as_seen(socket, *netns, uptime_ns)).collect();
        let asked = self.asked(ask, chunk.started_ns);
        let Self { tracker, ledger, hub, .. } = self;
        let chunk = DumpChunk { entered: &chunk.entered, seen: &seen };
        tracker.dump_chunk(&asked, &chunk, &mut Out { ledger, hub });
    }

    fn asked(&self, ask: DumpRequest, started_ns: u64) -> DumpScope {
        DumpScope { states: ask.states, started_ns, first: !self.ready }
    }

    /// Takes in where dumps have been, whose chunks are all in. `all`: in every namespace that there is. Returns those
    /// tracked sockets that they should have seen and did not.
    pub fn take_survey(&mut self, survey: &NetnsDumps, ask: DumpRequest, all: bool) -> Vec<Suspect> {
        self.drain_all();
        self.namespaces.took(survey);
        let mut covers = DumpCoverage { all, ..DumpCoverage::default() };
        for looked in &survey.looked {
            covers.netns.insert(looked.netns.id, looked.netns.inum);
            if looked.dump.malformed > 0 {
                log::warn!("{} answers of sock_diag could not be decoded", looked.dump.malformed);
            }
        }
        let asked = self.asked(ask, survey.started_ns);
        let Self { tracker, ledger, hub, namespaces, .. } = self;
        let suspects = tracker.dump_finished(&asked, &covers, MOST_SUSPECTS, &mut Out { ledger, hub });
        let host = namespaces.host().filter(|host| covers.netns.contains_key(host));
        if ask == EVERYTHING && (host.is_some() || all) {
            self.dumps.lost_host_ns = None;
        }
        if tracker.take_gave_back() {
            malloc_trim::give_back();
        }
        if !self.tracker.is_empty() {
            self.stirred.notify_waiters();
        }
        suspects
    }

    /// Takes in that an exact lookup did not find `gone` either.
    pub fn take_gone(&mut self, gone: &[Suspect]) {
        self.drain_all();
        let now_ns = host::monotonic_ns();
        let Self { tracker, ledger, hub, .. } = self;
        let mut out = Out { ledger, hub };
        for suspect in gone {
            tracker.gone(suspect, now_ns, &mut out);
        }
    }

    /// The gauges of this moment.
    pub fn census(&mut self, now_ns: u64) -> Gauges {
        let Self { ledger, tracker, stuck_after, namespaces, .. } = self;
        ledger.gauges(tracker.sockets(), stuck_after, &|netns| namespaces.reaches(netns), now_ns)
    }

    /// What is known of a dumped socket.
    pub fn life_of(&self, netns: u32, cookie: u64, flow: &Flow) -> Option<&TrackedSocket> {
        self.tracker.find(netns, cookie, flow)
    }
}

/// A dumped socket of the namespace `netns` as the tracker takes it.
fn as_seen(socket: &Socket, netns: u32, uptime_ns: u64) -> DumpedSocket {
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
        sent_ns: socket.times.map(|times| socket.seen_ns.saturating_sub(times.last_sent_ns)),
    }
}
