use crate::metrics::port_labels::*;
use crate::names::NetnsOwner;

const HOUR: u64 = IDLE_NS;
/// `--max-ports` by default.
const MAX: usize = 32;

fn pair(port: u16) -> PortKey {
    PortKey { side: Side::Server, port }
}

fn service(pair: PortKey) -> LabelRequest {
    LabelRequest { pair, kind: PortKind::Service, stuck: false }
}

fn chance(pair: PortKey) -> LabelRequest {
    LabelRequest { pair, kind: PortKind::Chance, stuck: false }
}

fn stuck(request: LabelRequest) -> LabelRequest {
    LabelRequest { stuck: true, ..request }
}

fn is_named(labels: &mut PortLabels, request: LabelRequest) -> bool {
    labels.label(request, 1).port.is_some()
}

#[test]
fn the_first_to_come_are_named() {
    // Two of four names are kept.
    let mut labels = PortLabels::new(4, &[9000]);
    assert!(is_named(&mut labels, service(pair(80))));
    assert!(!is_named(&mut labels, service(pair(8080))));
    assert!(is_named(&mut labels, service(pair(9000))), "--name-port");
    assert!(is_named(&mut labels, service(pair(80))));
    let client = PortKey { side: Side::Client, port: 80 };
    assert!(!is_named(&mut labels, service(client)), "a pair is a side and a port");
}

#[test]
fn labels_come_in_order() {
    let mut labels = PortLabels::new(9, &[9000]);
    let client = PortKey { side: Side::Client, port: 65535 };
    let pairs = [pair(443), client, pair(9000), pair(80), pair(81), pair(8080)];
    let slots = pairs.map(|pair| labels.slot(service(pair), 1));
    assert_eq!(slots, [3, 4, 5, 6, 7, 0]);
    let (server, client) = (Side::Server, Side::Client);
    let label = |side, port| PortLabel { side, port };
    assert_eq!(
        labels.labels(),
        [
            (label(server, None), 0),
            (label(server, Some(80)), 6),
            (label(server, Some(81)), 7),
            (label(server, Some(443)), 3),
            (label(server, Some(9000)), 5),
            (label(client, None), 1),
            (label(client, Some(65535)), 4),
            (label(Side::Unknown, None), 2),
        ]
    );
    let last = PortKey { side: Side::Unknown, port: 65535 };
    assert_eq!(place_of(last) + 1, labels.slots.len());
}

#[test]
fn all_names_together_are_as_many_as_promised() {
    for max in 0..200 {
        let mut labels = PortLabels::new(max, &[]);
        assert_eq!(labels.sizes[1..].iter().sum::<usize>(), max);
        for port in 1..1000 {
            labels.facts().listens(port, Charge::Root);
            labels.label(stuck(service(pair(port))), 1);
            labels.label(LabelRequest { kind: PortKind::Unproven, ..service(pair(port + 1000)) }, 1);
        }
        assert_eq!(labels.named().count(), max);
    }
}

#[test]
fn a_port_of_the_local_range_asks_after_a_hundred_closes() {
    let mut labels = PortLabels::new(MAX, &[]);
    for _ in 0..99 {
        labels.closed(pair(40000), PortKind::Chance);
        assert!(!is_named(&mut labels, chance(pair(40000))));
    }
    labels.closed(pair(40000), PortKind::Chance);
    assert!(is_named(&mut labels, chance(pair(40000))));
    assert!(
        is_named(&mut labels, service(pair(40001))),
        "in a namespace with another range it is a service's"
    );
}

#[test]
fn a_name_is_lost_to_another_after_an_idle_hour_only() {
    let mut labels = PortLabels::new(5, &[]);
    let label = |labels: &mut PortLabels, port, at_ns| labels.label(service(pair(port)), at_ns).port;
    label(&mut labels, 80, 0);
    label(&mut labels, 443, HOUR / 2);
    assert_eq!(label(&mut labels, 8080, HOUR - 1), None);
    assert!(labels.take_retired().is_empty());
    assert_eq!(label(&mut labels, 8080, HOUR), Some(8080));
    let former = PortLabel { side: Side::Server, port: Some(80) };
    assert_eq!(labels.take_retired(), [Retired { label: former, slot: 3 }]);
    assert_eq!(label(&mut labels, 80, HOUR + 1), None);
    assert_eq!(label(&mut labels, 443, HOUR + 1), Some(443));
}

