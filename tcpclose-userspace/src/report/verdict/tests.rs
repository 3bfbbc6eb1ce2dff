//! Histories as real programs make them, and the verdicts on them.

use proptest::prelude::*;

use super::*;
use crate::names::Diagnosis;
use crate::report::fixtures::{SECOND, owner, socket};
use crate::report::sockets::{AgeSeconds, Cookie, Owner};

const BOUNDS: StuckBounds = StuckBounds { first_ns: 60 * SECOND, second_ns: 600 * SECOND };
/// Looks are half a minute apart.
const LOOK: u64 = 30;

/// A host, by seconds from a start.
struct Scene {
    verdicts: Verdicts,
    now: u64,
    /// Cookie, entry, and what differs from [`Self::template`].
    sockets: Vec<(u64, u64)>,
    template: StuckSocket,
    half_closed: Vec<StuckSocket>,
    next: u64,
}

impl Scene {
    fn new(side: Side, diagnosis: Diagnosis) -> Self {
        let template =
            StuckSocket { side, diagnosis: Some(diagnosis), ..socket(0, &[owner(42, "app", (9, 99))]) };
        Self {
            verdicts: Verdicts::default(),
            now: 10_000,
            sockets: Vec::new(),
            template,
            half_closed: Vec::new(),
            next: 1,
        }
    }

    fn open(&mut self, n: usize) {
        for _ in 0..n {
            self.sockets.push((self.next, self.now));
            self.next += 1;
        }
    }

    fn end(&mut self, nth: usize, how: LateEnd) {
        let (cookie, since) = self.sockets.remove(nth);
        self.verdicts.left(cookie, how, (self.now - since) * SECOND);
    }

    fn look(&mut self) -> Verdict {
        self.now += LOOK;
        let sockets: Vec<StuckSocket> = self
            .sockets
            .iter()
            .map(|&(cookie, since)| {
                let age = (self.now - since) as f64;
                let age = AgeSeconds { exact: true, min_seconds: age, max_seconds: Some(age) };
                StuckSocket { cookie: Cookie(cookie), age, ..self.template.clone() }
            })
            .collect();
        self.verdicts.look(&sockets, &self.half_closed, BOUNDS, self.now * SECOND);
        self.verdict()
    }

    fn verdict(&self) -> Verdict {
        self.verdicts.groups(self.now * SECOND).first().map_or(Verdict::Undecided, |group| group.verdict)
    }

    /// Looks for so many minutes, and `each` time before.
    fn minutes(&mut self, minutes: u64, mut each: impl FnMut(&mut Self)) -> Verdict {
        let mut last = self.verdict();
        for _ in 0..minutes * 60 / LOOK {
            each(self);
            last = self.look();
        }
        last
    }
}

#[test]
fn a_leak_is_one_within_ten_sockets_or_a_quarter_of_an_hour() {
    for (side, diagnosis) in [(Side::Server, Diagnosis::NotClosed), (Side::Client, Diagnosis::NotClosed)] {
        let mut fast = Scene::new(side, diagnosis);
        let verdict = fast.minutes(6, |scene| scene.open(1));
        assert_eq!(verdict, Verdict::Leak, "{side:?}");
        assert!(fast.sockets.len() <= 12);
        // One in three minutes.
        let mut slow = Scene::new(side, diagnosis);
        let mut nth = 0;
        let verdict = slow.minutes(17, |scene| {
            scene.open(usize::from(nth % 6 == 0));
            nth += 1;
        });
        assert_eq!(verdict, Verdict::Leak, "{side:?}");
    }
    // A program that forgets whole sessions: nobody reads from them, as from a pool's.
    let mut sessions = Scene::new(Side::Client, Diagnosis::NotRead);
    assert_eq!(sessions.minutes(10, |scene| scene.open(1)), Verdict::Undecided);
    let groups = sessions.verdicts.groups(sessions.now * SECOND);
    assert!(groups[0].waits_for.as_ref().unwrap().contains("whether more arrive"), "{groups:?}");
    assert_eq!(sessions.minutes(8, |scene| scene.open(1)), Verdict::Leak);
    assert_eq!(sessions.minutes(60, |_| ()), Verdict::Leak, "it does not become a pool by pausing");
}

