//! Which processes are armed: those whose stuck sockets grow in number, a few at a time, and for a bounded part of each hour, so
//! that nobody keeps the programs attached for ever. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use rustc_hash::FxHashMap;

/// The most processes that are armed at a time by themselves.
pub const MOST: usize = 4;
/// The most that are armed at a time because somebody asked.
pub const MOST_ASKED: usize = 4;
/// An armed process whose number of stuck sockets has not grown for so many counts is disarmed.
const QUIET_COUNTS: u32 = 3;
const HOUR_NS: u64 = 3_600_000_000_000;

/// `--stacks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StacksMode {
    /// No program is loaded.
    Off,
    /// Leaking processes are armed by themselves.
    Auto,
    /// Processes are armed only when somebody asks.
    Ask,
}

/// A process, told from a later one with its pid by when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId {
    pub pid: u32,
    pub began_ns: u64,
}

/// A process that holds stuck sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StuckOwner {
    pub process: ProcessId,
    pub uid: u32,
    /// How many of its sockets are stuck.
    pub stuck: u64,
}

/// When processes are armed by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArmingRule {
    /// From so many stuck sockets on.
    pub after: u64,
    /// For so long, and for no longer in an hour for the processes of one user.
    pub time: Duration,
}

/// An armed process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Armed {
    pub process: ProcessId,
    pub uid: u32,
    since_ns: u64,
    pub until_ns: u64,
    /// Somebody asked for it.
    pub is_asked: bool,
    /// Until when stacks of accept() are taken; `None` if they are not.
    accept_until_ns: Option<u64>,
    /// Counts without growth.
    quiet: u32,
}

/// The armed processes, and what they have used of this hour.
#[derive(Debug)]
pub struct Arming {
    rule: Option<ArmingRule>,
    armed: Vec<Armed>,
    /// The last count of each owner; `None` before the first: what is there then may have been for long.
    counts: Option<FxHashMap<ProcessId, u64>>,
    /// Who was armed from when to when, the earliest end first.
    used: VecDeque<(u32, u64, u64)>,
    /// Root's processes whose stacks cannot be named, and since when; the earliest first.
    banned: VecDeque<(ProcessId, u64)>,
}

/// The most processes of root that are left alone. Each takes a helper process that died for it.
const MOST_BANNED: usize = 256;

/// Why a process that somebody asks for is not armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

impl Arming {
    /// `rule`: `None` if only those are armed that somebody asks for.
    pub fn new(rule: Option<ArmingRule>) -> Self {
        Self { rule, armed: Vec::new(), counts: None, used: VecDeque::new(), banned: VecDeque::new() }
    }

    pub fn armed(&self) -> &[Armed] {
        &self.armed
    }

    /// Takes a count of stuck sockets by owner; sockets that several processes hold count for none. Returns whom to arm, and whom to
    /// disarm.
    pub fn counted(&mut self, owners: &[StuckOwner], now_ns: u64) -> (Vec<ProcessId>, Vec<ProcessId>) {
        let Some(rule) = self.rule else { return (Vec::new(), Vec::new()) };
        let counts: FxHashMap<ProcessId, u64> =
            owners.iter().map(|owner| (owner.process, owner.stuck)).collect();
        let Some(before) = self.counts.replace(counts.clone()) else { return (Vec::new(), Vec::new()) };
        let grown = |process: ProcessId, stuck: u64| stuck > before.get(&process).copied().unwrap_or(0);
        let mut over = Vec::new();
        for armed in self.armed.iter_mut().filter(|armed| !armed.is_asked) {
            let stuck = counts.get(&armed.process).copied().unwrap_or(0);
            armed.quiet = if grown(armed.process, stuck) { 0 } else { armed.quiet + 1 };
            if armed.quiet >= QUIET_COUNTS {
                over.push(armed.process);
            }
        }
        for process in &over {
            self.end(*process, now_ns);
        }
        let mut wanted: Vec<&StuckOwner> = owners
            .iter()
            .filter(|owner| owner.stuck >= rule.after && grown(owner.process, owner.stuck))
            .filter(|owner| !over.contains(&owner.process) && !self.is_banned(owner.process, now_ns))
            .collect();
        wanted.sort_by_key(|owner| std::cmp::Reverse(owner.stuck));
        let mut new = Vec::new();
        for owner in wanted {
            let left = self.left(owner.uid, rule.time, now_ns);
            let by_themselves = || self.armed.iter().filter(|armed| !armed.is_asked);
            let is_known = self.armed.iter().any(|armed| armed.process == owner.process);
            let has_other = by_themselves().any(|armed| armed.uid == owner.uid);
            if is_known || has_other || by_themselves().count() >= MOST || left.is_zero() {
                continue;
            }
            self.armed.push(Armed {
                process: owner.process,
                uid: owner.uid,
                since_ns: now_ns,
                until_ns: now_ns.saturating_add(nanos(left)),
                is_asked: false,
                accept_until_ns: None,
                quiet: 0,
            });
            new.push(owner.process);
        }
        (new, over)
    }

