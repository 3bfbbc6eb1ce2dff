//! The limits of the host's network namespace, of containers', and of those that ordinary users make are told apart: a user who
//! fills the tables of a namespace of their own changes nothing that is said of the host's.

use crate::common;
use crate::namespaces::named;
use crate::stale::{self, Tenant};

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use common::{Agent, Metrics};
use named::{Named, enter};
use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;
use socket2::{Domain, Socket, Type};

/// The TIME-WAITs first, which last a minute.
const LIMITS: [&str; 3] = [
    "tcpclose_time_wait_limit_used_ratio",
    "tcpclose_ephemeral_ports_used_ratio",
    "tcpclose_ephemeral_ports_blocked_ratio",
];

/// Ports 20000 to 20005 (of an odd number one attempt of connect() skips one), four TIME-WAITs.
const NARROW: &str = "echo 20000 20005 >/proc/sys/net/ipv4/ip_local_port_range\n\
                      echo 4 >/proc/sys/net/ipv4/tcp_max_tw_buckets";

/// In the namespace at `file`, as `user`: all of six ports in use towards one address, and all of four TIME-WAITs.
fn fill(file: PathBuf, user: u32) -> Vec<(TcpStream, TcpStream)> {
    std::thread::scope(|scope| {
        let filling = scope.spawn(move || {
            enter(&file);
            let user = Uid::from_raw(user);
            // This thread alone; with another user than root its capabilities go.
            set_thread_res_uid(user, user, user).unwrap();
            let listeners = [8080, 8081].map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap());
            let connect = |listener: &TcpListener| {
                let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                (client, listener.accept().unwrap().0)
            };
            for nth in 1..=4 {
                // The server closes first: the TIME-WAITs have no port of the range. Each is of another client's address, so
                // that no later connection takes its place.
                let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                client.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 1, nth), 0)).into()).unwrap();
                client.connect(&listeners[0].local_addr().unwrap().into()).unwrap();
                drop(listeners[0].accept().unwrap());
                assert_eq!((&client).read(&mut [0]).unwrap(), 0);
            }
            let open: Vec<_> = (0..6).map(|_| connect(&listeners[1])).collect();
            let error = TcpStream::connect(listeners[1].local_addr().unwrap()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
            open
        });
        filling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn of(metrics: &Metrics, family: &str, owner: &str) -> Option<f64> {
    metrics.has(family, &[("netns_owner", owner)]).then(|| metrics.sum(family, &[("netns_owner", owner)]))
}

/// Waits until each limit of `owner`'s namespace is used up, and the host's is not.
fn check(agent: &Agent, owner: &str) {
    for family in LIMITS {
        let metrics = agent
            .metrics_when(Duration::from_secs(60), family, |metrics| of(metrics, family, owner) == Some(1.0));
        // Other tests make sockets in the host's namespace, but none that fill it.
        let host = of(&metrics, family, "host").expect(family);
        assert!(host < 1.0, "{family} of the host: {host}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_user_fills_a_namespace_of_their_own_and_the_hosts_is_not_called_full() {
    let script = format!("set -e\nip link set lo up\n{NARROW}");
    let Some(tenant) = Tenant::start(&["--net"], &script) else { return };
    let agent = Agent::start(&[]);
    let _open = fill(format!("/proc/{}/ns/net", tenant.pid()).into(), stale::USER);
    check(&agent, "user");
}

#[test]
#[ignore = "needs root"]
fn a_namespace_that_root_made_is_a_containers() {
    let container = Named::new("container");
    container.inside(|| {
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "20000 20005").unwrap();
        fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "4").unwrap();
    });
    let agent = Agent::start(&[]);
    let _open = fill(container.file(), 0);
    check(&agent, "container");
}
