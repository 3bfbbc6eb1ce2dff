//! The tracker driven by made-up records and dumps: no kernel, no root, every instant an argument.

use std::net::SocketAddr;

use tcpclose_common::event::{Head, News, Notice, Open, Record, Step, flags::*};
use tcpclose_common::state::TcpState::{self, *};

use super::fact::{Ended, Fact, Mended, Pair, Sink, Why};
use super::join::{Covers, Seen, View};
use super::life::{Body, Closer};
use super::notice::Told;
use super::{Host, Tracker};
use crate::terms::{Age, Flow, Outcome, Phase, Role, Side, words_of};

const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;
/// Events of these tests begin here, so that "before" exists.
const T0: u64 = 1_000 * S;
const HERE: u32 = 4_026_531_840;
const TIME_WAIT: u64 = 60 * S;

const SERVER: Pair = Pair { side: Side::Server, port: 80 };
const CLIENT: Pair = Pair { side: Side::Client, port: 80 };

/// The tracker under test, and what it has told.
struct Bench {
    tracker: Tracker,
    facts: Vec<Fact>,
    by_cookie: bool,
    /// Flags that every record of this door carries.
    door: u16,
    netns: u32,
}

impl Bench {
    fn new(by_cookie: bool, btf: bool) -> Self {
        let mut tracker = Tracker::new(
            Host { netns: HERE, everywhere: false, told: btf, ephemeral: 32768..=60999 },
            by_cookie,
        );
        tracker.set_time_wait_ns(TIME_WAIT);
        let door = if by_cookie { COOKIE } else { 0 } | if btf { FACTS } else { 0 };
        Self { tracker, facts: Vec::new(), by_cookie, door, netns: if btf { HERE } else { 0 } }
    }

    fn btf() -> Self {
        Self::new(true, true)
    }

    /// One of each: tp_btf, classic with BTF, classic without.
    fn doors() -> [Self; 3] {
        [Self::new(true, true), Self::new(false, true), Self::new(false, false)]
    }

    fn has_facts(&self) -> bool {
        self.door & FACTS != 0
    }

    fn head(&self, key: u64, flow: &Flow, at: u64, (old, new): (TcpState, TcpState), more: u16) -> Head {
        let more = if self.has_facts() { more } else { 0 };
        Head {
            key,
            time_ns: at,
            local_port: flow.local_port,
            remote_port: flow.remote_port,
            old: old.raw(),
            new: new.raw(),
            flags: self.door | more,
            netns: self.netns,
            err: 0,
            err_soft: 0,
        }
    }

    fn take(&mut self, head: Head, flow: &Flow) {
        let hash = if self.by_cookie { 0 } else { flow.hash64() };
        let record = if tcpclose_common::state::opens_life(head.old.into()) {
            Record::Open(Open {
                head: Head { flags: head.flags | OPEN, ..head },
                flow: hash,
                local: words_of(flow.local),
                remote: words_of(flow.remote),
                inum: head.netns,
                spare: 0,
            })
        } else {
            Record::Step(Step { head, flow: hash })
        };
        self.tracker.record(&record, &mut self.facts);
    }

    fn step(&mut self, key: u64, flow: &Flow, at: u64, step: (TcpState, TcpState), more: u16) {
        let head = self.head(key, flow, at, step, more);
        self.take(head, flow);
    }

    /// A dump that began at `at` and saw everything at that instant.
    fn dump(&mut self, at: u64, first: bool, seen: &[Seen]) -> Vec<super::join::Suspect> {
        self.tracker.dump_started();
        let states = tcpclose_common::state::CLOSE_PHASE | TimeWait.bit() | Listen.bit();
        let view = View { covers: &here(), seen, states, started_ns: at, first };
        self.tracker.dump(&view, 100, &mut self.facts)
    }

    /// The key of this bench's one socket: its cookie, 7, or the address that the classic door knows it by.
    fn key(&self) -> u64 {
        if self.by_cookie { 7 } else { 0xffff_8880_0000_0007 }
    }

    /// A hook speaks of the socket with the cookie 7.
    fn notice(&mut self, news: News, at: u64, (old, new): (TcpState, TcpState), sk: u64) {
        let head =
            Head { flags: NOTICE | COOKIE, err: news as u16, ..self.head(7, &client(), at, (old, new), 0) };
        self.tracker.record(&Record::Notice(Notice { head, sk }, news), &mut self.facts);
    }

    fn told(&mut self) -> Vec<Fact> {
        std::mem::take(&mut self.facts)
    }
}

/// The agent's own namespace alone is dumped.
fn here() -> Covers {
    Covers { netns: [(HERE, HERE)].into(), all: true }
}

fn flow(local: &str, remote: &str) -> Flow {
    let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
    Flow::new(parse(local), parse(remote))
}

/// This end connected to port 80.
fn client() -> Flow {
    flow("10.0.0.1:40000", "10.0.0.2:80")
}

/// This end was accepted on port 80.
fn server() -> Flow {
    flow("10.0.0.2:80", "10.0.0.1:40000")
}

fn seen(state: TcpState, body: Body, flow: Flow, cookie: u64, at: u64, expires_ns: u64) -> Seen {
    Seen {
        state,
        body,
        flow,
        cookie,
        netns: HERE,
        interface: 0,
        seen_ns: at,
        expires_ns,
        age: Age { min_ns: 0, max_ns: None },
        sent_ns: None,
    }
}

fn listener() -> Seen {
    seen(Listen, Body::Socket, flow("0.0.0.0:80", "0.0.0.0:0"), 99, T0, 0)
}

const fn transition(from: TcpState, to: TcpState) -> Fact {
    Fact::Transition { from, to }
}

const fn closed(pair: Pair, role: Role, outcome: Outcome) -> Fact {
    Fact::Closed { pair, role, outcome }
}

#[test]
fn a_passive_close_is_close_wait_then_last_ack() {
    for mut bench in Bench::doors() {
        bench.dump(T0 - S, true, &[listener()]);
        bench.step(7, &server(), T0, (Established, CloseWait), ACCEPTED);
        bench.step(7, &server(), T0 + 500 * MS, (CloseWait, LastAck), ACCEPTED | OWNED);
        bench.step(7, &server(), T0 + 501 * MS, (LastAck, Close), ACCEPTED | DONE | DEAD | FIN_ACKED);
        let outcome = if bench.has_facts() { Outcome::Graceful } else { Outcome::Unknown };
        assert_eq!(
            bench.told(),
            [
                transition(Established, CloseWait),
                Fact::Dwelt { phase: Phase::CloseWait, pair: SERVER, ns: 500 * MS },
                transition(CloseWait, LastAck),
                Fact::Dwelt { phase: Phase::LastAck, pair: SERVER, ns: MS },
                transition(LastAck, Close),
                closed(SERVER, Role::Passive, outcome),
            ]
        );
        assert!(bench.tracker.is_empty());
    }
}