    /// Arms a process because somebody asks. Returns whether it was not armed before.
    ///
    /// # Errors
    /// When enough are armed.
    pub fn ask(
        &mut self,
        process: ProcessId,
        uid: u32,
        time: Duration,
        now_ns: u64,
    ) -> Result<bool, TooMany> {
        let until_ns = now_ns.saturating_add(nanos(time));
        if let Some(armed) = self.armed.iter_mut().find(|armed| armed.process == process) {
            armed.is_asked = true;
            armed.until_ns = armed.until_ns.max(until_ns);
            return Ok(false);
        }
        if self.armed.iter().filter(|armed| armed.is_asked).count() >= MOST_ASKED {
            return Err(TooMany);
        }
        self.armed.push(Armed {
            process,
            uid,
            since_ns: now_ns,
            until_ns,
            is_asked: true,
            accept_until_ns: None,
            quiet: 0,
        });
        Ok(true)
    }

    /// Takes note that stacks of accept() are taken of an armed process.
    pub fn ask_accept(&mut self, process: ProcessId, time: Duration, now_ns: u64) {
        if let Some(armed) = self.armed.iter_mut().find(|armed| armed.process == process) {
            let until_ns = now_ns.saturating_add(nanos(time));
            armed.accept_until_ns = Some(armed.accept_until_ns.map_or(until_ns, |until| until.max(until_ns)));
        }
    }

    /// Returns those whose time for stacks of accept() is over.
    pub fn expire_accept(&mut self, now_ns: u64) -> Vec<ProcessId> {
        let is_over = |armed: &&mut Armed| armed.accept_until_ns.is_some_and(|until| until <= now_ns);
        let over = self.armed.iter_mut().filter(is_over);
        over.map(|armed| {
            armed.accept_until_ns = None;
            armed.process
        })
        .collect()
    }

    /// Ends those whose time is over, and those that `is_gone`. Returns them.
    pub fn expire(&mut self, now_ns: u64, is_gone: impl Fn(ProcessId) -> bool) -> Vec<ProcessId> {
        let is_over = |armed: &&Armed| armed.until_ns <= now_ns || is_gone(armed.process);
        let over: Vec<ProcessId> = self.armed.iter().filter(is_over).map(|armed| armed.process).collect();
        for process in &over {
            self.end(*process, now_ns);
        }
        over
    }

    /// Ends a process that could not be armed.
    pub fn end(&mut self, process: ProcessId, now_ns: u64) {
        let Some(at) = self.armed.iter().position(|armed| armed.process == process) else { return };
        let Armed { uid, since_ns, .. } = self.armed.remove(at);
        self.used.push_back((uid, since_ns, now_ns));
    }