#[test]
fn chance_ports_and_unknown_sides_leave_names_for_services() {
    let mut labels = PortLabels::new(MAX, &[]);
    for port in 1..=1000 {
        let unknown = PortKey { side: Side::Unknown, port };
        labels.label(LabelRequest { kind: PortKind::Unproven, ..service(unknown) }, 1);
        let random = pair(40000 + port);
        for _ in 0..CLOSES_IN_RANGE {
            labels.closed(random, PortKind::Chance);
        }
        labels.label(chance(random), 1);
    }
    assert_eq!(labels.named().count(), MAX / 8);
    let services = (80..80 + 12).filter(|&port| is_named(&mut labels, service(pair(port)))).count();
    assert_eq!(services, 12);
}

#[test]
fn names_are_kept_for_listeners_and_for_leaks() {
    let mut labels = PortLabels::new(MAX, &[]);
    for port in 1..=1000 {
        labels.label(service(PortKey { side: Side::Client, port }), 1);
    }
    assert!(!is_named(&mut labels, service(pair(22))), "other traffic was first");
    for port in 22..40 {
        labels.facts().listens(port, Charge::Root);
    }
    let listened = (22..40).filter(|&port| is_named(&mut labels, service(pair(port)))).count();
    assert_eq!(listened, MAX / 4);
    let leaks = [stuck(service(pair(39))), stuck(chance(pair(40000))), stuck(chance(pair(40001)))];
    assert!(leaks.iter().all(|leak| is_named(&mut labels, *leak)));
}

/// Listeners, traffic and leaks on as many ports as a user likes, in the host's network namespace and in those of their own,
/// with subordinate ids too.
#[test]
fn one_user_cannot_take_all_names() {
    let mut labels = PortLabels::new(MAX, &[]);
    for port in 1..=1000 {
        let charge = match port % 3 {
            0 => Charge::of(NetnsOwner::Host, 1, 0, 1000),
            _ => Charge::of(NetnsOwner::User, u32::from(port), 1000, 0),
        };
        labels.facts().listens(port, charge);
        let client = PortKey { side: Side::Client, port };
        labels.facts().holds(pair(port), charge);
        labels.facts().holds(client, charge);
        labels.label(stuck(service(pair(port))), 1);
        labels.label(stuck(service(client)), 1);
    }
    let subordinate = |port: u16| 100_000 + u32::from(port);
    for port in 1001..=2000 {
        labels.facts().listens(port, Charge::of(NetnsOwner::Host, 1, 0, subordinate(port)));
        labels.label(stuck(service(pair(port))), 1);
    }
    labels.facts().listens(443, Charge::Root);
    labels.facts().listens(8443, Charge::Root);
    let taken = labels.named().count();
    println!("{taken} of {MAX} names");
    // One charge for the user, one for all subordinate ids.
    assert_eq!(labels.charged.len(), 4);
    assert!(labels.charged.values().all(|&names| names <= MAX / 8));
    labels.facts.round_done();
    let mut labels = PortLabels::new(MAX, &[]);
    for port in 1..=1000 {
        labels.facts().listens(port, Charge::User(1000));
        labels.facts().holds(pair(port), Charge::User(1000));
        labels.label(stuck(service(pair(port))), 1);
    }
    labels.facts().listens(2443, Charge::Root);
    assert!(is_named(&mut labels, service(pair(2443))), "root's listener");
    labels.facts().holds(pair(40000), Charge::User(33));
    assert!(is_named(&mut labels, stuck(chance(pair(40000)))), "another user's leak");
    assert!(!is_named(&mut labels, stuck(chance(pair(999)))));
}

/// However often pairs come and go, a name changes once an hour.
#[test]
fn no_more_names_come_up_in_an_hour_than_there_are() {
    let mut labels = PortLabels::new(MAX, &[]);
    let mut names = 0;
    for second in 0..4 * 3600 {
        for nth in 0..4 {
            let port = (second * 4 + nth) as u16;
            labels.facts().holds(pair(port), Charge::User(u32::from(port % 100)));
            labels.label(stuck(service(pair(port))), second * (HOUR / 3600));
        }
        labels.facts().round_done();
        names += labels.take_retired().len();
    }
    println!("{names} names in four hours");
    assert!(names <= 4 * MAX && names > 0);
}