/// The common active close: the peer's FIN comes later, and the tracepoint says CLOSE at once.
#[test]
fn fin_wait_2_goes_on_in_the_minisocket_until_the_timer_tells_the_flip() {
    for mut bench in Bench::doors() {
        let cookie = if bench.by_cookie { 7 } else { 0x55 };
        let client_side = if bench.has_facts() { CLIENT } else { Pair { side: Side::Unknown, port: 80 } };
        bench.dump(T0 - S, true, &[]);
        bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
        bench.step(7, &client(), T0 + MS, (FinWait1, FinWait2), DEAD | FIN_ACKED);
        bench.step(7, &client(), T0 + MS, (FinWait2, Close), DEAD | FIN_ACKED);
        assert_eq!(
            bench.told(),
            [
                transition(Established, FinWait1),
                Fact::Dwelt { phase: Phase::FinWait1, pair: client_side, ns: MS },
                transition(FinWait1, FinWait2),
            ]
        );
        let at = T0 + S;
        bench.dump(at, false, &[seen(FinWait2, Body::Minisocket, client(), cookie, at, 59 * S)]);
        assert_eq!(bench.told(), [], "still FIN-WAIT-2, and no transition");
        // The FIN came 4.2 s after the ACK.
        let (at, entry) = (T0 + 5 * S, T0 + MS + 4200 * MS);
        let left = entry + TIME_WAIT - at;
        bench.dump(at, false, &[seen(TimeWait, Body::Minisocket, client(), cookie, at, left)]);
        assert_eq!(
            bench.told(),
            [
                Fact::Dwelt { phase: Phase::FinWait2, pair: client_side, ns: 4200 * MS },
                transition(FinWait2, TimeWait),
                closed(client_side, Role::Active, Outcome::Graceful),
            ]
        );
        assert_eq!(bench.tracker.lives().next().unwrap().since.age(at), Age::exact(at - entry));
        // Last seen a second before it is gone; the timer was due.
        let at = T0 + 64 * S;
        bench.dump(at, false, &[seen(TimeWait, Body::Minisocket, client(), cookie, at, S / 2)]);
        bench.dump(T0 + 66 * S, false, &[]);
        assert_eq!(
            bench.told(),
            [
                Fact::Dwelt { phase: Phase::TimeWait, pair: client_side, ns: at + S / 2 - entry },
                transition(TimeWait, Close),
                Fact::TimeWaitEnded { how: Ended::Expired },
            ]
        );
        assert!(bench.tracker.is_empty());
    }
}

#[test]
fn time_wait_is_entered_at_the_event_when_the_fin_came_with_the_ack() {
    let mut bench = Bench::btf();
    bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(7, &client(), T0 + MS, (FinWait1, FinWait2), DEAD | FIN_ACKED);
    bench.step(7, &client(), T0 + MS + 2000, (FinWait2, Close), DEAD | DONE | FIN_ACKED);
    assert_eq!(
        bench.told()[2..],
        [
            transition(FinWait1, FinWait2),
            Fact::Dwelt { phase: Phase::FinWait2, pair: CLIENT, ns: 2000 },
            transition(FinWait2, TimeWait),
            closed(CLIENT, Role::Active, Outcome::Graceful),
        ]
    );
    let life = bench.tracker.lives().next().unwrap();
    assert_eq!((life.phase, life.body), (Phase::TimeWait, Body::Minisocket));
}

#[test]
fn a_simultaneous_close_ends_in_time_wait_once() {
    for mut bench in Bench::doors() {
        let facts = bench.has_facts();
        let pair = if facts { CLIENT } else { Pair { side: Side::Unknown, port: 80 } };
        let cookie = if bench.by_cookie { 7 } else { 0x55 };
        bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
        bench.step(7, &client(), T0 + MS, (FinWait1, Closing), DONE | DEAD);
        bench.step(7, &client(), T0 + 2 * MS, (Closing, Close), DONE | DEAD | FIN_ACKED);
        let at = T0 + S;
        bench.dump(at, false, &[seen(TimeWait, Body::Minisocket, client(), cookie, at, 59 * S)]);
        assert_eq!(
            bench.told(),
            [
                transition(Established, FinWait1),
                Fact::Dwelt { phase: Phase::FinWait1, pair, ns: MS },
                transition(FinWait1, Closing),
                Fact::Dwelt { phase: Phase::Closing, pair, ns: MS },
                transition(Closing, TimeWait),
                closed(pair, Role::Simultaneous, Outcome::Graceful),
            ]
        );
    }
}

#[test]
fn a_reset_or_timeout_ends_a_life_and_leaves_nothing() {
    for (err, outcome) in [
        (104, Outcome::ResetReceived),
        (110, Outcome::Timeout),
        (103, Outcome::Destroyed),
        (0, Outcome::Aborted),
    ] {
        let mut bench = Bench::btf();
        bench.step(7, &server(), T0, (Established, CloseWait), ACCEPTED);
        let head = bench.head(7, &server(), T0 + S, (CloseWait, Close), ACCEPTED | DONE);
        bench.take(Head { err, ..head }, &server());
        assert_eq!(
            bench.told()[1..],
            [
                Fact::Dwelt { phase: Phase::CloseWait, pair: SERVER, ns: S },
                transition(CloseWait, Close),
                closed(SERVER, Role::Passive, outcome),
            ]
        );
        assert!(bench.tracker.is_empty());
    }
}

#[test]
fn a_connection_that_ends_without_a_fin_has_no_role() {
    let mut bench = Bench::btf();
    bench.step(7, &server(), T0, (Established, Close), ACCEPTED);
    assert_eq!(bench.told(), [transition(Established, Close), closed(SERVER, Role::None, Outcome::Aborted)]);
    assert!(bench.tracker.is_empty());
}

#[test]
fn clocks_of_two_cpus_may_invert_and_no_duration_is_negative() {
    let mut bench = Bench::btf();
    bench.step(7, &server(), T0, (Established, CloseWait), ACCEPTED);
    bench.step(7, &server(), T0 - 300, (CloseWait, LastAck), ACCEPTED);
    assert!(bench.told().contains(&Fact::Dwelt { phase: Phase::CloseWait, pair: SERVER, ns: 0 }));
}

#[test]
fn what_was_there_first_has_an_interval_and_makes_a_sample_only_when_it_is_narrow() {
    for (age, sample) in [
        (Age { min_ns: 100 * S, max_ns: Some(101 * S) }, Some(110 * S)),
        (Age { min_ns: 10 * S, max_ns: Some(100 * S) }, None),
        (Age { min_ns: 100 * S, max_ns: None }, None),
    ] {
        for mut bench in Bench::doors() {
            let old = Seen { age, ..seen(CloseWait, Body::Socket, server(), 7, T0, 0) };
            bench.dump(T0, true, &[listener(), old]);
            assert_eq!(bench.told(), [], "nothing happened yet");
            let life = bench.tracker.lives().next().unwrap();
            assert_eq!((life.pair(), life.role), (SERVER, Role::Passive));
            assert_eq!(life.since.age(T0), age);
            bench.step(7, &server(), T0 + 10 * S, (CloseWait, LastAck), ACCEPTED);
            assert_eq!(
                bench.told()[0],
                match sample {
                    Some(ns) => Fact::Dwelt { phase: Phase::CloseWait, pair: SERVER, ns },
                    None => Fact::Unseen { phase: Phase::CloseWait, why: Why::BeforeAgent },
                }
            );
            assert_eq!(bench.tracker.len(), 1, "the record found the life of the dump");
        }
    }
}