    /// Ends a process whose stacks cannot be named, and arms none of its user's by itself for an hour. Of root's it is this process
    /// alone: the others are most of a host's services, and who can start root's processes needs no such way to stop us.
    pub fn ban(&mut self, process: ProcessId, now_ns: u64) {
        let Some(at) = self.armed.iter().position(|armed| armed.process == process) else { return };
        let Armed { uid, since_ns, .. } = self.armed.remove(at);
        if uid == 0 {
            self.banned.push_back((process, now_ns));
            if self.banned.len() > MOST_BANNED {
                self.banned.pop_front();
            }
            self.used.push_back((uid, since_ns, now_ns));
        } else {
            self.used.push_back((uid, now_ns.saturating_sub(HOUR_NS), now_ns));
        }
    }

    fn is_banned(&self, process: ProcessId, now_ns: u64) -> bool {
        let is_it = |(banned, since_ns): &(ProcessId, u64)| {
            *banned == process && now_ns.saturating_sub(*since_ns) < HOUR_NS
        };
        self.banned.iter().any(is_it)
    }

    /// What a user's processes have left of this hour.
    fn left(&mut self, uid: u32, most: Duration, now_ns: u64) -> Duration {
        let hour_began = now_ns.saturating_sub(HOUR_NS);
        while self.used.front().is_some_and(|(_, _, ended_ns)| *ended_ns <= hour_began) {
            self.used.pop_front();
        }
        let of_user = self.used.iter().filter(|(user, ..)| *user == uid);
        let used = of_user.map(|(_, began, ended)| ended.saturating_sub(*began.max(&hour_began))).sum();
        most.saturating_sub(Duration::from_nanos(used))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const RULE: ArmingRule = ArmingRule { after: 10, time: Duration::from_secs(600) };

    fn owner(pid: u32, uid: u32, stuck: u64) -> StuckOwner {
        StuckOwner { process: id(pid), uid, stuck }
    }

    fn id(pid: u32) -> ProcessId {
        ProcessId { pid, began_ns: 1 }
    }

    #[test]
    fn a_growing_leak_arms_and_a_quiet_one_disarms() {
        let mut arming = Arming::new(Some(RULE));
        assert_eq!(arming.counted(&[owner(1, 0, 9)], S), (vec![], vec![]));
        assert_eq!(arming.counted(&[owner(1, 0, 10)], 2 * S), (vec![id(1)], vec![]));
        assert_eq!(arming.counted(&[owner(1, 0, 10)], 3 * S), (vec![], vec![]));
        assert_eq!(arming.counted(&[owner(1, 0, 11)], 4 * S), (vec![], vec![]));
        for at in 5..7 {
            assert_eq!(arming.counted(&[owner(1, 0, 11)], at * S), (vec![], vec![]));
        }
        assert_eq!(arming.counted(&[owner(1, 0, 11)], 7 * S), (vec![], vec![id(1)]));
        // It is not armed again until it grows.
        assert_eq!(arming.counted(&[owner(1, 0, 11)], 8 * S), (vec![], vec![]));
        assert_eq!(arming.counted(&[owner(1, 0, 12)], 9 * S), (vec![id(1)], vec![]));
        // Another process with this pid.
        let later = ProcessId { pid: 1, began_ns: 2 };
        assert_eq!(arming.expire(10 * S, |process| process != later), vec![id(1)]);
        assert!(arming.armed().is_empty());
    }

    #[test]
    fn one_process_of_a_user_and_four_in_all() {
        let mut arming = Arming::new(Some(RULE));
        arming.counted(&[], 0);
        let owners: Vec<StuckOwner> = (1..=12).map(|pid| owner(pid, pid / 2, 10 + u64::from(pid))).collect();
        let (new, _) = arming.counted(&owners, S);
        assert_eq!(new, [id(12), id(11), id(9), id(7)]);
        assert!(arming.counted(&[], 2 * S).0.is_empty());
    }

    #[test]
    fn nobody_is_armed_for_longer_than_that_in_an_hour() {
        let mut arming = Arming::new(Some(RULE));
        let (mut stuck, mut armed_ns) = (10, 0);
        for at in (1..7_200).step_by(30) {
            let now = at * S;
            // A user who starts a process anew for each count.
            stuck += 1;
            arming.expire(now, |_| false);
            let began = ProcessId { pid: 1, began_ns: at };
            arming.counted(&[StuckOwner { process: began, uid: 7, stuck }], now);
            armed_ns += u64::from(!arming.armed().is_empty()) * 30;
        }
        // Two hours, and what began before them.
        assert!((1_200..=1_320).contains(&armed_ns), "{armed_ns}");
    }

    #[test]
    fn a_user_whose_files_hang_is_left_alone_for_an_hour() {
        let mut arming = Arming::new(Some(RULE));
        let hour = HOUR_NS / S;
        arming.counted(&[], 0);
        assert_eq!(arming.counted(&[owner(1, 7, 10)], hour * S).0, [id(1)]);
        arming.ban(id(1), hour * S);
        assert_eq!(arming.counted(&[owner(1, 7, 11)], (hour + 1) * S).0, []);
        assert_eq!(arming.counted(&[owner(1, 7, 12), owner(2, 8, 12)], (hour + 2) * S).0, [id(2)]);
        assert_eq!(arming.counted(&[owner(1, 7, 13), owner(2, 8, 12)], (2 * hour + 1) * S).0, [id(1)]);
    }

    #[test]
    fn a_strange_process_of_roots_does_not_stand_for_the_others() {
        let mut arming = Arming::new(Some(RULE));
        let hour = HOUR_NS / S;
        arming.counted(&[], 0);
        assert_eq!(arming.counted(&[owner(1, 0, 10)], hour * S).0, [id(1)]);
        arming.ban(id(1), (hour + 1) * S);
        // It grows faster than any other, and is left alone all the same.
        assert_eq!(arming.counted(&[owner(1, 0, 99), owner(2, 0, 12)], (hour + 2) * S).0, [id(2)]);
        arming.end(id(2), (hour + 3) * S);
        // A later process with its pid is another one.
        let later = StuckOwner { process: ProcessId { pid: 1, began_ns: 2 }, uid: 0, stuck: 10 };
        assert_eq!(arming.counted(&[later, owner(2, 0, 12)], (hour + 4) * S).0, [later.process]);
        arming.end(later.process, (hour + 5) * S);
        assert_eq!(arming.counted(&[owner(1, 0, 100)], (2 * hour + 2) * S).0, [id(1)]);
        // Somebody may ask for it.
        arming.ban(id(1), (2 * hour + 3) * S);
        assert_eq!(arming.ask(id(1), 0, RULE.time, (2 * hour + 4) * S), Ok(true));
        for pid in 2..=MOST_BANNED as u32 + 9 {
            arming.expire(u64::MAX, |_| true);
            arming.ask(id(pid), 0, RULE.time, (2 * hour + 5) * S).unwrap();
            arming.ban(id(pid), (2 * hour + 5) * S);
        }
        assert!(arming.banned.len() <= MOST_BANNED);
    }

    #[test]
    fn what_somebody_asks_for_has_a_bound_of_its_own() {
        let mut arming = Arming::new(None);
        assert_eq!(arming.counted(&[owner(1, 0, 99)], S), (vec![], vec![]));
        let minute = Duration::from_secs(60);
        for pid in 1..=4 {
            assert_eq!(arming.ask(id(pid), 0, minute, S), Ok(true));
        }
        assert_eq!(arming.ask(id(5), 0, minute, S), Err(TooMany));
        assert_eq!(arming.ask(id(4), 0, 2 * minute, S), Ok(false));
        arming.ask_accept(id(4), minute / 2, S);
        assert_eq!(arming.expire_accept(30 * S), []);
        assert_eq!((arming.expire_accept(31 * S), arming.expire_accept(99 * S)), (vec![id(4)], vec![]));
        assert_eq!(arming.expire(61 * S, |_| false), [id(1), id(2), id(3)]);
        assert_eq!(arming.expire(121 * S, |_| false), [id(4)]);
    }
}
