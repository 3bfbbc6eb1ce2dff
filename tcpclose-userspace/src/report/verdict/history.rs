//! How the stuck sockets of one program on one side of one port have developed, from look to look. Pure.

use std::collections::VecDeque;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::names::{Diagnosis, Verdict};
use crate::report::sockets::StuckSocket;

/// Looks that are kept; beyond that every second one is forgotten.
const MOST_LOOKS: usize = 64;
/// Times in CLOSE-WAIT that are kept of those that ended, the last ones.
const MOST_TIMES: usize = 33;

/// What the goodbye of a server can be, in bytes: an error message, an alert.
const GOODBYE: u32 = 1024;

/// The number of stuck sockets at an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountAt {
    pub at_ns: u64,
    pub stuck: u64,
}

/// How sockets of the group left CLOSE-WAIT late.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// The program closed them.
    pub closed: u64,
    /// The program wrote, and the peer reset them for it.
    pub reset_after_write: u64,
    /// The peer reset them, for another reason.
    pub reset_by_peer: u64,
    /// SOCK_DESTROY: `tcpclose kill`, or `ss -K`.
    pub destroyed: u64,
    /// In a way that no record tells.
    pub other: u64,
    /// How long they had been in CLOSE-WAIT, nanoseconds: the last ones.
    times_ns: VecDeque<u64>,
}

impl Ends {
    pub fn all(&self) -> u64 {
        self.closed + self.reset_after_write + self.reset_by_peer + self.destroyed + self.other
    }

    /// The median of the times in CLOSE-WAIT, nanoseconds.
    pub fn median_ns(&self) -> Option<u64> {
        let mut times: Vec<u64> = self.times_ns.iter().copied().collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }

    fn add(&mut self, how: LateEnd, time_ns: u64) {
        match how {
            LateEnd::Closed => self.closed += 1,
            LateEnd::ResetAfterWrite => self.reset_after_write += 1,
            LateEnd::ResetByPeer => self.reset_by_peer += 1,
            LateEnd::Destroyed => self.destroyed += 1,
            LateEnd::Other => self.other += 1,
        }
        if self.times_ns.len() == MOST_TIMES {
            self.times_ns.pop_front();
        }
        self.times_ns.push_back(time_ns);
    }
}

/// How a socket left CLOSE-WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LateEnd {
    Closed,
    ResetAfterWrite,
    ResetByPeer,
    Destroyed,
    Other,
}

/// What a socket was at the last look.
#[derive(Clone, Copy, Debug)]
struct Known {
    unread: u32,
    written: Option<u64>,
    is_stuck: bool,
}

/// What the sockets of a group are at one look.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Present {
    /// Past the first bound, and not at work.
    pub stuck: u64,
    pub not_accepted: u64,
    pub not_read: u64,
    pub not_closed: u64,
    /// Of those that are not read: no more than a goodbye waits.
    pub goodbyes: u64,
    /// The most that waits for the program in one of those, bytes.
    pub most_goodbye: u32,
    /// A local peer has sent its FIN, and holds its end.
    pub peer_waits: u64,
    /// The proven age of the oldest, seconds.
    pub oldest: f64,
    /// For how long the median one had been silent when the FIN came, seconds; `None` where no dump tells.
    pub silent_before: Option<f64>,
    /// Descriptors in use, and their limit, of the process that is nearest to it.
    pub fds: Option<(u64, u64)>,
    /// FIN-WAIT-2 sockets that its processes hold on the other side: what a proxy has passed on.
    pub half_closed: u64,
}

/// A group's past.
#[derive(Clone, Debug)]
pub struct History {
    pub first_ns: u64,
    pub last_ns: u64,
    pub counts: VecDeque<CountAt>,
    pub present: Present,
    sockets: FxHashMap<u64, Known>,
    /// Sockets that became stuck after the first look.
    pub arrivals: u64,
    /// When the last of these was met.
    pub last_arrival_ns: Option<u64>,
    pub ends: Ends,
    /// When a look showed last that a socket had been read from, or written to.
    pub last_used_ns: Option<u64>,
    /// Connections that its processes closed since the first look.
    pub closes: u64,
    /// The same when the last socket became stuck.
    closes_at_arrival: u64,
    /// When its processes did something with a connection last: closed or used one. And the arrivals until then.
    activity: Option<(u64, u64)>,
    /// The last look told the sockets one from another.
    is_compared: bool,
    pub verdict: Verdict,
    /// Since when.
    pub verdict_ns: u64,
    /// The one before, of a verdict that has changed.
    pub former: Option<Verdict>,
    /// Arrivals and ends when the verdict was given.
    pub at_verdict: (u64, u64),
}

