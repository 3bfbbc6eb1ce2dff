//! MPTCP: the connection's end is on the MPTCP socket, while its subflow stays ESTABLISHED.

use crate::common;
use crate::namespaces::named::Named;

use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, BINARY, free_port};
use socket2::{Domain, Protocol, Socket, Type};
use tcpclose::names::{Diagnosis, Phase, Side};
use tcpclose::report::sockets::{SocketsDocument, StuckSocket};

const PATIENCE: Duration = Duration::from_secs(60);

fn connected(listener: &Socket, to: SocketAddr, protocol: Protocol) -> (Socket, Socket) {
    let client = Socket::new(Domain::IPV4, Type::STREAM, Some(protocol)).unwrap();
    client.connect(&to.into()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// The sockets that `output`, of `tcpclose stuck --json`, lists.
fn listed(output: &Output) -> Vec<StuckSocket> {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice::<SocketsDocument>(&output.stdout).unwrap().sockets
}

fn check(who: &str, sockets: &[StuckSocket], (of_mptcp, of_tcp): (&Socket, &Socket)) {
    assert_eq!(sockets.len(), 2, "{who}: {sockets:?}");
    for (held, is_mptcp) in [(of_mptcp, true), (of_tcp, false)] {
        let socket = sockets.iter().find(|socket| socket.mptcp == is_mptcp).unwrap();
        // No counter of an MPTCP socket proves its side.
        let side = if is_mptcp { Side::Unknown } else { Side::Server };
        assert_eq!((socket.state, socket.side), (Phase::CloseWait, side), "{who}");
        assert_eq!(socket.peer, held.peer_addr().unwrap().as_socket().unwrap(), "{who}");
        let owners: Vec<(u32, u32)> = socket.owners.iter().map(|owner| (owner.pid, owner.fd)).collect();
        assert_eq!(owners, [(std::process::id(), held.as_raw_fd() as u32)], "{who}");
    }
}

/// An MPTCP listener at `at`; `None`, said as skipped, where this kernel has no MPTCP.
fn listener(netns: &Named, at: SocketAddr) -> Option<Socket> {
    let made = netns.inside(|| {
        let listener = match Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)) {
            // CONFIG_MPTCP, or the sysctl net.mptcp.enabled.
            Err(why) if matches!(why.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::ENOPROTOOPT)) => {
                return None;
            }
            listener => listener.unwrap(),
        };
        listener.bind(&at.into()).unwrap();
        listener.listen(8).unwrap();
        Some(listener)
    });
    if made.is_none() {
        println!("SKIPPED: this kernel has no MPTCP");
    }
    made
}

/// The program closes a while after its peer: the time between is one sample, and none of the subflows', which are told to close
/// after that.
#[test]
#[ignore = "needs root"]
fn the_time_until_the_program_closes_is_measured_once() {
    let port = free_port();
    let netns = Named::new("mptcp-time");
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Some(listener) = listener(&netns, at) else { return };
    let name = port.to_string();
    let agents = Agent::on_each_hook(&["--name-port", &name]);
    let (client, server) = netns.inside(|| connected(&listener, at, Protocol::MPTCP));
    let before = Instant::now();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.recv(&mut [std::mem::MaybeUninit::uninit(); 16]).unwrap(), 0);
    let entered = Instant::now();
    sleep(Duration::from_millis(80));
    let least = entered.elapsed().as_secs_f64();
    drop(server);
    let most = before.elapsed().as_secs_f64();
    drop(client);
    let labels = [("port", name.as_str()), ("state", "close_wait")];
    let closed = [("port", name.as_str())];
    for (hook, agent) in &agents {
        // Both subflows have ended, whatever they did.
        let metrics = agent.metrics_when(PATIENCE, "both ends have closed", |metrics| {
            metrics.sum("tcpclose_closes_total", &closed) == 2.0
        });
        let samples = metrics.sum("tcpclose_state_duration_seconds_count", &labels);
        let sum = metrics.sum("tcpclose_state_duration_seconds_sum", &labels);
        assert_eq!(samples, 1.0, "{hook}: {sum} s");
        assert!((least..=most).contains(&sum), "{hook}: {sum} s, and it was {least} s to {most} s");
    }
    netns.delete();
}