#[test]
fn a_time_wait_that_was_there_first_has_its_true_age_and_never_counts_as_a_close() {
    let mut bench = Bench::btf();
    bench.dump(T0, true, &[seen(TimeWait, Body::Minisocket, client(), 7, T0, 20 * S)]);
    assert_eq!(bench.tracker.lives().next().unwrap().since.age(T0), Age::exact(40 * S));
    bench.dump(T0 + 19 * S, false, &[seen(TimeWait, Body::Minisocket, client(), 7, T0 + 19 * S, S)]);
    bench.dump(T0 + 21 * S, false, &[]);
    let pair = Pair { side: Side::Unknown, port: 80 };
    assert_eq!(
        bench.told(),
        [
            Fact::Dwelt { phase: Phase::TimeWait, pair, ns: 60 * S },
            transition(TimeWait, Close),
            Fact::TimeWaitEnded { how: Ended::Expired },
        ]
    );
}

#[test]
fn a_stranger_of_which_only_the_end_is_seen_counts_and_makes_no_duration() {
    let mut bench = Bench::btf();
    bench.step(7, &server(), T0, (LastAck, Close), ACCEPTED | DONE | DEAD | FIN_ACKED);
    assert_eq!(
        bench.told(),
        [
            Fact::Unseen { phase: Phase::LastAck, why: Why::BeforeAgent },
            transition(LastAck, Close),
            closed(SERVER, Role::Passive, Outcome::Graceful),
        ]
    );
    bench.tracker.records_lost();
    bench.step(8, &server(), T0, (CloseWait, LastAck), ACCEPTED);
    assert_eq!(bench.told()[0], Fact::Unseen { phase: Phase::CloseWait, why: Why::Lost });
}

#[test]
fn a_minisocket_that_no_dump_saw_is_unseen() {
    let mut bench = Bench::btf();
    bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(7, &client(), T0 + MS, (FinWait1, FinWait2), DEAD);
    bench.step(7, &client(), T0 + MS, (FinWait2, Close), DEAD);
    bench.told();
    let suspects = bench.dump(T0 + S, false, &[]);
    assert_eq!(bench.told(), [], "an absence is a suspicion");
    assert_eq!(suspects.len(), 1);
    bench.tracker.gone(&suspects[0], T0 + S + MS, &mut bench.facts);
    assert_eq!(
        bench.told(),
        [
            Fact::Unseen { phase: Phase::FinWait2, why: Why::BetweenDumps },
            transition(FinWait2, Close),
            closed(CLIENT, Role::Active, Outcome::Unknown),
        ]
    );
}

#[test]
fn a_reset_that_looks_like_a_hand_over_ends_a_long_phase_at_its_record() {
    let mut bench = Bench::new(false, false);
    bench.step(7, &client(), T0, (Established, FinWait1), 0);
    bench.step(7, &client(), T0, (FinWait1, FinWait2), 0);
    bench.step(7, &client(), T0 + 3 * S, (FinWait2, Close), 0);
    bench.told();
    let suspects = bench.dump(T0 + 4 * S, false, &[]);
    bench.tracker.gone(&suspects[0], T0 + 4 * S + MS, &mut bench.facts);
    let told = bench.told();
    assert!(matches!(told[0], Fact::Dwelt { phase: Phase::FinWait2, ns, .. } if ns == 3 * S), "{told:?}");
}

#[test]
fn fin_wait_2_that_runs_out_is_a_timeout() {
    let mut bench = Bench::btf();
    bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(7, &client(), T0, (FinWait1, FinWait2), DEAD);
    bench.step(7, &client(), T0, (FinWait2, Close), DEAD);
    for second in [1, 30, 60] {
        let at = T0 + second * S;
        bench.dump(at, false, &[seen(FinWait2, Body::Minisocket, client(), 7, at, (60 - second) * S)]);
    }
    bench.told();
    bench.dump(T0 + 62 * S, false, &[]);
    assert_eq!(
        bench.told(),
        [
            Fact::Dwelt { phase: Phase::FinWait2, pair: CLIENT, ns: 60 * S },
            transition(FinWait2, Close),
            closed(CLIENT, Role::Active, Outcome::Timeout),
        ]
    );
}

#[test]
fn a_minisocket_gone_before_its_timer_ended_early() {
    let mut bench = Bench::btf();
    bench.dump(T0, true, &[seen(TimeWait, Body::Minisocket, client(), 7, T0, 50 * S)]);
    let suspects = bench.dump(T0 + S, false, &[]);
    bench.tracker.gone(&suspects[0], T0 + S, &mut bench.facts);
    assert!(bench.told().contains(&Fact::TimeWaitEnded { how: Ended::Early }));
}

#[test]
fn other_namespaces_minisockets_are_unseen_but_their_steps_count() {
    let mut bench = Bench::btf();
    bench.netns = HERE + 1;
    bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(7, &client(), T0 + MS, (FinWait1, FinWait2), DEAD);
    bench.step(7, &client(), T0 + 2 * MS, (FinWait2, Close), DEAD | DONE);
    assert_eq!(
        bench.told()[3..],
        [
            Fact::Dwelt { phase: Phase::FinWait2, pair: CLIENT, ns: MS },
            transition(FinWait2, TimeWait),
            closed(CLIENT, Role::Active, Outcome::Graceful),
            Fact::Unseen { phase: Phase::TimeWait, why: Why::Namespace },
        ]
    );
    assert!(bench.tracker.is_empty());
}

#[path = "elsewhere_tests.rs"]
mod elsewhere;

#[test]
fn a_socket_that_ended_while_the_dump_ran_does_not_come_back() {
    for mut bench in Bench::doors() {
        bench.dump(T0 - S, true, &[listener()]);
        bench.step(7, &server(), T0, (Established, CloseWait), ACCEPTED);
        bench.tracker.dump_started();
        bench.step(7, &server(), T0 + S, (CloseWait, LastAck), ACCEPTED);
        bench.step(7, &server(), T0 + S, (LastAck, Close), ACCEPTED | DONE | DEAD | FIN_ACKED);
        bench.told();
        let seen = [seen(CloseWait, Body::Socket, server(), 7, T0 + S - MS, 0)];
        let view = View {
            covers: &here(),
            seen: &seen,
            states: CloseWait.bit(),
            started_ns: T0 + S - MS,
            first: false,
        };
        bench.tracker.dump(&view, 100, &mut bench.facts);
        assert_eq!(bench.told(), []);
        assert!(bench.tracker.is_empty());
    }
}

#[test]
fn a_reconcile_mends_what_lost_records_left() {
    let mut bench = Bench::btf();
    // Known to be in CLOSE-WAIT; the kernel has it in LAST-ACK. And one that nobody knew.
    bench.step(7, &server(), T0, (Established, CloseWait), ACCEPTED);
    bench.step(9, &server(), T0, (Established, CloseWait), ACCEPTED);
    bench.told();
    let at = T0 + 10 * S;
    let unknown = flow("10.0.0.2:80", "10.0.0.1:40001");
    let suspects = bench.dump(
        at,
        false,
        &[
            listener(),
            seen(LastAck, Body::Socket, server(), 7, at, 0),
            seen(CloseWait, Body::Socket, unknown, 8, at, 0),
        ],
    );
    assert_eq!(
        bench.told(),
        [
            Fact::Mended { what: Mended::State },
            Fact::Unseen { phase: Phase::CloseWait, why: Why::Lost },
            Fact::Mended { what: Mended::Missing },
        ]
    );
    // The third is not in the dump; an exact lookup does not find it either.
    assert_eq!(suspects.len(), 1);
    bench.tracker.gone(&suspects[0], at, &mut bench.facts);
    assert_eq!(
        bench.told(),
        [
            Fact::Mended { what: Mended::Vanished },
            Fact::Unseen { phase: Phase::CloseWait, why: Why::Lost },
            closed(SERVER, Role::Passive, Outcome::Unknown),
        ]
    );
    let mut phases: Vec<Phase> = bench.tracker.lives().map(|life| life.phase).collect();
    phases.sort();
    assert_eq!(phases, [Phase::CloseWait, Phase::LastAck]);
}