impl History {
    pub fn new(now_ns: u64) -> Self {
        Self {
            first_ns: now_ns,
            last_ns: now_ns,
            counts: VecDeque::new(),
            present: Present::default(),
            sockets: FxHashMap::default(),
            arrivals: 0,
            last_arrival_ns: None,
            ends: Ends::default(),
            last_used_ns: None,
            closes: 0,
            closes_at_arrival: 0,
            activity: None,
            is_compared: false,
            verdict: Verdict::Undecided,
            verdict_ns: now_ns,
            former: None,
            at_verdict: (0, 0),
        }
    }

    /// Takes the group's sockets in CLOSE-WAIT at `now_ns`; of the same instant `half_closed`, see [`Present`]. `bound`: the age from
    /// which one is stuck, seconds. `most`: how many sockets are told one from another; if there are more, their number alone counts.
    pub fn look(
        &mut self,
        sockets: &[&StuckSocket],
        half_closed: u64,
        (bound, most): (f64, usize),
        now_ns: u64,
    ) {
        let stuck_before = self.counts.back().map(|before| before.stuck);
        if sockets.len() > most {
            self.sockets.clear();
        } else {
            self.compare(sockets, bound, now_ns);
        }
        self.is_compared = sockets.len() <= most;
        self.present = Present { half_closed, ..present(sockets, bound) };
        let came = stuck_before.map_or(0, |before| self.present.stuck.saturating_sub(before));
        if sockets.len() > most && came > 0 {
            self.arrive(came, now_ns);
        }
        self.last_ns = now_ns;
        if self.counts.len() == MOST_LOOKS {
            let mut nth = 0;
            self.counts.retain(|_| {
                nth += 1;
                nth % 2 == 1
            });
        }
        self.counts.push_back(CountAt { at_ns: now_ns, stuck: self.present.stuck });
    }

    /// Compares the sockets one by one with those of the look before. At the first look, and after one at too many, none is new.
    fn compare(&mut self, sockets: &[&StuckSocket], bound: f64, now_ns: u64) {
        let is_first = !self.is_compared;
        let mut met = FxHashSet::default();
        for socket in sockets {
            let is_stuck = is_stuck(socket, bound);
            let now = Known { unread: socket.unread_bytes, written: socket.written_bytes, is_stuck };
            met.insert(socket.cookie.0);
            let before = self.sockets.get(&socket.cookie.0).copied();
            if let Some(before) = before {
                let is_used = now.unread < before.unread
                    || matches!((before.written, now.written), (Some(a), Some(b)) if b > a);
                if is_used {
                    self.last_used_ns = Some(now_ns);
                    self.activity = Some((now_ns, self.arrivals));
                }
            }
            if is_stuck && !is_first && !before.is_some_and(|before| before.is_stuck) {
                self.arrive(1, now_ns);
            }
            self.sockets.insert(socket.cookie.0, now);
        }
        // What has gone without a record.
        let gone: Vec<u64> = self.sockets.keys().filter(|cookie| !met.contains(cookie)).copied().collect();
        for cookie in gone {
            if self.sockets.remove(&cookie).is_some_and(|known| known.is_stuck) {
                let time_ns = (bound * 1e9) as u64;
                self.ends.add(LateEnd::Other, time_ns);
            }
        }
    }

    /// A socket of the group left CLOSE-WAIT after `time_ns`.
    pub fn ended(&mut self, cookie: u64, how: LateEnd, time_ns: u64, late_ns: u64) {
        if self.sockets.remove(&cookie).is_some() && time_ns >= late_ns {
            self.ends.add(how, time_ns);
        }
    }

    fn arrive(&mut self, came: u64, now_ns: u64) {
        self.arrivals += came;
        self.last_arrival_ns = Some(now_ns);
        self.closes_at_arrival = self.closes;
    }

    /// Whether its processes have closed so many other connections since the last socket became stuck that another one should have, if
    /// it were a matter of traffic: four times as many as there were for each so far.
    pub fn has_closed_on(&self) -> bool {
        let each = (self.closes_at_arrival / self.arrivals.max(1)).max(1);
        self.closes - self.closes_at_arrival > 4 * each
    }

    /// Forgets which sockets there were, so that the next look misses none of them and takes none for new.
    pub fn forget_sockets(&mut self) {
        self.sockets.clear();
        self.is_compared = false;
    }

