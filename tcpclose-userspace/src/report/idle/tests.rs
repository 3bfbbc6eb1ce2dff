//! Which connections are listed, and how they are put together.

use crate::linux::netns::Netns;
use crate::linux::owners::Owners;
use crate::linux::proc_fd::FdHolder;
use crate::linux::process::Process;
use crate::linux::sock_diag::{Retries, Timer, Times};
use crate::report::accept_queues::AcceptQueues;
use crate::report::envelope::DocumentSource;
use crate::report::fixtures::{MINUTE, SECOND, dumped_socket};
use crate::report::idle::*;
use crate::report::owners::Peers;

/// A connection that has been silent for so many minutes.
fn silent(minutes: u64, peer: &str, inode: u32) -> Socket {
    let ns = minutes * MINUTE;
    let times = Times {
        last_sent_ns: ns,
        last_data_received_ns: ns + 5 * SECOND,
        last_ack_received_ns: ns,
        sending: None,
    };
    Socket { times: Some(times), ..dumped_socket(TcpState::Established, "10.0.0.5:8080", peer, inode) }
}

#[test]
fn only_what_no_timer_watches_is_idle() {
    let idle = silent(20, "10.0.0.9:1000", 7);
    assert_eq!(silence_ns(&idle), Some(20 * MINUTE));
    assert!(is_wanted(&idle, 20 * MINUTE) && !is_wanted(&idle, 20 * MINUTE + 1));
    for timer in [Timer::Keepalive, Timer::Retransmission, Timer::WindowProbe, Timer::Other] {
        assert_eq!(silence_ns(&Socket { timer: Some(timer), ..idle }), None, "{timer:?}");
    }
    assert_eq!(silence_ns(&Socket { times: None, ..idle }), None);
    assert_eq!(silence_ns(&Socket { state: TcpState::CloseWait, ..idle }), None);
    let young = |change: fn(&mut Times)| {
        let mut socket = idle;
        socket.times.iter_mut().for_each(change);
        silence_ns(&socket)
    };
    assert_eq!(young(|times| times.last_sent_ns = 1), Some(1));
    assert_eq!(young(|times| times.last_data_received_ns = 2), Some(2));
    assert_eq!(young(|times| times.last_ack_received_ns = 3), Some(3));
}

#[test]
fn a_peer_is_gone_that_does_not_acknowledge() {
    let sending = |timeouts, window| Socket {
        timer: Some(Timer::Retransmission),
        unsent: 9,
        retries: Some(Retries { timeouts, again: 4, window }),
        ..silent(0, "10.0.0.9:1000", 7)
    };
    assert!(is_wanted(&sending(4, Some(64_000)), MINUTE));
    assert!(!is_wanted(&sending(1, Some(64_000)), MINUTE));
    // It is there, and does not read.
    assert!(!is_wanted(&sending(4, Some(0)), MINUTE));
}

#[test]
fn unread_data_counts_with_keepalive_too() {
    let waiting = Socket { unread: 5, timer: Some(Timer::Keepalive), ..silent(20, "10.0.0.9:1000", 7) };
    let why = |socket: &Socket| IdleFindings::of(socket, 10 * MINUTE).why();
    assert_eq!(why(&waiting), Some(IdleReason::NotRead));
    assert_eq!(why(&Socket { timer: None, ..waiting }), Some(IdleReason::NotRead));
    assert_eq!(why(&Socket { unread: 0, ..waiting }), None);
    assert_eq!(why(&Socket { unread: 5, ..silent(5, "10.0.0.9:1000", 7) }), None);
}

fn listed(sockets: &[Socket], parent: Option<u32>, wanted: &IdleQuery) -> IdleDocument {
    // Two workers of one master, with every other socket each.
    let held = sockets.iter().map(|socket| (socket.inode, FdHolder { pid: 40 + socket.inode % 2, fd: 3 }));
    let process = |pid| (pid, Process { comm: "api".into(), parent, ..Process::default() }.into());
    let owners = Owners::new(held.collect(), [40, 41].map(process).into_iter().collect(), 0);
    let netns = Netns { id: 7, inum: 77, name: None };
    let namespace = NetnsSockets {
        sockets,
        queues: &AcceptQueues::new([].iter(), &[]),
        owners: &owners,
        peers: &Peers::default(),
        netns: &netns,
        bound_ns: wanted.silent_ns(),
    };
    let mut idle = IdleSockets::default();
    idle.add(&namespace, |socket| (Side::Server, socket.flow.local_port), wanted);
    let envelope = Envelope {
        host: "h".into(),
        boot_id: String::new(),
        at: String::new(),
        source: DocumentSource::Agent,
        incomplete: Vec::new(),
    };
    idle.document(wanted, 9, envelope)
}

#[test]
fn siblings_are_one_line_and_other_processes_are_not() {
    let sockets = [
        silent(20, "10.0.0.9:1000", 1),
        silent(30, "127.0.0.1:1001", 2),
        silent(10, "10.0.0.9:1002", 3),
        Socket {
            timer: Some(Timer::Retransmission),
            retries: Some(Retries { timeouts: 3, again: 3, window: Some(1) }),
            ..silent(0, "10.0.0.9:1003", 4)
        },
    ];
    let wanted = IdleQuery { sockets: 2, ..IdleQuery::default() };
    let document = listed(&sockets, Some(30), &wanted);
    let [group] = &document.groups[..] else { panic!("{document:?}") };
    assert_eq!((group.idle, group.local, group.peer_gone, group.silent_seconds), (3, 1, 1, 1800.0));
    assert_eq!(group.owners.iter().map(|owner| owner.pid).collect::<Vec<_>>(), [41, 40]);
    assert_eq!((document.sockets[0].why, group.not_read), (IdleReason::Idle, 0));
    let silences: Vec<f64> = document.sockets.iter().map(|socket| socket.silent_seconds).collect();
    assert_eq!((silences, document.sockets[0].local_peer), (vec![1800.0, 1200.0], true));
    for parent in [None, Some(1)] {
        assert_eq!(listed(&sockets, parent, &wanted).groups.len(), 2);
    }
    let of_one = IdleQuery { pid: Some(40), sockets: 9, ..IdleQuery::default() };
    let document = listed(&sockets, Some(30), &of_one);
    assert_eq!((document.groups[0].idle, document.sockets.len(), document.established), (1, 2, 9));
    let elsewhere = IdleQuery { netns: Some(1), ..IdleQuery::default() };
    assert!(listed(&sockets, None, &elsewhere).groups.is_empty());
    let text = serde_json::to_string(&document).unwrap();
    assert_eq!(serde_json::from_str::<IdleDocument>(&text).unwrap(), document);
}