#[test]
fn a_pool_is_none_of_these() {
    // Nothing uses it.
    let mut idle = Scene::new(Side::Client, Diagnosis::NotRead);
    idle.open(10);
    assert_eq!(idle.minutes(7, |_| ()), Verdict::StalePool);
    // Its connections run idle one after another, while the others work.
    let mut draining = Scene::new(Side::Client, Diagnosis::NotRead);
    let verdicts: Vec<Verdict> = (0..40)
        .map(|nth| {
            draining.open(usize::from(nth < 19 && nth % 2 == 0));
            draining.look()
        })
        .collect();
    assert!(!verdicts.contains(&Verdict::Leak), "{verdicts:?}");
    assert_eq!(draining.minutes(20, |_| ()), Verdict::StalePool);
    // Used again, and reset.
    for how in [LateEnd::ResetAfterWrite, LateEnd::Closed] {
        let mut used = Scene::new(Side::Client, Diagnosis::NotRead);
        used.open(5);
        used.minutes(3, |_| ());
        used.end(2, how);
        assert_eq!(used.minutes(1, |scene| scene.open(1)), Verdict::StalePool);
        let group = used.verdicts.groups(used.now * SECOND).remove(0);
        assert!(group.evidence.iter().any(|line| line.starts_with("others ended late: 1 ")), "{group:?}");
        assert!(group.advice.unwrap().contains("idle time-out"));
    }
}

#[test]
fn what_hangs_reads_and_accepts_none() {
    let mut hung = Scene::new(Side::Server, Diagnosis::NotRead);
    assert_eq!(hung.minutes(4, |scene| scene.open(1)), Verdict::Hung);
    let mut full = Scene::new(Side::Server, Diagnosis::NotAccepted);
    full.open(4);
    assert_eq!(full.minutes(3, |_| ()), Verdict::Hung);
    // A worker that is lost, in a program that serves others.
    let mut lost = Scene::new(Side::Server, Diagnosis::NotRead);
    lost.open(2);
    let verdict = lost.minutes(13, |scene| scene.verdicts.closed(42, 999, scene.now * SECOND));
    assert_eq!(verdict, Verdict::OneOff);
    // A program that served others until it hung.
    let mut later = Scene::new(Side::Server, Diagnosis::NotRead);
    later.minutes(3, |scene| scene.verdicts.closed(42, 999, scene.now * SECOND));
    later.open(1);
    later.minutes(3, |scene| scene.verdicts.closed(42, 999, scene.now * SECOND));
    assert_eq!(later.minutes(4, |scene| scene.open(1)), Verdict::Hung);
    // Data waits, and is read.
    let mut slow = Scene::new(Side::Server, Diagnosis::NotRead);
    slow.template.unread_bytes = 1_000_000;
    slow.open(3);
    assert_eq!(slow.minutes(5, |scene| scene.template.unread_bytes -= 1000), Verdict::SlowReader);
}

#[test]
fn a_few_that_no_traffic_adds_to_are_no_leak() {
    let closes = |scene: &mut Scene, n: u64| {
        for nth in 0..n {
            scene.verdicts.closed(42, 1 << 32 | nth, scene.now * SECOND);
        }
    };
    let scene = || {
        let mut few = Scene::new(Side::Server, Diagnosis::NotClosed);
        few.open(1);
        few.minutes(5, |scene| closes(scene, 1));
        few.open(1);
        few.minutes(1, |scene| closes(scene, 1));
        few.open(1);
        few
    };
    // The program goes on to close what it is given.
    let mut forgotten = scene();
    assert_eq!(forgotten.minutes(10, |scene| closes(scene, 20)), Verdict::Undecided);
    assert_eq!(forgotten.minutes(4, |scene| closes(scene, 20)), Verdict::OneOff);
    // Nothing tells that it does.
    assert_eq!(scene().minutes(10, |_| ()), Verdict::Leak);
}