#[test]
fn more_absences_than_are_looked_up_are_over_when_a_second_dump_confirms_them() {
    let mut bench = Bench::btf();
    for n in 1..=250u16 {
        let flow = flow(&format!("10.0.0.1:{}", 40_000 + n), "10.0.0.2:80");
        bench.step(n.into(), &flow, T0, (Established, FinWait1), OWNED);
        bench.step(n.into(), &flow, T0 + MS, (FinWait1, FinWait2), DEAD | FIN_ACKED);
        bench.step(n.into(), &flow, T0 + MS, (FinWait2, Close), DEAD | DONE);
    }
    bench.told();
    assert_eq!(bench.dump(T0 + S, false, &[]).len(), 100, "to be looked up");
    assert_eq!((bench.tracker.len(), bench.told().len()), (250, 0), "one dump proves nothing");
    assert_eq!(bench.dump(T0 + 2 * S, false, &[]).len(), 100);
    assert_eq!(bench.tracker.len(), 100);
    assert!(!bench.told().iter().any(|fact| matches!(fact, Fact::Closed { .. })), "counted before");
}

/// At the classic door nothing but the addresses in the first record, or the record of the hand-over, tells which
/// minisocket was a socket's.
#[test]
fn a_close_of_which_a_record_was_lost_counts_once() {
    for lost in 0..3 {
        let mut bench = Bench::new(false, true);
        let key = bench.key();
        bench.dump(T0 - S, true, &[]);
        for (n, (step, flags)) in [
            ((Established, FinWait1), OWNED),
            ((FinWait1, FinWait2), DEAD | FIN_ACKED),
            ((FinWait2, Close), DEAD | DONE | FIN_ACKED),
        ]
        .into_iter()
        .enumerate()
        {
            if n != lost {
                bench.step(key, &client(), T0 + n as u64 * MS, step, flags);
            }
        }
        // Its address is another socket's now.
        let next = flow("10.0.0.1:50000", "10.0.0.2:80");
        bench.step(key, &next, T0 + 9 * MS, (Established, CloseWait), 0);
        let minisocket = seen(TimeWait, Body::Minisocket, client(), 7, T0 + 2 * S, 58 * S);
        let other = seen(CloseWait, Body::Socket, next, 8, T0 + 2 * S, 0);
        bench.dump(T0 + 2 * S, false, &[minisocket, other]);
        let facts = bench.told();
        let closes = facts.iter().filter(|fact| matches!(fact, Fact::Closed { .. })).count();
        assert_eq!(closes, 1, "without record {lost}: {facts:?}");
        assert_eq!(bench.tracker.len(), 2, "without record {lost}");
    }
}

/// The steps of the classic door name the flow by its hash, which is enough to tell which minisocket ended.
#[test]
fn a_close_of_which_the_first_record_was_lost_counts_before_any_dump_sees_it() {
    for by_cookie in [true, false] {
        let mut bench = Bench::new(by_cookie, true);
        bench.dump(T0 - S, true, &[]);
        bench.step(1, &server(), T0, (FinWait1, FinWait2), ACCEPTED | DEAD | FIN_ACKED);
        bench.step(1, &server(), T0 + MS, (FinWait2, Close), ACCEPTED | DEAD | DONE | FIN_ACKED);
        assert_eq!(
            bench.told(),
            [
                Fact::Unseen { phase: Phase::FinWait1, why: Why::Lost },
                transition(FinWait1, FinWait2),
                Fact::Dwelt { phase: Phase::FinWait2, pair: SERVER, ns: MS },
                transition(FinWait2, TimeWait),
                closed(SERVER, Role::Active, Outcome::Graceful),
            ]
        );
        let minisocket = seen(TimeWait, Body::Minisocket, server(), 1, T0 + S, 59 * S);
        bench.dump(T0 + S, false, &[minisocket]);
        assert_eq!((bench.told(), bench.tracker.len()), (vec![], 1));
        assert_eq!(bench.tracker.lives().next().unwrap().flow, server());
        // The next connection of the flow.
        bench.step(2, &server(), T0 + 2 * S, (Established, FinWait1), ACCEPTED | OWNED);
        bench.dump(T0 + 3 * S, false, &[seen(FinWait1, Body::Socket, server(), 2, T0 + 3 * S, 0)]);
        assert_eq!(bench.tracker.len(), 1);
    }
}

/// The next connection of a flow can be accepted, served and closed on another CPU before the last →CLOSE of the
/// connection before it is recorded.
#[test]
fn a_connection_that_closes_before_the_last_step_of_the_one_before_it_takes_nothing_from_that() {
    for mut bench in Bench::doors() {
        bench.dump(T0 - S, true, &[listener()]);
        for (key, at) in [(1, T0), (2, T0 + 2 * MS)] {
            bench.step(key, &server(), at, (Established, FinWait1), ACCEPTED | OWNED);
            bench.step(key, &server(), at + MS, (FinWait1, FinWait2), ACCEPTED | DEAD | FIN_ACKED);
        }
        for (key, at) in [(1, T0 + 4 * MS), (2, T0 + 5 * MS)] {
            bench.step(key, &server(), at, (FinWait2, Close), ACCEPTED | DEAD | DONE | FIN_ACKED);
        }
        bench.dump(T0 + S, false, &[seen(TimeWait, Body::Minisocket, server(), 2, T0 + S, 59 * S)]);
        let facts = bench.told();
        let closes = facts.iter().filter(|fact| matches!(fact, Fact::Closed { .. })).count();
        // Without BTF the first one's →CLOSE may as well have been a RST's, and nothing of it is left to see.
        assert_eq!(closes, 2, "{facts:?}");
    }
}

#[test]
fn a_later_connections_minisocket_on_the_same_flow_is_a_life_of_its_own() {
    for (state, cookie) in [(FinWait2, 7), (TimeWait, 8)] {
        let mut bench = Bench::new(false, true);
        let minisocket = |state, cookie, at| seen(state, Body::Minisocket, client(), cookie, at, 50 * S);
        bench.dump(T0, true, &[minisocket(TimeWait, 7, T0)]);
        bench.told();
        bench.dump(T0 + S, false, &[minisocket(state, cookie, T0 + S)]);
        assert!(bench.told().contains(&Fact::TimeWaitEnded { how: Ended::Early }));
        let phases: Vec<Phase> = bench.tracker.lives().map(|life| life.phase).collect();
        assert_eq!(phases, [Phase::of(state).unwrap()]);
    }
}