/// Its peer knows only TCP: then the subflow is in CLOSE-WAIT as well, and proves the side.
#[test]
#[ignore = "needs root"]
fn a_connection_that_fell_back_to_tcp_is_counted_once() {
    let port = free_port();
    let netns = Named::new("mptcp-tcp");
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    if listener(&netns, SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))).is_none() {
        return;
    }
    let name = port.to_string();
    let agents =
        Agent::on_each_hook(&["--stuck-after=1s,1h", "--reconcile-interval=1s", "--name-port", &name]);
    let (client, server) = netns.inside(|| {
        let listener = TcpListener::bind(at).unwrap();
        let client = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).unwrap();
        client.connect(&at.into()).unwrap();
        (client, listener.accept().unwrap().0)
    });
    server.shutdown(Shutdown::Write).unwrap();
    let (stuck, standing) = ([("port", name.as_str())], [("port", name.as_str()), ("state", "close_wait")]);
    let is_ours = |socket: &StuckSocket| {
        let pids: Vec<u32> = socket.owners.iter().map(|owner| owner.pid).collect();
        (socket.mptcp, socket.side, pids) == (true, Side::Client, vec![std::process::id()])
    };
    let arguments = ["--json", "--older-than", "1s", "--port", &name];
    for (hook, agent) in &agents {
        let metrics = agent.metrics_when(PATIENCE, "it is stuck", |metrics| {
            metrics.sum("tcpclose_stuck_sockets", &stuck) > 0.0
        });
        assert_eq!(metrics.sum("tcpclose_stuck_sockets", &stuck), 1.0, "{hook}");
        assert_eq!(metrics.sum("tcpclose_sockets", &standing), 1.0, "{hook}");
        let sockets = listed(&agent.stuck(&arguments));
        assert!(matches!(&sockets[..], [socket] if is_ours(socket)), "{hook}: {sockets:?}");
    }
    let snapshot = Command::new(BINARY).args(["stuck", "--no-agent"]).args(arguments).output().unwrap();
    let sockets = listed(&snapshot);
    assert!(matches!(&sockets[..], [socket] if is_ours(socket)), "snapshot: {sockets:?}");
    drop((client, server));
    netns.delete();
}

#[test]
#[ignore = "needs root"]
fn a_leaked_mptcp_connection_is_stuck_and_counted_once() {
    let port = free_port();
    let netns = Named::new("mptcp");
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Some(listener) = listener(&netns, at) else { return };
    let name = port.to_string();
    let agents =
        Agent::on_each_hook(&["--stuck-after=1s,1h", "--reconcile-interval=1s", "--name-port", &name]);
    let (leak, plain) =
        netns.inside(|| (connected(&listener, at, Protocol::MPTCP), connected(&listener, at, Protocol::TCP)));
    for (client, _) in [&leak, &plain] {
        client.send(b"hello").unwrap();
    }
    for (client, _) in [&leak, &plain] {
        client.shutdown(Shutdown::Write).unwrap();
    }
    let arguments = ["--json", "--older-than", "1s", "--port", &name];
    let labels = [("port", name.as_str())];
    for (hook, agent) in &agents {
        let both = agent.metrics_when(PATIENCE, "both are stuck", |metrics| {
            metrics.sum("tcpclose_stuck_sockets", &labels) == 2.0
        });
        let waiting = [labels[0], ("state", "close_wait")];
        assert_eq!(both.sum("tcpclose_sockets", &waiting), 2.0, "{hook}");
        let sockets = listed(&agent.stuck(&arguments));
        check(hook, &sockets, (&leak.1, &plain.1));
        assert!(sockets.iter().all(|socket| socket.diagnosis == Some(Diagnosis::NotRead)), "{sockets:?}");
    }
    let snapshot = Command::new(BINARY).args(["stuck", "--no-agent"]).args(arguments).output().unwrap();
    check("snapshot", &listed(&snapshot), (&leak.1, &plain.1));
    // What the program reads, it has read; whether it has read the end is not told.
    let mut data = [std::mem::MaybeUninit::uninit(); 16];
    assert_eq!(leak.1.recv(&mut data).unwrap(), 5);
    for (hook, agent) in &agents {
        let sockets = listed(&agent.stuck(&arguments));
        let socket = sockets.iter().find(|socket| socket.mptcp).unwrap();
        assert_eq!(socket.diagnosis, Some(Diagnosis::Unknown), "{hook}");
    }
    drop((leak, plain));
    for (_, agent) in &agents {
        agent.metrics_when(PATIENCE, "none is left", |metrics| {
            metrics.sum("tcpclose_stuck_sockets", &labels) == 0.0
        });
    }
    netns.delete();
}