#[test]
fn a_few_that_stay_a_few_are_no_leak() {
    let mut few = Scene::new(Side::Server, Diagnosis::NotClosed);
    few.open(30);
    assert_eq!(few.minutes(5, |_| ()), Verdict::Undecided);
    assert_eq!(few.minutes(7, |_| ()), Verdict::OneOff);
    // Until they are more.
    assert_eq!(few.minutes(10, |scene| scene.open(1)), Verdict::Leak);
    let group = few.verdicts.groups(few.now * SECOND).remove(0);
    assert!(group.evidence.contains(&"it was one_off before".to_owned()), "{group:?}");
}

#[test]
fn a_proxy_waits_for_the_other_end() {
    let mut proxy = Scene::new(Side::Server, Diagnosis::NotClosed);
    let behind = |pid| StuckSocket {
        state: Phase::FinWait2,
        side: Side::Client,
        port: 9000,
        ..socket(1, &[owner(pid, "haproxy", (1, 2))])
    };
    proxy.open(4);
    proxy.half_closed = (0..4).map(|_| behind(43)).collect();
    assert_ne!(proxy.minutes(2, |_| ()), Verdict::ProxyHalfClose, "another process's");
    proxy.half_closed = (0..4).map(|_| behind(42)).collect();
    assert_eq!(proxy.minutes(2, |_| ()), Verdict::ProxyHalfClose);
}

#[test]
fn a_live_half_close_is_undecided_until_the_second_bound() {
    let mut waiting = Scene::new(Side::Server, Diagnosis::NotClosed);
    waiting.template.peer_waits = true;
    waiting.open(12);
    assert_eq!(waiting.minutes(8, |_| ()), Verdict::Undecided);
    assert!(waiting.verdicts.groups(0)[0].waits_for.as_ref().unwrap().contains("answer"));
    assert_eq!(waiting.minutes(6, |_| ()), Verdict::OneOff);
}

#[test]
fn a_worker_comes_before_its_master() {
    let mut shared = Scene::new(Side::Server, Diagnosis::NotAccepted);
    let with_parent = |pid: u32, parent: u32| {
        let Owner { process, .. } = owner(pid, "gunicorn", (1, 2));
        let process = crate::linux::process::Process { parent: Some(parent), ..(*process).clone() };
        Owner { pid, process: process.into(), ..Owner::default() }
    };
    let owners = [with_parent(7, 1), with_parent(8, 7), with_parent(9, 7)];
    shared.template = StuckSocket { diagnosis: Some(Diagnosis::NotAccepted), ..socket(0, &owners) };
    shared.open(3);
    shared.minutes(3, |_| ());
    assert_eq!(shared.verdicts.groups(0)[0].pids, [8, 7, 9]);
}

#[test]
fn children_of_a_forking_server_are_one_group() {
    let mut forks = Scene::new(Side::Server, Diagnosis::NotClosed);
    let bound = BOUNDS.first_ns as f64 / 1e9;
    let sockets: Vec<StuckSocket> = (1..=20_u32)
        .map(|pid| {
            let Owner { process, .. } = owner(pid, "socat", (1, 2));
            let process = crate::linux::process::Process { parent: Some(7), ..(*process).clone() };
            let owner = Owner { pid, process: process.into(), ..Owner::default() };
            StuckSocket { cookie: Cookie(pid.into()), ..socket(bound as u64 + 1, &[owner]) }
        })
        .collect();
    forks.verdicts.look(&sockets, &[], BOUNDS, 5 * SECOND);
    let groups = forks.verdicts.groups(5 * SECOND);
    assert_eq!((groups.len(), &*groups[0].pids, groups[0].stuck), (1, &[7][..], 20));
    assert!(groups[0].of_children);
}

#[test]
fn a_thousand_owners_take_bounded_memory() {
    let mut verdicts = Verdicts::default();
    for round in 0..50_u64 {
        let sockets: Vec<StuckSocket> = (1..=1000_u32)
            .map(|nth| {
                let pid = nth + 1000 * round as u32;
                StuckSocket { cookie: Cookie(pid.into()), ..socket(99, &[owner(pid, "x", (1, 2))]) }
            })
            .collect();
        verdicts.look(&sockets, &[], BOUNDS, (100 + round * LOOK) * SECOND);
        assert!(verdicts.groups.len() <= MOST_GROUPS && verdicts.by_cookie.len() <= MOST_GROUPS);
    }
    for round in 0..200_u64 {
        verdicts.look(&[], &[], BOUNDS, (2000 + round * LOOK) * SECOND);
    }
    assert!(verdicts.is_empty() && verdicts.by_pid.is_empty() && verdicts.by_cookie.is_empty());
}

