//! A fake clock: seconds in, seconds out.

use crate::agent::scheduler::*;

const MS: u64 = 1_000_000;
const LIMITS: Limits = Limits { interval_ns: SECOND_NS, max_ns: 60 * SECOND_NS };
const HOST: u32 = 1;

fn charge(id: u32, ms: u64, met: u64) -> NetnsCost {
    NetnsCost { id, cpu_ns: ms * MS, met }
}

/// A scheduler after dumps that cost so much, at one second after the other.
fn after(dumps: &[&[NetnsCost]]) -> Scheduler {
    let mut scheduler = Scheduler::default();
    for (second, charges) in dumps.iter().enumerate() {
        scheduler.charge(second as u64 * SECOND_NS, Some(HOST), charges);
    }
    scheduler
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[test]
fn no_pause_is_longer_than_the_longest_whatever_a_dump_costs() {
    let dear = [charge(HOST, 400_000, 9_000_000), charge(2, 400_000, 9)];
    let scheduler = after(&[&dear, &dear, &dear]);
    assert_eq!(scheduler.host_due_ns(LIMITS), 62 * SECOND_NS);
    assert_eq!(scheduler.others_due_ns(LIMITS), 62 * SECOND_NS);
    assert!(scheduler.is_over_budget(LIMITS));
    let patient = Limits { max_ns: 1000 * SECOND_NS, ..LIMITS };
    assert_eq!(scheduler.others_due_ns(patient), 1002 * SECOND_NS);
    let cheap = after(&[&[charge(HOST, 3, 10), charge(2, 3, 10)]]);
    assert_eq!((cheap.host_due_ns(LIMITS), cheap.others_due_ns(LIMITS)), (SECOND_NS, SECOND_NS));
    assert!(!cheap.is_over_budget(LIMITS));
}

#[test]
fn the_pause_falls_at_once_when_a_dump_is_cheap_again() {
    let (dear, cheap) = ([charge(2, 2900, 0)], [charge(2, 4, 0)]);
    assert_eq!(after(&[&dear, &dear]).others_due_ns(LIMITS), 61 * SECOND_NS);
    assert_eq!(after(&[&dear, &dear, &cheap]).others_due_ns(LIMITS), 3 * SECOND_NS);
    // A single expensive one changes nothing: it may have been charged for another program's work.
    assert_eq!(after(&[&cheap, &cheap, &dear]).others_due_ns(LIMITS), 3 * SECOND_NS);
}

#[test]
fn the_host_is_dumped_at_its_own_interval_however_many_others_there_are() {
    let mut scheduler = after(&[&[charge(HOST, 5, 100)]]);
    for nth in 0..250 {
        scheduler.charge(nth * 50 * MS, Some(HOST), &[charge(2 + nth as u32, 50, 10)]);
    }
    assert_eq!(scheduler.host_due_ns(LIMITS), SECOND_NS);
    // A walk over a million sockets of others.
    let host = after(&[&[charge(HOST, 60, 100)]]).host_due_ns(LIMITS);
    assert!(host < 5 * SECOND_NS, "{}", seconds(host));
    // Its own sockets are another matter.
    let host = after(&[&[charge(HOST, 60, 40_000)]]).host_due_ns(LIMITS);
    assert_eq!(host, 9 * SECOND_NS);
}

#[test]
fn others_pause_for_the_hosts_dumps_too() {
    let mut scheduler = after(&[&[charge(HOST, 5, 9), charge(2, 5, 9)]]);
    assert_eq!(seconds(scheduler.others_due_ns(LIMITS)), 1.5);
    scheduler.charge(SECOND_NS, Some(HOST), &[charge(HOST, 20, 9)]);
    assert_eq!(seconds(scheduler.others_due_ns(LIMITS)), 4.5);
    scheduler.charge_other(100 * MS);
    assert_eq!(seconds(scheduler.others_due_ns(LIMITS)), 19.5);
}

#[test]
fn a_long_pause_ends_when_its_cause_is_gone() {
    let dear = [charge(2, 2000, 1_000_000), charge(3, 10, 5)];
    let mut scheduler = after(&[&dear, &dear]);
    assert_eq!(scheduler.others_due_ns(LIMITS), 61 * SECOND_NS);
    assert_eq!(scheduler.expensive(LIMITS), dear);
    scheduler.shrank(2, 100_000);
    assert_eq!(seconds(scheduler.others_due_ns(LIMITS)), 32.5, "a tenth of the sockets, a tenth of the cost");
    scheduler.shrank(2, 0);
    assert_eq!(seconds(scheduler.others_due_ns(LIMITS)), 2.5);
    assert!(scheduler.expensive(LIMITS).is_empty(), "no pause is long any more");
    scheduler.shrank(3, 1_000_000);
    assert_eq!(seconds(scheduler.others_due_ns(LIMITS)), 2.5, "the next dump measures more sockets");
}

#[test]
fn a_long_round_hurries_so_that_no_number_gets_too_old() {
    let mut scheduler = after(&[&[charge(2, 50, 10)]]);
    assert_eq!(seconds(scheduler.others_due_ns(LIMITS)), 7.5);
    // A hundred slices of 50 ms in what is left of a minute.
    scheduler.set_backlog(Some(Backlog { cpu_ns: 5 * SECOND_NS, slices: 100, since_ns: 0 }));
    assert_eq!(seconds(scheduler.others_due_ns(LIMITS)), 0.55);
    assert!(scheduler.is_over_budget(LIMITS));
    scheduler.set_backlog(Some(Backlog { cpu_ns: 100 * MS, slices: 2, since_ns: 0 }));
    assert_eq!(seconds(scheduler.others_due_ns(LIMITS)), 7.5, "there is time");
    // The round is late already.
    let mut late = after(&[&[], &[charge(2, 50, 10)]]);
    late.set_backlog(Some(Backlog { cpu_ns: 120 * SECOND_NS, slices: 9, since_ns: 0 }));
    assert_eq!(seconds(late.others_due_ns(LIMITS)), 1.05);
}

#[test]
fn a_failure_is_tried_again_after_the_interval() {
    let mut scheduler = Scheduler::default();
    scheduler.dump_failed(5 * SECOND_NS, LIMITS);
    assert_eq!(scheduler.host_due_ns(LIMITS), 6 * SECOND_NS);
    assert_eq!(scheduler.others_due_ns(LIMITS), 6 * SECOND_NS);
}

#[test]
fn each_user_has_the_same_share() {
    let mut items: Vec<(u32, u64, (u32, u64))> = (0..250).map(|n| (1000, 2, (1000, n))).collect();
    items.extend([(0, 2, (0, 0)), (0, 2, (0, 1)), (7, 1, (7, 0))]);
    let order = in_turn(items);
    assert_eq!(order[..6], [(1000, 0), (0, 0), (7, 0), (1000, 1), (0, 1), (1000, 2)]);
    assert_eq!(order.len(), 253);
    // A user with expensive work comes less often.
    let order = in_turn(vec![(1, 10, 'a'), (1, 10, 'b'), (2, 2, 'x'), (2, 2, 'y'), (2, 2, 'z')]);
    assert_eq!(order, ['a', 'x', 'y', 'z', 'b']);
}

const INPUTS: Inputs = Inputs {
    limits: LIMITS,
    reconcile_ns: 30 * SECOND_NS,
    requested: false,
    idle: false,
    in_round: false,
    unsettled: false,
    search_settled: true,
};

/// A host with sockets whose dump costs `host_ms`, and others whose dump costs `others_ms`, for so many
/// seconds: how often each was dumped, how many rounds began, and the CPU time in total.
struct Simulation {
    host: u32,
    others: u32,
    rounds: u32,
    cpu_ns: u64,
}

fn simulate(seconds: u64, inputs: Inputs, host_ms: u64, others_ms: u64) -> Simulation {
    let mut scheduler = Scheduler::new(0);
    let mut done = Simulation { host: 0, others: 0, rounds: 0, cpu_ns: 0 };
    let mut now_ns = 0;
    while now_ns < seconds * SECOND_NS {
        let (host, others) = match scheduler.next(now_ns, &inputs) {
            Action::Rest(ns) | Action::Wait(ns) => {
                now_ns += ns.max(1);
                continue;
            }
            Action::Dump { host, others } => (host, others),
        };
        if host {
            if scheduler.is_round_due(now_ns, &inputs, || false) {
                scheduler.round_begins(now_ns, true);
                done.rounds += 1;
            }
            now_ns += host_ms * MS;
            scheduler.dump_done(now_ns, LIMITS, Turn::Host, Some(HOST), &[charge(HOST, host_ms, 1000)]);
            done.host += 1;
            done.cpu_ns += host_ms * MS;
        }
        if others {
            assert_eq!(scheduler.others_turn(&inputs, true), OthersTurn::Targets);
            now_ns += others_ms * MS;
            scheduler.dump_done(now_ns, LIMITS, Turn::Others, Some(HOST), &[charge(2, others_ms, 1000)]);
            done.others += 1;
            done.cpu_ns += others_ms * MS;
        }
    }
    done
}

#[test]
fn an_hour_of_dumps_stays_within_the_budget_and_the_interval() {
    let cheap = simulate(3600, INPUTS, 1, 1);
    assert!((3500..=3600).contains(&cheap.host), "one each second: {}", cheap.host);
    assert!((115..=120).contains(&cheap.rounds), "one each 30 s: {}", cheap.rounds);
    let dear = simulate(3600, INPUTS, 5, 40);
    assert!(dear.host > 2000, "others do not hold up the host: {}", dear.host);
    assert!(dear.others > 100, "no pause is longer than a minute: {}", dear.others);
    assert!(dear.cpu_ns < 36 * SECOND_NS, "1 % of a core: {} s", seconds(dear.cpu_ns));
}

#[test]
fn an_idle_host_rests_and_then_takes_its_turn() {
    let idle = Inputs { idle: true, ..INPUTS };
    let mut scheduler = Scheduler::new(0);
    assert_eq!(scheduler.next(0, &idle), Action::Rest(10 * SECOND_NS));
    let turn = Action::Dump { host: true, others: true };
    assert_eq!(scheduler.next(10 * SECOND_NS, &idle), turn, "once a rest");
    scheduler.idle_host(10 * SECOND_NS, LIMITS);
    scheduler.idle_others(10 * SECOND_NS, LIMITS);
    assert_eq!(scheduler.next(10 * SECOND_NS, &idle), Action::Rest(10 * SECOND_NS));
    assert_eq!(scheduler.next(11 * SECOND_NS - 1, &idle), Action::Wait(1), "something has come");
    assert_eq!(scheduler.next(11 * SECOND_NS, &idle), turn);
    // Not beyond the reconcile.
    assert_eq!(scheduler.next(27 * SECOND_NS, &idle), Action::Rest(3 * SECOND_NS));
    for in_hand in [
        Inputs { requested: true, ..idle },
        Inputs { in_round: true, ..idle },
        Inputs { unsettled: true, ..idle },
        Inputs { idle: false, ..idle },
    ] {
        assert!(matches!(Scheduler::new(0).next(SECOND_NS, &in_hand), Action::Dump { .. }), "{in_hand:?}");
    }
    let mut scheduler = Scheduler::new(0);
    scheduler.records_lost();
    assert_eq!(scheduler.next(0, &idle), Action::Wait(SECOND_NS), "no rest after a loss");
    assert_eq!(scheduler.next(SECOND_NS, &idle), turn);
}

#[test]
fn a_request_waits_for_the_search_alone() {
    let mut scheduler = after(&[&[charge(HOST, 60, 40_000), charge(2, 100, 9)]]);
    assert_eq!(scheduler.next(SECOND_NS, &INPUTS), Action::Wait(SECOND_NS), "checked each second");
    let requested = Inputs { requested: true, ..INPUTS };
    let searching = Inputs { search_settled: false, ..requested };
    assert_eq!(scheduler.next(SECOND_NS, &searching), Action::Wait(SECOND_NS));
    assert_eq!(scheduler.next(SECOND_NS, &requested), Action::Dump { host: true, others: true });
    let in_round = Inputs { in_round: true, ..requested };
    let slice = Action::Dump { host: false, others: true };
    assert_eq!(scheduler.next(SECOND_NS, &in_round), slice, "the round goes on");
}

#[test]
fn a_round_begins_when_one_is_due_and_keeps_a_loss_until_it_is_proven() {
    let mut scheduler = Scheduler::new(0);
    let never = || -> bool { panic!("not asked for") };
    assert!(!scheduler.is_round_due(29 * SECOND_NS, &INPUTS, || false));
    assert!(scheduler.is_round_due(29 * SECOND_NS, &INPUTS, || true), "a new namespace");
    assert!(scheduler.is_round_due(30 * SECOND_NS, &INPUTS, never));
    assert!(scheduler.is_round_due(1, &Inputs { requested: true, ..INPUTS }, never));
    assert!(!scheduler.is_round_due(30 * SECOND_NS, &Inputs { in_round: true, ..INPUTS }, never));
    scheduler.records_lost();
    assert!(scheduler.is_round_due(1, &INPUTS, never));
    assert!(!scheduler.may_use_known(1, &INPUTS), "only a search proves what is gone");
    assert!(scheduler.may_use_known(30 * SECOND_NS, &INPUTS));
    assert!(!scheduler.may_use_known(30 * SECOND_NS, &Inputs { search_settled: false, ..INPUTS }));

    scheduler.round_begins(SECOND_NS, false);
    assert!(!scheduler.lost_before_round() && scheduler.is_round_due(2 * SECOND_NS, &INPUTS, never));
    scheduler.round_begins(2 * SECOND_NS, true);
    assert!(scheduler.lost_before_round() && !scheduler.is_round_due(3 * SECOND_NS, &INPUTS, || false));
    scheduler.round_failed();
    assert!(scheduler.is_round_due(3 * SECOND_NS, &INPUTS, never), "the loss is not forgotten");
}

#[test]
fn slices_of_a_round_and_other_dumps_alternate() {
    let in_round = Inputs { in_round: true, ..INPUTS };
    let mut scheduler = Scheduler::new(0);
    scheduler.round_begins(0, true);
    let turns: Vec<OthersTurn> = (0..4).map(|_| scheduler.others_turn(&in_round, true)).collect();
    let (slice, targets) = (OthersTurn::RoundSlice, OthersTurn::Targets);
    assert_eq!(turns, [targets, slice, targets, slice]);
    assert_eq!(scheduler.others_turn(&in_round, false), slice);
    let requested = Inputs { requested: true, ..in_round };
    assert_eq!(scheduler.others_turn(&requested, true), slice, "a user waits");
    assert_eq!(scheduler.others_turn(&INPUTS, false), OthersTurn::Nothing);
}

#[test]
fn a_dump_that_met_nothing_of_its_own_is_not_repeated_at_once() {
    let mut scheduler = Scheduler::new(0);
    assert!(!scheduler.dump_done(0, LIMITS, Turn::Host, Some(HOST), &[charge(2, 1, 1)]));
    assert_eq!(scheduler.host_due_ns(LIMITS), SECOND_NS);
    assert!(scheduler.dump_done(0, LIMITS, Turn::Others, Some(HOST), &[charge(HOST, 1, 1)]));
    assert_eq!(scheduler.others_due_ns(LIMITS), SECOND_NS);
}

#[test]
fn the_budget_warning_comes_each_ten_minutes() {
    let dear = [charge(HOST, 400_000, 9_000_000)];
    let mut scheduler = after(&[&dear, &dear, &dear]);
    let due: Vec<bool> = [0, 599, 600, 601].map(|s| scheduler.is_warning_due(s * SECOND_NS, LIMITS)).to_vec();
    assert_eq!(due, [true, false, true, false]);
    assert!(!Scheduler::new(0).is_warning_due(0, LIMITS));
}
