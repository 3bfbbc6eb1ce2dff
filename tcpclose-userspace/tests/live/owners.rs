//! Whose a socket is, on real processes: forked, handed over, in other namespaces and cgroups, with hostile names; and
//! what the agent counts of it. Each question is put to an agent on either backend and to a snapshot.

#[allow(dead_code, reason = "the processes taken here end in their cgroups")]
pub mod cgroups;
use crate::common;
pub mod container;
pub mod handles;
pub mod places;
pub mod pod;
pub mod ring;
pub mod series;
pub mod stage;

use std::io::{IoSlice, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::namespaces::named::{Named, ip};
use common::{Agent, BINARY, free_port};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use socket2::{Domain, SockRef, Socket, Type};
use stage::{Askers, Child, Pair, Server, helper};
use tcpclose::linux::sock_diag;
use tcpclose::names::{Diagnosis, Flow};
use tcpclose::report::sockets::{Owner, SocketsDocument};
use tcpclose_common::state::TcpState;

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
#[ignore = "needs root"]
fn a_forked_servers_processes_are_all_named_and_who_exits_is_not() {
    let askers = Askers::start();
    let server = Server::new();
    let pair = server.pair();
    let child = Child::holding(Command::new("sleep").arg("1000"), &pair.server);
    let own = (std::process::id(), pair.server.as_raw_fd() as u32);
    for (asker, document) in askers.ask(server.port()) {
        let socket = stage::only(&document);
        let mut expected = vec![own, (child.pid(), 0)];
        expected.sort_unstable();
        assert_eq!(stage::holders(&socket.owners), expected, "{asker}");
        let sleep = socket.owners.iter().find(|owner| owner.pid == child.pid()).unwrap();
        assert_eq!((&*sleep.comm, sleep.fds_used.is_some()), ("sleep", true), "{asker}");
        assert!(sleep.exe.as_ref().is_some_and(|exe| exe.starts_with('/')), "{asker}: {:?}", sleep.exe);
    }
    drop(child);
    for (asker, document) in askers.ask(server.port()) {
        assert_eq!(stage::holders(&stage::only(&document).owners), [own], "{asker}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_descriptor_that_was_handed_over_belongs_to_the_receiver() {
    let askers = Askers::start();
    let server = Server::new();
    let Pair { server: handed, client: _client } = server.pair();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let fds = [handed.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&ours, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
    drop(handed);
    // On its way nobody holds it, and that is said.
    for (asker, document) in askers.ask(server.port()) {
        assert!(stage::only(&document).owners.is_empty(), "{asker}");
        assert!(document.incomplete.iter().any(|remark| remark.contains("in flight")), "{asker}");
    }
    let mut receiver = Child::holding(&mut helper("receiver"), &theirs);
    receiver.until_it_says("received");
    for (asker, document) in askers.ask(server.port()) {
        let owners = &stage::only(&document).owners;
        assert_eq!(owners.iter().map(|owner| owner.pid).collect::<Vec<_>>(), [receiver.pid()], "{asker}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_process_in_other_pid_and_mount_namespaces_is_found() {
    let askers = Askers::start();
    let server = Server::new();
    let Pair { server: held, client: _client } = server.pair();
    let unshare = ["--pid", "--mount", "--net", "--fork", "--kill-child", "--mount-proc", "sleep", "1000"];
    let child = Child::holding(Command::new("unshare").args(unshare), &held);
    let inner = child.its_child("sleep");
    drop(held);
    for (asker, document) in askers.ask(server.port()) {
        let owners = &stage::only(&document).owners;
        let names: Vec<(u32, &str)> = owners.iter().map(|owner| (owner.pid, &*owner.comm)).collect();
        assert_eq!(names, [(child.pid(), "unshare"), (inner, "sleep")], "{asker}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_queue_belongs_to_everybody_who_could_accept_and_a_local_peer_to_its_own() {
    let askers = Askers::start();
    let server = Server::new();
    let worker = Child::holding(Command::new("sleep").arg("1000"), &server.listener);
    let client = server.half_closed_client(b"hello");
    let mut both = vec![std::process::id(), worker.pid()];
    both.sort_unstable();
    let pids = |owners: &[Owner]| stage::holders(owners).into_iter().map(|(pid, _)| pid).collect::<Vec<_>>();
    for (asker, document) in askers.ask(server.port()) {
        let socket = stage::only(&document);
        assert_eq!(socket.diagnosis, Some(Diagnosis::NotAccepted), "{asker}");
        assert_eq!(pids(&socket.owners), both, "{asker}");
        let peer = [(std::process::id(), client.as_raw_fd() as u32)];
        assert_eq!(stage::holders(&socket.peer_owners), peer, "{asker}");
    }
    // The other way round: the client waits in FIN-WAIT-2, and its peer is in the queue still.
    let port = server.port().to_string();
    let half_closed = ["--state", "fin_wait_2", "--older-than", "0s", "--port", &port];
    // A FIN may be acknowledged as late as any segment (TCP_DELACK_MAX, 200 ms).
    let is_there = |(_, document): &(&str, SocketsDocument)| !document.sockets.is_empty();
    let until = Instant::now() + PATIENCE;
    while !askers.ask_with(&half_closed).iter().all(is_there) {
        assert!(Instant::now() < until, "the client does not get to FIN-WAIT-2");
    }
    for (asker, document) in askers.ask_with(&half_closed) {
        assert_eq!(pids(&stage::only(&document).peer_owners), both, "{asker}");
    }
    // A peer that has gone has no owner.
    drop(client);
    for (asker, document) in askers.ask(server.port()) {
        assert!(stage::only(&document).peer_owners.is_empty(), "{asker}");
    }
}

#[test]
#[ignore = "needs root"]
fn the_iterator_names_processes_that_the_agent_may_not_look_into() {
    let _alone = stage::alone();
    let start = |backend| {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-all,+bpf,+perfmon", BINARY]);
        Agent::start_by(command, &["--owners", backend])
    };
    let server = Server::new();
    let Pair { server: held, client: _client } = server.pair();
    let child = Child::holding(Command::new("sleep").arg("1000").uid(65534), &held);
    drop(held);
    let port = server.port().to_string();
    let ask = |agent: &Agent| -> SocketsDocument {
        let output = agent.stuck(&["--json", "--older-than", "0s", "--port", &port]);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let iterated = ask(&start("task_file"));
    let owner = &stage::only(&iterated).owners[0];
    assert_eq!((owner.pid, &*owner.comm, &owner.exe), (child.pid(), "sleep", &None));
    let walked = ask(&start("proc"));
    assert!(stage::only(&walked).owners.is_empty());
    let printed = |words: &str| walked.incomplete.iter().any(|remark| remark.contains(words));
    assert!(printed("CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH are needed"), "{:?}", walked.incomplete);
}

#[test]
#[ignore = "needs root"]
fn who_closed_is_reported_while_the_socket_lasts() {
    let _alone = stage::alone();
    let agents = Agent::on_each_hook(&[]);
    let server = Server::new();
    // Its data finds no room at a peer that does not read, and neither does the FIN behind it.
    let full = |pair: &mut Pair| {
        pair.server.set_nonblocking(true).unwrap();
        while pair.server.write(&[0; 1 << 16]).is_ok() {}
    };
    let mut ours = server.open_pair();
    full(&mut ours);
    drop(ours.server);
    let mut childs = server.pair();
    full(&mut childs);
    let child = Child::holding(Command::new("sleep").arg("1000"), &childs.server);
    drop(childs.server);
    let (own, other) = (std::process::id(), child.pid());
    let port = server.port().to_string();
    // By close(), and by a process's end, which names that process though it is gone.
    drop(child);
    for (state, pid, lives) in [("fin_wait_1", own, true), ("last_ack", other, false)] {
        for (hook, agent) in &agents {
            let output = agent.stuck(&["--json", "--older-than", "0s", "--state", state, "--port", &port]);
            let document: SocketsDocument = serde_json::from_slice(&output.stdout).unwrap();
            let socket = stage::only(&document);
            let closer = socket.closed_by.as_ref().unwrap_or_else(|| panic!("{hook}: {socket:?}"));
            assert_eq!((closer.pid, closer.comm.is_some()), (pid, lives), "{hook}: {closer:?}");
            assert!(socket.owners.is_empty() && closer.seconds >= 0.0, "{hook}: {socket:?}");
            let text = agent.stuck(&["--sockets", "--older-than", "0s", "--state", state, "--port", &port]);
            let text = String::from_utf8(text.stdout).unwrap();
            assert!(text.contains("closed by ") && text.contains(&format!("[{pid}]")), "{hook}: {text}");
        }
    }
}

/// Two listeners on one port, each bound to a device: what waits in the queue of one is not the other's.
#[test]
#[ignore = "needs root"]
fn of_two_listeners_on_one_port_the_one_of_the_device_is_named() {
    let netns = Named::new("devices");
    ip(&["-n", &netns.name, "link", "add", "d0", "type", "veth", "peer", "name", "d1"]);
    let port = free_port();
    let bound = |device: &str| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind_device(Some(device.as_bytes())).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).unwrap();
        socket.listen(8).unwrap();
        TcpListener::from(socket)
    };
    let (ours, other, _client) = netns.inside(|| {
        let (ours, other) = (bound("lo"), bound("d0"));
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        while sock_diag::dump(TcpState::CloseWait.bit(), false).unwrap().sockets.is_empty() {}
        (ours, other, client)
    });
    let agents = Agent::on_each_hook(&[]);
    for (hook, agent) in &agents {
        let output = agent.stuck(&["--json", "--older-than", "0s", "--port", &port.to_string()]);
        let document: SocketsDocument = serde_json::from_slice(&output.stdout).unwrap();
        let socket = stage::only(&document);
        let fds: Vec<u32> = socket.owners.iter().map(|owner| owner.fd).collect();
        assert_eq!(fds, [ours.as_raw_fd() as u32], "{hook}: not {}: {socket:?}", other.as_raw_fd());
    }
}

/// A close() that lingers has given its descriptor up: no file leads to the socket, and its inode is still there.
#[test]
#[ignore = "needs root"]
fn who_waits_in_close_is_named() {
    let agents = Agent::on_each_hook(&[]);
    let server = Server::new();
    let Pair { client, server: mut lingering } = server.open_pair();
    lingering.set_nonblocking(true).unwrap();
    while lingering.write(&[0; 1 << 16]).is_ok() {}
    lingering.set_nonblocking(false).unwrap();
    SockRef::from(&lingering).set_linger(Some(Duration::from_secs(600))).unwrap();
    let flow = Flow::new(lingering.local_addr().unwrap(), client.local_addr().unwrap());
    let closing = std::thread::spawn(move || drop(lingering));
    let is_closing = || {
        sock_diag::lookup(&flow, 0, None).unwrap().is_some_and(|socket| socket.state == TcpState::FinWait1)
    };
    while !is_closing() {}
    let port = server.port().to_string();
    for (hook, agent) in &agents {
        let asked = ["--json", "--older-than", "0s", "--state", "fin_wait_1", "--port", &port];
        let document: SocketsDocument = serde_json::from_slice(&agent.stuck(&asked).stdout).unwrap();
        let socket = stage::only(&document);
        assert!(socket.inode != 0 && socket.owners.is_empty(), "{hook}: {socket:?}");
        let closer = socket.closed_by.as_ref().unwrap_or_else(|| panic!("{hook}: {socket:?}"));
        assert_eq!((closer.pid, closer.comm.is_some()), (std::process::id(), true), "{hook}");
    }
    // What it never read resets the connection, and close() returns.
    drop(client);
    closing.join().unwrap();
}

#[test]
#[ignore = "needs root"]
fn what_ends_between_two_steps_is_left_out_and_no_error() {
    let askers = Askers::start();
    let server = Server::new();
    let pair = server.pair();
    let port = server.port();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let churn = std::thread::spawn(move || {
        while stopped.try_recv().is_err() {
            // Processes that end, and sockets that close.
            let brief = server.pair();
            drop(Child::holding(Command::new("sleep").arg("1000"), &brief.server));
        }
        server
    });
    let own = (std::process::id(), pair.server.as_raw_fd() as u32);
    let peer = pair.client.local_addr().unwrap();
    for _ in 0..20 {
        for (asker, document) in askers.ask(port) {
            let lasting = document.sockets.iter().find(|socket| socket.peer == peer).unwrap();
            assert!(stage::holders(&lasting.owners).contains(&own), "{asker}");
            for owner in document.sockets.iter().flat_map(|socket| &socket.owners) {
                assert!(!owner.comm.is_empty(), "{asker}: a process that has ended is named");
            }
        }
    }
    stop.send(()).unwrap();
    churn.join().unwrap();
}

#[test]
#[ignore = "needs root"]
fn fifteen_thousand_leaked_sockets_are_answered_completely() {
    const LEAKED: usize = 15_000;
    let askers = Askers::start();
    let server = Server::new();
    let mut leak = Child::holding(helper("leak").env(stage::COUNT, LEAKED.to_string()), &server.listener);
    // One after the other: a busy processor drops what its queue has no room for (netdev_max_backlog), FINs among it.
    // A client's port is free again a minute after its end was closed (tcp_fin_timeout), and who then takes it resets the leaked
    // socket that still has these addresses. A thousand clients of an address take less than that.
    for nth in 0..LEAKED {
        drop(server.half_closed_client_from(Ipv4Addr::new(127, 0, 1, 1 + (nth / 1000) as u8)));
    }
    leak.until_it_says("taken");
    // A FIN that met a full accept queue is sent again, later each time.
    let close_waits = || {
        let dump = sock_diag::dump(TcpState::CloseWait.bit(), false).unwrap();
        dump.sockets.iter().filter(|socket| socket.flow.local_port == server.port()).count()
    };
    let until = Instant::now() + PATIENCE;
    while close_waits() < LEAKED {
        assert!(Instant::now() < until, "{} of {LEAKED} are in CLOSE-WAIT", close_waits());
        std::thread::sleep(Duration::from_millis(50));
    }
    for (asker, document) in askers.ask(server.port()) {
        assert_eq!(document.sockets.len(), LEAKED, "{asker}: {:?}", document.incomplete);
        let named =
            |owners: &[Owner]| owners.len() == 1 && owners.iter().all(|owner| owner.pid == leak.pid());
        assert!(document.sockets.iter().all(|socket| named(&socket.owners)), "{asker}");
    }
}

#[test]
#[ignore = "needs root"]
fn stuck_sockets_are_counted_by_owner_while_there_are_any() {
    let _alone = stage::alone();
    let arguments = ["--stuck-after", "1s", "--owner-interval", "200ms"];
    let agent = Agent::start(&arguments);
    let off = Agent::start(&["--stuck-after", "1s", "--owner-interval", "off"]);
    let directory = tempfile::tempdir().unwrap();
    // A name that nobody else's process has.
    let name = format!("leak{}", std::process::id());
    let program = directory.path().join(&name);
    std::fs::copy("/bin/sleep", &program).unwrap();
    let server = Server::new();
    let pairs: Vec<Pair> = (0..3).map(|_| server.pair()).collect();
    let child = {
        let (first, rest) = pairs.split_first().unwrap();
        let [second, third] = rest else { unreachable!() };
        let mut command = Command::new(&program);
        command.arg("1000").stdout(Stdio::from(stage::owned(&second.server)));
        command.stderr(Stdio::from(stage::owned(&third.server)));
        Child::holding(&mut command, &first.server)
    };
    // The child alone holds them.
    let _clients: Vec<_> = pairs.into_iter().map(|pair| pair.client).collect();
    let labels = [("comm", &*name), ("unit", ""), ("container_id", ""), ("uid", "")];
    let what = "tcpclose_stuck_owner_sockets";
    agent.metrics_when(PATIENCE, "3 sockets of the child", |metrics| {
        metrics.select(what, &labels).map(|(_, n)| n).collect::<Vec<_>>() == [3.0]
    });
    assert!(!off.metrics().has(what, &[]));
    drop(child);
    agent.metrics_when(PATIENCE, "none of the child", |metrics| !metrics.has(what, &[("comm", &*name)]));
}
