//! A fake clock: seconds in, seconds out.

use crate::agent::scheduler::*;

const MS: u64 = 1_000_000;
const LIMITS: Limits = Limits { interval_ns: SECOND_NS, max_ns: 60 * SECOND_NS };
const HOST: u32 = 1;

fn charge(id: u32, ms: u64, met: u64) -> Charge {
    Charge { id, cpu_ns: ms * MS, met }
}

/// A schedule after dumps that cost so much, at one second after the other.
fn after(dumps: &[&[Charge]]) -> Scheduler {
    let mut schedule = Scheduler::default();
    for (second, charges) in dumps.iter().enumerate() {
        schedule.took(second as u64 * SECOND_NS, Some(HOST), charges);
    }
    schedule
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[test]
fn no_pause_is_longer_than_the_longest_whatever_a_dump_costs() {
    let dear = [charge(HOST, 400_000, 9_000_000), charge(2, 400_000, 9)];
    let schedule = after(&[&dear, &dear, &dear]);
    assert_eq!(schedule.host_due_ns(LIMITS), 62 * SECOND_NS);
    assert_eq!(schedule.others_due_ns(LIMITS), 62 * SECOND_NS);
    assert!(schedule.is_over_budget(LIMITS));
    let patient = Limits { max_ns: 1000 * SECOND_NS, ..LIMITS };
    assert_eq!(schedule.others_due_ns(patient), 1002 * SECOND_NS);
    let cheap = after(&[&[charge(HOST, 3, 10), charge(2, 3, 10)]]);
    assert_eq!((cheap.host_due_ns(LIMITS), cheap.others_due_ns(LIMITS)), (SECOND_NS, SECOND_NS));
    assert!(!cheap.is_over_budget(LIMITS));
}

#[test]
fn the_pause_falls_at_once_when_a_dump_is_cheap_again() {
    let (dear, cheap) = ([charge(2, 2900, 0)], [charge(2, 4, 0)]);
    assert_eq!(after(&[&dear, &dear]).others_due_ns(LIMITS), 61 * SECOND_NS);
    assert_eq!(after(&[&dear, &dear, &cheap]).others_due_ns(LIMITS), 3 * SECOND_NS);
    // One that was charged for another program's doings changes nothing.
    assert_eq!(after(&[&cheap, &cheap, &dear]).others_due_ns(LIMITS), 3 * SECOND_NS);
}

#[test]
fn the_host_is_dumped_at_its_own_interval_however_many_others_there_are() {
    let mut schedule = after(&[&[charge(HOST, 5, 100)]]);
    for nth in 0..250 {
        schedule.took(nth * 50 * MS, Some(HOST), &[charge(2 + nth as u32, 50, 10)]);
    }
    assert_eq!(schedule.host_due_ns(LIMITS), SECOND_NS);
    // A walk over a million sockets of others.
    let host = after(&[&[charge(HOST, 60, 100)]]).host_due_ns(LIMITS);
    assert!(host < 5 * SECOND_NS, "{}", seconds(host));
    // Its own sockets are another matter.
    let host = after(&[&[charge(HOST, 60, 40_000)]]).host_due_ns(LIMITS);
    assert_eq!(host, 9 * SECOND_NS);
}

#[test]
fn others_pause_for_the_hosts_dumps_too() {
    let mut schedule = after(&[&[charge(HOST, 5, 9), charge(2, 5, 9)]]);
    assert_eq!(seconds(schedule.others_due_ns(LIMITS)), 1.5);
    schedule.took(SECOND_NS, Some(HOST), &[charge(HOST, 20, 9)]);
    assert_eq!(seconds(schedule.others_due_ns(LIMITS)), 4.5);
    schedule.owes(100 * MS);
    assert_eq!(seconds(schedule.others_due_ns(LIMITS)), 19.5);
}

#[test]
fn a_long_pause_ends_when_what_made_it_long_is_gone() {
    let dear = [charge(2, 2000, 1_000_000), charge(3, 10, 5)];
    let mut schedule = after(&[&dear, &dear]);
    assert_eq!(schedule.others_due_ns(LIMITS), 61 * SECOND_NS);
    assert_eq!(schedule.dearest(LIMITS), dear);
    schedule.shrank(2, 100_000);
    assert_eq!(seconds(schedule.others_due_ns(LIMITS)), 32.5, "a tenth of the sockets, a tenth of the cost");
    schedule.shrank(2, 0);
    assert_eq!(seconds(schedule.others_due_ns(LIMITS)), 2.5);
    assert!(schedule.dearest(LIMITS).is_empty(), "nothing is long any more");
    schedule.shrank(3, 1_000_000);
    assert_eq!(seconds(schedule.others_due_ns(LIMITS)), 2.5, "more sockets are for the next dump to tell");
}

#[test]
fn a_long_round_hurries_so_that_no_number_gets_too_old() {
    let mut schedule = after(&[&[charge(2, 50, 10)]]);
    assert_eq!(seconds(schedule.others_due_ns(LIMITS)), 7.5);
    // A hundred slices of 50 ms in what is left of a minute.
    schedule.set_backlog(Some(Backlog { cpu_ns: 5 * SECOND_NS, slices: 100, since_ns: 0 }));
    assert_eq!(seconds(schedule.others_due_ns(LIMITS)), 0.55);
    assert!(schedule.is_over_budget(LIMITS));
    schedule.set_backlog(Some(Backlog { cpu_ns: 100 * MS, slices: 2, since_ns: 0 }));
    assert_eq!(seconds(schedule.others_due_ns(LIMITS)), 7.5, "there is time");
    // It is late already.
    let mut late = after(&[&[], &[charge(2, 50, 10)]]);
    late.set_backlog(Some(Backlog { cpu_ns: 120 * SECOND_NS, slices: 9, since_ns: 0 }));
    assert_eq!(seconds(late.others_due_ns(LIMITS)), 1.05);
}

#[test]
fn a_failure_is_tried_again_after_the_interval() {
    let mut schedule = Scheduler::default();
    schedule.failed(5 * SECOND_NS, LIMITS);
    assert_eq!(schedule.host_due_ns(LIMITS), 6 * SECOND_NS);
    assert_eq!(schedule.others_due_ns(LIMITS), 6 * SECOND_NS);
}

#[test]
fn each_user_has_the_same_share() {
    let mut items: Vec<(u32, u64, (u32, u64))> = (0..250).map(|n| (1000, 2, (1000, n))).collect();
    items.extend([(0, 2, (0, 0)), (0, 2, (0, 1)), (7, 1, (7, 0))]);
    let order = in_turn(items);
    assert_eq!(order[..6], [(1000, 0), (0, 0), (7, 0), (1000, 1), (0, 1), (1000, 2)]);
    assert_eq!(order.len(), 253);
    // Who has dear ones comes less often.
    let order = in_turn(vec![(1, 10, 'a'), (1, 10, 'b'), (2, 2, 'x'), (2, 2, 'y'), (2, 2, 'z')]);
    assert_eq!(order, ['a', 'x', 'y', 'z', 'b']);
}
