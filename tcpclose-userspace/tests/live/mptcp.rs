//! MPTCP: the connection's end is on the MPTCP socket, while its subflow stays ESTABLISHED.

use crate::common;
use crate::namespaces::named::Named;

use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::process::{Command, Output};
use std::time::Duration;

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

#[test]
#[ignore = "needs root"]
fn a_leaked_mptcp_connection_is_stuck_and_counted_once() {
    let port = free_port();
    let netns = Named::new("mptcp");
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let made = netns.inside(|| {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).ok()?;
        listener.bind(&at.into()).unwrap();
        listener.listen(8).unwrap();
        Some(listener)
    });
    let Some(listener) = made else {
        println!("SKIPPED: this kernel has no MPTCP");
        return;
    };
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