proptest! {
    /// Whatever happens, a verdict that was given changes only as the rules allow, and no text has a control character.
    #[test]
    fn no_history_is_too_strange(steps in prop::collection::vec((0..6_u8, 0..20_usize), 1..60), client: bool, why in 0..3_usize) {
        let why = [Diagnosis::NotRead, Diagnosis::NotClosed, Diagnosis::NotAccepted][why];
        let mut scene = Scene::new(if client { Side::Client } else { Side::Server }, why);
        let mut given = Verdict::Undecided;
        for (what, n) in steps {
            match what {
                0 => scene.open(n),
                1 if n < scene.sockets.len() => scene.end(n, LateEnd::Closed),
                2 if n < scene.sockets.len() => scene.end(n, LateEnd::ResetAfterWrite),
                3 => { scene.sockets.truncate(n); }
                4 => scene.verdicts.closed(42, 1, scene.now * SECOND),
                _ => {}
            }
            scene.look();
            for group in scene.verdicts.groups(scene.now * SECOND) {
                prop_assert!(group.verdict != Verdict::Undecided || given == Verdict::Undecided);
                given = group.verdict;
                prop_assert_eq!(group.waits_for.is_some(), group.verdict == Verdict::Undecided);
                prop_assert!(group.evidence.iter().all(|line| !line.contains(char::is_control) && !line.is_empty()));
            }
            if scene.verdicts.groups.is_empty() {
                given = Verdict::Undecided;
            }
        }
    }
}

#[test]
fn a_group_that_is_too_large_counts_by_its_number() {
    let mut many = Scene::new(Side::Server, Diagnosis::NotClosed);
    many.open(MOST_OF_GROUP + 100);
    assert_eq!(many.minutes(5, |_| ()), Verdict::Undecided);
    let arrived = |scene: &Scene| scene.verdicts.groups(scene.now * SECOND)[0].arrived;
    assert_eq!(arrived(&many), 0, "the same sockets do not arrive again");
    many.open(50);
    many.minutes(3, |_| ());
    assert_eq!(arrived(&many), 50);
    assert!(many.verdicts.by_cookie.is_empty());
    // Few enough again: none of them is new.
    many.sockets.truncate(100);
    many.minutes(2, |_| ());
    assert_eq!(arrived(&many), 50);
    many.open(1);
    many.minutes(3, |_| ());
    assert_eq!(arrived(&many), 51);
}

#[test]
fn what_strangers_do_on_the_same_port_says_nothing() {
    let mut leak = Scene::new(Side::Client, Diagnosis::NotRead);
    let verdict = leak.minutes(18, |scene| {
        scene.open(1);
        // Another program's, which no look has met.
        scene.verdicts.left(1 << 40, LateEnd::ResetAfterWrite, 90 * SECOND);
        scene.verdicts.closed(99, 1 << 41, scene.now * SECOND);
    });
    assert_eq!(verdict, Verdict::Leak);
}

#[test]
fn sockets_that_are_at_work_again_have_not_ended() {
    let mut pool = Scene::new(Side::Client, Diagnosis::NotRead);
    pool.open(3);
    pool.minutes(3, |_| ());
    pool.now += LOOK;
    pool.verdicts.nothing_stuck(BOUNDS, pool.now * SECOND);
    assert!(pool.verdicts.groups(pool.now * SECOND).is_empty());
    pool.look();
    let group = pool.verdicts.groups(pool.now * SECOND).remove(0);
    assert_eq!((group.ended_unseen, group.arrived), (0, 0));
    // Gone, while others are stuck.
    pool.sockets.remove(0);
    pool.look();
    assert_eq!(pool.verdicts.groups(pool.now * SECOND)[0].ended_unseen, 1);
}