/// Without BTF a record tells no namespace. A dump that saw the socket here has told it, and may speak for its end.
#[test]
fn what_a_dump_saw_here_it_may_miss_here() {
    let mut bench = Bench::new(false, false);
    bench.dump(T0 - S, true, &[listener()]);
    bench.step(7, &server(), T0, (Established, CloseWait), 0);
    let at = T0 + S;
    bench.dump(at, false, &[listener(), seen(CloseWait, Body::Socket, server(), 0x55, at, 0)]);
    bench.told();
    // Its end was lost.
    let suspects = bench.dump(T0 + 9 * S, false, &[listener()]);
    assert_eq!(suspects.len(), 1);
    bench.tracker.gone(&suspects[0], T0 + 9 * S, &mut bench.facts);
    assert!(bench.told().contains(&Fact::Mended { what: Mended::Vanished }));
    assert!(bench.tracker.is_empty());
    // And one that lives on is still found by its records.
    bench.step(8, &server(), T0 + 10 * S, (Established, CloseWait), 0);
    let at = T0 + 11 * S;
    bench.dump(at, false, &[listener(), seen(CloseWait, Body::Socket, server(), 0x56, at, 0)]);
    bench.step(8, &server(), T0 + 12 * S, (CloseWait, LastAck), 0);
    bench.step(8, &server(), T0 + 13 * S, (LastAck, Close), 0);
    assert!(bench.tracker.is_empty() && bench.tracker.by_flow.is_empty());
}

/// Flows that are used again at once: the dump saw the first connection's minisocket, and by the time it is taken in the
/// second one has closed too.
#[test]
fn a_dump_older_than_a_life_of_its_flow_lends_it_no_cookie() {
    let mut bench = Bench::new(false, true);
    let close = |bench: &mut Bench, sk: u64, at: u64| {
        bench.step(sk, &client(), at, (Established, FinWait1), OWNED);
        bench.step(sk, &client(), at, (FinWait1, FinWait2), DEAD);
        bench.step(sk, &client(), at, (FinWait2, Close), DEAD | DONE);
    };
    close(&mut bench, 1, T0);
    bench.tracker.dump_started();
    close(&mut bench, 2, T0 + S + MS);
    let first = [seen(TimeWait, Body::Minisocket, client(), 0x55, T0 + S, 59 * S)];
    let view =
        View { covers: &here(), seen: &first, states: TimeWait.bit(), started_ns: T0 + S, first: false };
    bench.tracker.dump(&view, 100, &mut bench.facts);
    bench.told();
    let at = T0 + 3 * S;
    bench.dump(at, false, &[seen(TimeWait, Body::Minisocket, client(), 0x66, at, 58 * S)]);
    assert_eq!(bench.told(), [], "the second, and counted already");
    assert_eq!(bench.tracker.len(), 1);
}

#[test]
fn a_life_with_a_later_record_is_left_to_the_next_dump() {
    let mut bench = Bench::btf();
    bench.step(7, &server(), T0, (Established, CloseWait), ACCEPTED);
    bench.told();
    let suspects = bench.dump(T0 + 50 * MS, false, &[]);
    assert!(suspects.is_empty());
    bench.dump(T0 + 50 * MS, false, &[seen(LastAck, Body::Socket, server(), 7, T0 + 51 * MS, 0)]);
    assert_eq!(bench.told(), []);
}

#[test]
fn a_socket_address_that_is_used_again_never_joins_two_lives() {
    let mut bench = Bench::new(false, true);
    let other = flow("10.0.0.2:80", "10.0.0.3:50000");
    bench.step(0xffff_8880, &server(), T0, (Established, CloseWait), ACCEPTED);
    bench.told();
    // The end of the first was lost; the slab gave its address to another socket.
    bench.step(0xffff_8880, &other, T0 + S, (Established, CloseWait), ACCEPTED);
    assert_eq!(
        bench.told(),
        [
            Fact::Unseen { phase: Phase::CloseWait, why: Why::Lost },
            closed(SERVER, Role::Passive, Outcome::Unknown),
            transition(Established, CloseWait),
        ]
    );
    bench.step(0xffff_8880, &other, T0 + 3 * S, (CloseWait, LastAck), ACCEPTED);
    assert_eq!(bench.told()[0], Fact::Dwelt { phase: Phase::CloseWait, pair: SERVER, ns: 2 * S });
    assert_eq!(bench.tracker.len(), 1);
}