    /// One of its processes closed another connection at `at_ns`.
    pub fn closed_other(&mut self, at_ns: u64) {
        self.closes += 1;
        self.activity = Some((at_ns, self.arrivals));
    }

    /// Sockets that became stuck since its processes closed or used a connection, and for how long they have not, nanoseconds.
    pub fn idle(&self) -> (u64, u64) {
        let (since_ns, arrivals) = self.activity.unwrap_or((self.first_ns, 0));
        (self.arrivals - arrivals, self.last_ns.saturating_sub(since_ns))
    }

    /// Whether its processes have closed or used a connection since the first look.
    pub fn is_active(&self) -> bool {
        self.activity.is_some()
    }

    /// The sockets that are told one from another.
    pub fn known(&self) -> usize {
        self.sockets.len()
    }

    /// Whether a look has met this socket.
    pub fn has(&self, cookie: u64) -> bool {
        self.sockets.contains_key(&cookie)
    }

    /// How the number of stuck sockets grows, in sockets an hour: the median of the slopes between all pairs of looks (Theil and Sen),
    /// which single looks cannot bend. `None` from one look.
    pub fn growth_per_hour(&self) -> Option<f64> {
        let counts: Vec<CountAt> = self.counts.iter().copied().collect();
        let mut slopes: Vec<f64> = Vec::new();
        for (nth, a) in counts.iter().enumerate() {
            for b in counts.get(nth + 1..).unwrap_or_default() {
                let hours = b.at_ns.saturating_sub(a.at_ns) as f64 / 3.6e12;
                if hours > 0.0 {
                    slopes.push((b.stuck as f64 - a.stuck as f64) / hours);
                }
            }
        }
        slopes.sort_by(f64::total_cmp);
        slopes.get(slopes.len() / 2).copied()
    }

    /// For how long no socket has become stuck, nanoseconds.
    pub fn quiet_ns(&self) -> u64 {
        self.last_ns.saturating_sub(self.last_arrival_ns.unwrap_or(self.first_ns))
    }

    /// For how long the group has been looked at, nanoseconds.
    pub fn watched_ns(&self) -> u64 {
        self.last_ns.saturating_sub(self.first_ns)
    }
}

/// Past the bound, and not at work.
pub fn is_stuck(socket: &StuckSocket, bound: f64) -> bool {
    socket.diagnosis.is_some_and(|why| why != Diagnosis::StillSending) && socket.is_past(bound)
}

fn present(sockets: &[&StuckSocket], bound: f64) -> Present {
    let stuck: Vec<&&StuckSocket> = sockets.iter().filter(|socket| is_stuck(socket, bound)).collect();
    let count = |is: &dyn Fn(&StuckSocket) -> bool| stuck.iter().filter(|socket| is(socket)).count() as u64;
    let why = |why| count(&|socket| socket.diagnosis == Some(why));
    let is_goodbye =
        |socket: &StuckSocket| socket.diagnosis == Some(Diagnosis::NotRead) && socket.unread_bytes <= GOODBYE;
    let goodbyes = stuck.iter().filter(|socket| is_goodbye(socket));
    let mut silent: Vec<f64> = stuck.iter().filter_map(|socket| silent_before(socket)).collect();
    silent.sort_by(f64::total_cmp);
    let owners = stuck.iter().flat_map(|socket| &socket.owners);
    let fds = owners.filter_map(|owner| Some((owner.fds_used?, owner.fds_limit?)));
    Present {
        stuck: stuck.len() as u64,
        not_accepted: why(Diagnosis::NotAccepted),
        not_read: why(Diagnosis::NotRead),
        not_closed: why(Diagnosis::NotClosed),
        goodbyes: goodbyes.clone().count() as u64,
        most_goodbye: goodbyes.map(|socket| socket.unread_bytes).max().unwrap_or(0),
        peer_waits: count(&|socket| socket.peer_waits),
        oldest: stuck.iter().map(|socket| socket.age.min_seconds).fold(0.0, f64::max),
        silent_before: silent.get(silent.len() / 2).copied(),
        fds: fds.min_by_key(|(used, limit)| limit.saturating_sub(*used)),
        half_closed: 0,
    }
}

/// For how long this side had sent nothing when the peer's FIN came, if it has sent nothing since.
fn silent_before(socket: &StuckSocket) -> Option<f64> {
    let (sent, entered) = (socket.last_sent_seconds?, socket.age.max_seconds?);
    (sent >= entered).then_some(sent - entered)
}
