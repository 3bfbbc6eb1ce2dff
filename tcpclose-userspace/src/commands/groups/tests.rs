use crate::commands::groups::*;
use crate::linux::cgroup::Workload;
use crate::linux::process::Process;
use crate::report::fixtures::{in_place, owner, socket};
use crate::report::sockets::Listener;

fn proven(sockets: &[StuckSocket]) -> Vec<ListedSocket<'_>> {
    sockets.iter().map(|socket| ListedSocket { socket, possibly: false, elsewhere: false }).collect()
}

#[test]
fn one_leak_is_one_line_with_its_rate_and_the_room_left() {
    let api = owner(4242, "api\x1b[31m", (924, 1024));
    let worker = owner(4250, "api", (24, 1024));
    let mut sockets: Vec<StuckSocket> =
        (1..=5).map(|i| socket(i * 60, &[api.clone(), worker.clone()])).collect();
    sockets.push(socket(70, &[]));
    let groups = group(&proven(&sockets), By::Owner, &[]);
    let text = text(&groups, By::Owner, &FdRates::of(&sockets, 60.0), 20, Some(100));
    let lines: Vec<&str> = text.lines().collect();
    // 100 descriptors are left, one goes every 60 s.
    assert_eq!(lines.len(), 3, "{text}");
    for word in [r"api\u{1b}[31m[4242] +1", "not_closed", " 5 ", "5m", "924/1024", "1h 40m"] {
        assert!(lines[1].contains(word), "{word}: {text}");
    }
    assert!(lines[2].starts_with("unknown, uid 1000"), "{text}");
}

#[test]
fn children_of_a_forking_server_are_one_line_and_workers_are_not() {
    let child = |pid, parent| {
        let owner = owner(pid, "socat", (4, 1024));
        let process = Process { parent: Some(parent), ..(*owner.process).clone() };
        socket(60, &[Owner { process: process.into(), ..owner }])
    };
    let mut sockets: Vec<StuckSocket> = (100..300).map(|pid| child(pid, 7)).collect();
    // Four workers; and what was left to init.
    sockets.extend((400..404).map(|pid| child(pid, 8)));
    sockets.extend((500..520).map(|pid| child(pid, 1)));
    let groups = group(&proven(&sockets), By::Owner, &[]);
    assert_eq!(groups.len(), 1 + 4 + 20);
    let text = text(&groups, By::Owner, &FdRates::default(), 5, None);
    assert!(text.lines().nth(1).unwrap().starts_with("socat ×200 of [7]"), "{text}");
}

#[test]
fn groups_beyond_the_limit_are_counted() {
    let sockets: Vec<StuckSocket> = (1..=30).map(|pid| socket(60, &[owner(pid, "a", (1, 2))])).collect();
    let groups = group(&proven(&sockets), By::Owner, &[]);
    let text = text(&groups, By::Owner, &FdRates::default(), 20, None);
    assert_eq!(text.lines().count(), 22);
    assert!(text.ends_with("… 10 more groups\n"), "{text}");
}

#[test]
fn no_rate_is_made_up() {
    let last = |sockets: &[StuckSocket]| {
        group(&proven(sockets), By::Owner, &[])[0].full_in(&FdRates::of(sockets, 60.0))
    };
    let one = owner(1, "a", (10, 1024));
    assert_eq!(last(&[socket(60, std::slice::from_ref(&one))]), "-");
    assert_eq!(last(&[socket(60, std::slice::from_ref(&one)), socket(90, std::slice::from_ref(&one))]), "-");
    assert_eq!(last(&vec![socket(60, std::slice::from_ref(&one)); 9]), "-");
    assert_eq!(last(&[socket(60, &[owner(1, "a", (1024, 1024))])]), "now");
    let queued = StuckSocket { diagnosis: Some(Diagnosis::NotAccepted), ..socket(60, &[one]) };
    assert_eq!(last(&[queued]), "-");
}

#[test]
fn who_only_may_have_a_socket_is_called_a_candidate() {
    let listener = |inode, queued| Listener {
        local: "0.0.0.0:8080".parse().unwrap(),
        interface: 0,
        inode,
        queued,
        candidate: true,
    };
    let holder = |pid, inode| Owner { listener: Some(inode), candidate: true, ..owner(pid, "api", (1, 2)) };
    let waiting = StuckSocket {
        diagnosis: Some(Diagnosis::NotAccepted),
        listeners: vec![listener(8, 16), listener(7, 3)],
        ..socket(60, &[holder(1, 7), holder(2, 8)])
    };
    let sockets = [waiting];
    let text = text(&group(&proven(&sockets), By::Owner, &[]), By::Owner, &FdRates::default(), 20, None);
    assert!(text.contains("candidate api[2] +1"), "{text}");
    assert_eq!(
        labels::owners(&sockets[0]),
        "api[1]:5 (candidate 0.0.0.0:8080, 3 queued), api[2]:5 (candidate 0.0.0.0:8080, 16 queued)"
    );
    let nobody = StuckSocket { owners: Vec::new(), ..sockets[0].clone() };
    assert_eq!(labels::owners(&nobody), "unknown, listener 0.0.0.0:8080, 16 queued");
}

#[test]
fn by_port_and_by_peer_owners_do_not_matter() {
    let sockets = [socket(60, &[owner(1, "a", (1, 2))]), socket(70, &[owner(2, "b", (1, 2))])];
    for by in [By::Port, By::Peer] {
        assert_eq!(group(&proven(&sockets), by, &[]).len(), 1);
    }
    assert_eq!(group(&proven(&sockets), By::Owner, &[]).len(), 2);
    let by_peer = text(&group(&proven(&sockets), By::Peer, &[]), By::Peer, &FdRates::default(), 20, None);
    assert!(by_peer.contains("10.0.0.9"));
}

#[test]
fn groups_of_one_process_share_its_descriptors() {
    let api = owner(1, "a", (924, 1024));
    let read =
        |age| StuckSocket { diagnosis: Some(Diagnosis::NotRead), ..socket(age, std::slice::from_ref(&api)) };
    // One every 60 s, of either kind: 100 left.
    let sockets = [
        socket(60, std::slice::from_ref(&api)),
        read(120),
        socket(180, std::slice::from_ref(&api)),
        read(240),
    ];
    let groups = group(&proven(&sockets), By::Owner, &[]);
    let rates = FdRates::of(&sockets, 60.0);
    let full: Vec<String> = groups.iter().map(|group| group.full_in(&rates)).collect();
    assert_eq!(full, ["1h 40m", "1h 40m"]);
}

#[test]
fn units_and_containers_are_groups_of_their_own() {
    let id = format!("containerd://{}", "0123456789abcdef".repeat(4));
    let placed = |pid, unit: Option<&str>, container: Option<&str>| {
        let unit = unit.map(str::to_owned);
        let place = Workload { unit, container_id: container.map(str::to_owned), pod_uid: None };
        in_place(owner(pid, "a", (1, 2)), place)
    };
    let sockets = [
        socket(60, &[placed(1, Some("api.service"), None), placed(2, Some("api.service"), None)]),
        socket(60, &[placed(3, Some("api.service"), None)]),
        socket(60, &[placed(4, None, Some(&id))]),
        socket(60, &[]),
    ];
    let by = |by| {
        let groups = group(&proven(&sockets), by, &[]);
        let text = text(&groups, by, &FdRates::default(), 20, None);
        text.lines().skip(1).map(|line| line.split("  ").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(by(By::Unit), ["api.service", "unknown, uid 1000", "-"]);
    assert_eq!(by(By::Container), ["-", "unknown, uid 1000", "containerd://0123456789ab"]);
}