/// At the classic door a minisocket has no key but its flow; a new connection of that flow is its end.
#[test]
fn a_new_connection_on_the_same_flow_ends_the_minisocket() {
    let mut bench = Bench::new(false, true);
    bench.step(1, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(1, &client(), T0, (FinWait1, FinWait2), DEAD);
    bench.step(1, &client(), T0, (FinWait2, Close), DEAD | DONE);
    let at = T0 + S;
    bench.dump(at, false, &[seen(TimeWait, Body::Minisocket, client(), 5, at, 59 * S)]);
    bench.told();
    bench.step(2, &client(), T0 + 2 * S, (Established, CloseWait), 0);
    assert_eq!(
        bench.told(),
        [
            Fact::Dwelt { phase: Phase::TimeWait, pair: CLIENT, ns: S },
            transition(TimeWait, Close),
            Fact::TimeWaitEnded { how: Ended::Early },
            transition(Established, CloseWait),
        ]
    );
    assert_eq!(bench.tracker.len(), 1);
}

/// connect(AF_UNSPEC), then connect(): the socket keeps its cookie, which the TIME-WAIT of its first connection has too.
#[test]
fn a_socket_that_connects_again_and_its_own_time_wait_are_two_lives() {
    let mut bench = Bench::btf();
    bench.dump(T0 - S, true, &[]);
    bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(7, &client(), T0 + MS, (FinWait1, FinWait2), 0);
    bench.step(7, &client(), T0 + 2 * MS, (FinWait2, Close), DONE);
    let again = Flow { local_port: client().local_port + 1, ..client() };
    bench.step(7, &again, T0 + S, (Established, CloseWait), 0);
    bench.told();
    let at = T0 + 3 * S;
    let waits = seen(TimeWait, Body::Minisocket, client(), 7, at, 57 * S);
    let open = seen(CloseWait, Body::Socket, again, 7, at, 0);
    assert_eq!(bench.dump(at, false, &[waits, open]), []);
    assert_eq!(bench.told(), []);
    assert_eq!(bench.tracker.find(HERE, 7, &client()).unwrap().phase, Phase::TimeWait);
    assert_eq!(bench.tracker.find(HERE, 7, &again).unwrap().phase, Phase::CloseWait);

    bench.step(7, &again, T0 + 4 * S, (CloseWait, LastAck), OWNED);
    bench.step(7, &again, T0 + 5 * S, (LastAck, Close), FIN_ACKED);
    assert_eq!(bench.tracker.len(), 1);
    assert_eq!(bench.dump(T0 + 63 * S, false, &[]), []);
    assert!(bench.tracker.is_empty() && bench.tracker.by_key.is_empty());
    assert!(bench.told().contains(&Fact::TimeWaitEnded { how: Ended::Expired }));
}

#[test]
fn a_minisocket_whose_flow_a_dump_shows_with_another_socket_ends_without_a_lookup() {
    let mut bench = Bench::btf();
    bench.dump(T0 - S, true, &[]);
    for cookie in 1..=300 {
        bench.step(cookie, &client(), T0, (Established, FinWait1), OWNED);
        bench.step(cookie, &client(), T0, (FinWait1, FinWait2), DEAD);
        bench.step(cookie, &client(), T0, (FinWait2, Close), DONE | DEAD);
    }
    let at = T0 + 2 * S;
    // Bound to an interface, the same addresses are another flow.
    let elsewhere = Seen { interface: 3, ..seen(TimeWait, Body::Minisocket, client(), 1000, at, 59 * S) };
    assert_eq!(bench.dump(at, false, &[elsewhere]).len(), 100);
    assert_eq!(bench.tracker.len(), 301);
    bench.told();
    let last = seen(TimeWait, Body::Minisocket, client(), 300, at, 58 * S);
    assert_eq!(bench.dump(at, false, &[last, elsewhere]), []);
    assert_eq!(bench.tracker.len(), 2);
    let unknown = Fact::TimeWaitEnded { how: Ended::Unknown };
    assert_eq!(bench.told().iter().filter(|fact| **fact == unknown).count(), 299);
}

#[test]
fn a_length_measured_on_a_busy_machine_means_whole_seconds() {
    let lengths = [(59_910 * MS, 60 * S), (60_120 * MS, 60 * S), (20 * S, 20 * S), (1_100 * MS, S)];
    for (measured, meant) in lengths {
        assert_eq!(super::join::meant_length(measured), meant);
    }
    for unusual in [500 * MS, 100 * MS, 2_400 * MS] {
        assert_eq!(super::join::meant_length(unusual), unusual);
    }
}

#[test]
fn time_waits_length_is_measured_and_a_rearmed_timer_does_not_stretch_it() {
    let mut bench = Bench::btf();
    let enter = |bench: &mut Bench, key: u64, at: u64| {
        let flow = flow(&format!("10.0.0.1:{}", 40_000 + key), "10.0.0.2:80");
        bench.step(key, &flow, at, (Established, FinWait1), OWNED);
        bench.step(key, &flow, at, (FinWait1, FinWait2), DEAD);
        bench.step(key, &flow, at, (FinWait2, Close), DEAD | DONE);
        flow
    };
    // One, re-armed after 700 ms: still 60 s.
    let flow = enter(&mut bench, 1, T0);
    let at = T0 + S;
    bench.dump(at, false, &[seen(TimeWait, Body::Minisocket, flow, 1, at, 59_700 * MS)]);
    assert_eq!(bench.tracker.time_wait_ns(), Some(60 * S));
    // The host's sysctl says 20 s from now on.
    let flow = enter(&mut bench, 2, T0 + 2 * S);
    let at = T0 + 3 * S;
    bench.dump(at, false, &[seen(TimeWait, Body::Minisocket, flow, 2, at, 19 * S)]);
    assert_eq!(bench.tracker.time_wait_ns(), Some(20 * S));
}

#[test]
fn listeners_prove_the_server_where_the_kernel_tells_no_facts() {
    let mut bench = Bench::new(false, false);
    bench.step(1, &server(), T0, (Established, CloseWait), 0);
    // Neither is proven; port 80 lies outside the local port range.
    assert_eq!(bench.tracker.lives().next().unwrap().pair(), Pair { side: Side::Unknown, port: 80 });
    bench.dump(T0 + S, false, &[listener()]);
    bench.step(1, &server(), T0 + S, (CloseWait, LastAck), 0);
    assert_eq!(bench.tracker.lives().next().unwrap().pair(), SERVER);
}

#[test]
fn the_memory_of_a_flood_is_given_back_and_the_rest_is_still_found() {
    for by_cookie in [true, false] {
        let mut bench = Bench::new(by_cookie, true);
        let nth = |i: u64| flow(&format!("10.0.0.2:{}", 1024 + i % 60_000), "10.0.0.1:40000");
        for i in 0..50_000 {
            bench.step(1 + i, &nth(i), T0, (Established, CloseWait), ACCEPTED);
        }
        for i in (0..50_000).filter(|i| i % 1000 != 7) {
            bench.step(1 + i, &nth(i), T0 + S, (CloseWait, Close), ACCEPTED);
        }
        bench.told();
        assert_eq!(bench.tracker.len(), 50);
        let at = T0 + 10 * S;
        let rest: Vec<u64> = (0..50_000).filter(|i| i % 1000 == 7).collect();
        let dump: Vec<Seen> =
            rest.iter().map(|&i| seen(CloseWait, Body::Socket, nth(i), 1 + i, at, 0)).collect();
        bench.dump(at, false, &dump);
        assert!(bench.tracker.lives.capacity() < 1024, "{}", bench.tracker.lives.capacity());
        for i in rest {
            bench.step(1 + i, &nth(i), T0 + 20 * S, (CloseWait, Close), ACCEPTED);
            let pair = Pair { side: Side::Server, port: nth(i).local_port };
            assert_eq!(bench.told()[0], Fact::Dwelt { phase: Phase::CloseWait, pair, ns: 20 * S });
        }
        assert!(
            bench.tracker.is_empty() && bench.tracker.by_key.is_empty() && bench.tracker.by_flow.is_empty()
        );
    }
}

/// What the hooks tell of a minisocket, at both doors: birth, flip, end and its cause, to the nanosecond.
#[test]
fn hooks_tell_a_minisockets_life() {
    for (news, how) in [
        (News::Expired, Ended::Expired),
        (News::Reused, Ended::Reused),
        (News::Recycled, Ended::Recycled),
        (News::Reset, Ended::Reset),
        (News::Destroyed, Ended::Destroyed),
        (News::Purged, Ended::Purged),
        (News::Early, Ended::Early),
    ] {
        for by_cookie in [true, false] {
            let mut bench = hooked(by_cookie);
            let key = fin_wait_2_orphan(&mut bench);
            bench.notice(News::Flipped, T0 + 5 * S, (FinWait2, TimeWait), 0);
            bench.notice(news, T0 + 65 * S, (TimeWait, Close), 0);
            assert_eq!(
                bench.told(),
                [
                    transition(Established, FinWait1),
                    Fact::Dwelt { phase: Phase::FinWait1, pair: CLIENT, ns: MS },
                    transition(FinWait1, FinWait2),
                    Fact::Dwelt { phase: Phase::FinWait2, pair: CLIENT, ns: 5 * S - MS },
                    transition(FinWait2, TimeWait),
                    closed(CLIENT, Role::Active, Outcome::Graceful),
                    Fact::Dwelt { phase: Phase::TimeWait, pair: CLIENT, ns: 60 * S },
                    transition(TimeWait, Close),
                    Fact::TimeWaitEnded { how },
                ],
                "{news:?} {key}"
            );
            assert!(bench.tracker.is_empty() && bench.tracker.by_key.is_empty());
        }
    }
}

/// As [`a_socket_that_connects_again_and_its_own_time_wait_are_two_lives`]: the end of the one is none of the other's,
/// not even of a minisocket that is older than the agent.
#[test]
fn hooks_tell_the_end_of_a_time_wait_whose_socket_connected_again() {
    let again = Flow { local_port: client().local_port + 1, ..client() };
    for older in [false, true] {
        let mut bench = hooked(true);
        if !older {
            fin_wait_2_orphan(&mut bench);
            bench.notice(News::Flipped, T0 + S, (FinWait2, TimeWait), 0);
        }
        bench.step(7, &again, T0 + 2 * S, (Established, CloseWait), 0);
        bench.told();
        bench.notice(News::Expired, T0 + 61 * S, (TimeWait, Close), 0);
        assert!(bench.told().contains(&Fact::TimeWaitEnded { how: Ended::Expired }));
        assert_eq!(
            bench.tracker.find(HERE, 7, &again).map(|life| life.phase),
            Some(Phase::CloseWait),
            "{older}"
        );
    }
}

/// A socket in FIN-WAIT-2 that is older than the agent gets its FIN: the birth is told before its first step, and names
/// no flow.
#[test]
fn hooks_tell_the_minisocket_of_a_socket_that_was_there_first() {
    for by_cookie in [true, false] {
        let mut bench = hooked(by_cookie);
        let key = bench.key();
        let there = seen(FinWait2, Body::Socket, client(), 7, T0, 0);
        bench.dump(T0, true, &[there]);
        bench.notice(News::Born, T0 + S, (FinWait2, TimeWait), key);
        bench.step(key, &client(), T0 + S, (FinWait2, Close), DONE | FIN_ACKED);
        assert_eq!(bench.tracker.len(), 1);
        let then = seen(TimeWait, Body::Minisocket, client(), 7, T0 + 2 * S, 59 * S);
        assert_eq!(bench.dump(T0 + 2 * S, false, &[then]), []);
        bench.notice(News::Expired, T0 + 61 * S, (TimeWait, Close), 0);
        assert!(bench.tracker.is_empty());
        let told = bench.told();
        assert!(!told.iter().any(|fact| matches!(fact, Fact::Mended { .. })), "{told:?}");
        let stay = Fact::Dwelt { phase: Phase::TimeWait, pair: CLIENT, ns: 60 * S };
        assert!(told.contains(&stay), "{told:?}");
    }
}

/// While hooks are attached, and the state hook is not yet: the first dump tells what is left of it.
#[test]
fn what_hooks_told_before_the_state_hook_was_there_is_no_life() {
    for by_cookie in [true, false] {
        let mut bench = hooked(by_cookie);
        bench.tracker.set_told(Told { since_ns: T0, ..EVERYTHING });
        let key = bench.key();
        bench.notice(News::Born, T0 - 1, (FinWait2, FinWait2), key);
        bench.notice(News::Flipped, T0 - 1, (FinWait2, TimeWait), 0);
        bench.notice(News::Expired, T0 - 1, (TimeWait, Close), 0);
        assert!(bench.tracker.is_empty());
        assert_eq!(bench.told(), []);
    }
}

/// The timer's handler runs while another CPU, which found the minisocket before, ends it too, or flips it: one end.
#[test]
fn what_is_told_of_a_minisocket_after_its_end_is_nothing() {
    let again = [News::Expired, News::Reset, News::Recycled, News::Reused, News::Destroyed, News::Early];
    for first in [News::Expired, News::Reset, News::Early] {
        for by_cookie in [true, false] {
            let mut bench = hooked(by_cookie);
            fin_wait_2_orphan(&mut bench);
            bench.notice(News::Flipped, T0 + S, (FinWait2, TimeWait), 0);
            bench.notice(first, T0 + 61 * S, (TimeWait, Close), 0);
            let ends = |facts: &[Fact]| {
                facts.iter().filter(|fact| matches!(fact, Fact::TimeWaitEnded { .. })).count()
            };
            assert_eq!(ends(&bench.told()), 1);
            for news in again {
                bench.notice(news, T0 + 61 * S + 1_000, (TimeWait, Close), 0);
                bench.notice(news, T0 + 61 * S + 1_000, (FinWait2, Close), 0);
            }
            bench.notice(News::Flipped, T0 + 61 * S + 1_000, (FinWait2, TimeWait), 0);
            assert_eq!(bench.told(), [], "{first:?} first, by cookie: {by_cookie}");
            assert!(bench.tracker.is_empty());
            // The cookie's socket may go on: its next minisocket is one like the first.
            fin_wait_2_orphan(&mut bench);
            bench.notice(News::Reset, T0 + 70 * S, (TimeWait, Close), 0);
            assert_eq!(ends(&bench.told()), 1);
        }
    }
}

#[test]
fn hooks_tell_how_fin_wait_2_ended() {
    for (news, outcome) in [
        (News::Expired, Outcome::Timeout),
        (News::Reset, Outcome::ResetReceived),
        (News::DataAfterClose, Outcome::ResetSent),
        (News::Destroyed, Outcome::Destroyed),
        (News::Purged, Outcome::Unknown),
    ] {
        let mut bench = hooked(true);
        fin_wait_2_orphan(&mut bench);
        bench.told();
        bench.notice(news, T0 + 2 * S, (FinWait2, Close), 0);
        assert_eq!(
            bench.told(),
            [
                Fact::Dwelt { phase: Phase::FinWait2, pair: CLIENT, ns: 2 * S - MS },
                transition(FinWait2, Close),
                closed(CLIENT, Role::Active, outcome),
            ]
        );
    }
}

#[test]
fn a_time_wait_that_was_not_born_is_an_overflow_and_a_graceful_close() {
    let mut bench = hooked(true);
    bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(7, &client(), T0 + MS, (FinWait1, FinWait2), DEAD | FIN_ACKED);
    bench.notice(News::Unborn, T0 + 2 * MS, (FinWait2, TimeWait), 0);
    bench.step(7, &client(), T0 + 2 * MS, (FinWait2, Close), DEAD | DONE);
    assert_eq!(
        bench.told()[3..],
        [
            Fact::TimeWaitOverflow,
            Fact::Dwelt { phase: Phase::FinWait2, pair: CLIENT, ns: MS },
            transition(FinWait2, Close),
            closed(CLIENT, Role::Active, Outcome::Graceful),
        ]
    );
    assert!(bench.tracker.is_empty());
}

#[test]
fn a_fin_wait_2_minisocket_that_was_not_born_is_an_overflow_too() {
    let mut bench = hooked(true);
    bench.step(7, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(7, &client(), T0 + MS, (FinWait1, FinWait2), DEAD | FIN_ACKED);
    bench.notice(News::Unborn, T0 + 2 * MS, (FinWait2, FinWait2), 0);
    assert_eq!(bench.told().last(), Some(&Fact::TimeWaitOverflow));
}

/// Data after close calls tcp_reset() as a RST does; the RST that goes out a moment later tells.
#[test]
fn the_outcome_of_a_reset_settles_a_moment_later() {
    for (by_cookie, sent) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut bench = hooked(by_cookie);
        let key = bench.key();
        bench.step(key, &client(), T0, (Established, FinWait1), OWNED);
        let head = bench.head(key, &client(), T0 + MS, (FinWait1, Close), DEAD | RCV_SHUTDOWN);
        bench.take(Head { err: 104, ..head }, &client());
        bench.told();
        bench.tracker.settle(T0 + 2 * MS, &mut bench.facts);
        assert_eq!(bench.told(), [], "too early to tell");
        if sent {
            bench.notice(News::ResetSent, T0 + MS + 26_000, (Close, Close), key);
        }
        bench.tracker.settle(T0 + S, &mut bench.facts);
        let outcome = if sent { Outcome::ResetSent } else { Outcome::ResetReceived };
        assert_eq!(bench.told(), [closed(CLIENT, Role::Active, outcome)]);
    }
}

const EVERYTHING: Told = Told { births: true, lives: true, resets: true, since_ns: 0 };

fn hooked(by_cookie: bool) -> Bench {
    let mut bench = Bench::new(by_cookie, true);
    bench.tracker.set_told(EVERYTHING);
    bench
}

/// Takes a socket with the cookie 7 to its minisocket in FIN-WAIT-2, entered at T0 + 1 ms.
fn fin_wait_2_orphan(bench: &mut Bench) -> u64 {
    let key = bench.key();
    bench.step(key, &client(), T0, (Established, FinWait1), OWNED);
    bench.step(key, &client(), T0 + MS, (FinWait1, FinWait2), DEAD | FIN_ACKED);
    bench.notice(News::Born, T0 + MS, (FinWait2, FinWait2), key);
    bench.step(key, &client(), T0 + MS, (FinWait2, Close), DEAD | FIN_ACKED);
    key
}

/// Hooks tell of the minisocket all the same, and the connection is counted once, whichever records are lost.
#[test]
fn a_close_of_which_records_were_lost_counts_once_where_hooks_tell() {
    for by_cookie in [true, false] {
        for lost in 0_u32..1 << 5 {
            if !by_cookie && lost & 0b1100 == 0b1100 {
                // Neither birth nor →CLOSE: nothing ties the socket's address to the minisocket's cookie.
                continue;
            }
            let mut bench = hooked(by_cookie);
            let key = bench.key();
            let took = |n: u32| lost & 1 << n == 0;
            bench.dump(T0 - S, true, &[]);
            for (n, (step, flags)) in [
                ((Established, FinWait1), OWNED),
                ((FinWait1, FinWait2), DEAD | FIN_ACKED),
                ((FinWait2, Close), DEAD | FIN_ACKED),
            ]
            .into_iter()
            .enumerate()
            {
                if n == 2 && took(3) {
                    bench.notice(News::Born, T0 + 2 * MS, (FinWait2, FinWait2), key);
                }
                if took(n as u32) {
                    bench.step(key, &client(), T0 + n as u64 * MS, step, flags);
                }
            }
            if took(4) {
                bench.notice(News::Flipped, T0 + 5 * MS, (FinWait2, TimeWait), 0);
            }
            bench.tracker.records_lost();
            let at = T0 + S;
            let minisocket = seen(TimeWait, Body::Minisocket, client(), 7, at, 59 * S);
            let suspects = bench.dump(at, false, &[minisocket]);
            suspects.iter().for_each(|suspect| bench.tracker.gone(suspect, at, &mut bench.facts));
            let facts = bench.told();
            let closes = facts.iter().filter(|fact| matches!(fact, Fact::Closed { .. })).count();
            assert_eq!(closes, 1, "by cookie {by_cookie}, lost {lost:#b}: {facts:?}");
            assert_eq!(bench.tracker.len(), 1, "by cookie {by_cookie}, lost {lost:#b}");
            bench.notice(News::Expired, T0 + 61 * S, (TimeWait, Close), 0);
            assert!(bench.tracker.is_empty(), "by cookie {by_cookie}, lost {lost:#b}");
        }
    }
}

/// Any order of records and dumps, legal or not: no panic, no negative duration, every opened life is told of when it
/// ends, and a whole dump of nothing leaves nothing.
#[test]
fn no_order_of_events_breaks_it() {
    struct Check;
    impl Sink for Check {
        fn fact(&mut self, _: u64, fact: Fact) {
            if let Fact::Dwelt { ns, .. } = fact {
                assert!(ns < 1 << 62, "{fact:?}");
            }
        }
    }
    let states =
        [Established, FinWait1, FinWait2, Closing, CloseWait, LastAck, Close, TimeWait, Listen, SynRecv];
    // xorshift: the same orders every time.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |n: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % n
    };
    let with_hooks = Bench::doors().map(|mut bench| {
        bench.tracker.set_told(EVERYTHING);
        bench
    });
    for mut bench in Bench::doors().into_iter().chain(with_hooks) {
        let mut now = T0;
        for _ in 0..60_000 {
            now += next(200) * MS;
            let key = 1 + next(6);
            let flow = flow(&format!("10.0.0.1:{}", 40_000 + next(4)), "10.0.0.2:80");
            let pick = |i: u64| states[i as usize % states.len()];
            if next(8) == 0 {
                bench.tracker.dump_started();
                let seen: Vec<Seen> = (0..next(4))
                    .map(|_| {
                        let body = if next(2) == 0 { Body::Minisocket } else { Body::Socket };
                        seen(pick(next(10)), body, flow, key, now, next(2) * next(70) * S)
                    })
                    .collect();
                let view = View {
                    covers: &here(),
                    seen: &seen,
                    states: u32::MAX,
                    started_ns: now,
                    first: next(50) == 0,
                };
                for suspect in bench.tracker.dump(&view, 100, &mut Check) {
                    if next(2) == 0 {
                        bench.tracker.gone(&suspect, now, &mut Check);
                    }
                }
                continue;
            }
            // The address of a socket is no number that a cookie can be.
            let sk = if bench.by_cookie { 0 } else { 0xffff_8880_0000_0000 | key };
            if next(6) == 0 {
                let news = News::ALL[next(News::ALL.len() as u64) as usize];
                let head = Head {
                    flags: NOTICE | COOKIE,
                    err: news as u16,
                    ..bench.head(key, &flow, now, (pick(next(10)), pick(next(10))), 0)
                };
                bench.tracker.record(&Record::Notice(Notice { head, sk: sk * next(2) }, news), &mut Check);
                bench.tracker.settle(now, &mut Check);
                continue;
            }
            let key = if bench.by_cookie { key } else { sk };
            let (old, new) = (pick(next(10)), pick(next(10)));
            if !tcpclose_common::state::is_close_step(old as u32, new as u32) {
                continue;
            }
            let head =
                bench.head(key, &flow, now, (old, new), (next(1 << 10) as u16) & !(OPEN | COOKIE | FACTS));
            let err = [0, 0, 0, 32, 103, 104, 110, 113][next(8) as usize];
            bench.take(Head { err, ..head }, &flow);
            assert!(bench.tracker.len() < 100);
            bench.facts.clear();
        }
        for _ in 0..2 {
            now += 1000 * S;
            bench.netns = HERE;
            for suspect in bench.dump(now, false, &[]) {
                bench.tracker.gone(&suspect, now, &mut Check);
            }
        }
        // Without BTF a full socket's namespace is unknown, and no dump may speak for it.
        let left: Vec<_> = bench.tracker.lives().filter(|life| life.netns == HERE).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn who_closed_is_kept_from_the_step_that_told() {
    let mut bench = Bench::btf();
    let flow = Flow::new("10.0.0.1:80".parse().unwrap(), "10.0.0.2:4000".parse().unwrap());
    let closer = |bench: &Bench| bench.tracker.find(HERE, 7, &flow).unwrap().closer;
    let mut open = bench.head(7, &flow, T0, (Established, FinWait1), 0);
    open.set_closer(4_194_304);
    bench.take(open, &flow);
    let told = Some(Closer { pid: 4_194_304.try_into().unwrap(), at_ns: T0 });
    assert_eq!(closer(&bench), told);
    bench.step(7, &flow, T0 + S, (FinWait1, FinWait2), 0);
    assert_eq!(closer(&bench), told);

    let mut bench = Bench::btf();
    bench.step(7, &flow, T0, (Established, CloseWait), 0);
    assert_eq!(closer(&bench), None);
    let mut step = bench.head(7, &flow, T0 + S, (CloseWait, LastAck), 0);
    step.set_closer(42);
    bench.take(step, &flow);
    assert_eq!(closer(&bench), Some(Closer { pid: 42.try_into().unwrap(), at_ns: T0 + S }));
}
