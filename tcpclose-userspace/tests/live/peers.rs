//! The local peer of a socket, whatever address of the host's, and whatever device, the two have between them. Each question is
//! put to an agent on either backend, which begins after the connections, and to a snapshot.

use std::net::{Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::common::free_port;
use crate::namespaces::named::{Named, ip};
use crate::owners::stage;
use crate::owners::stage::Askers;
use socket2::{Domain, Socket, Type};
use tcpclose::linux::sock_diag;
use tcpclose_common::state::TcpState;

const PATIENCE: Duration = Duration::from_secs(30);

/// A client that is bound to `from`, and to a device if one is given, and the server's end: the client has sent its FIN.
fn half_closed(listener: &TcpListener, from: SocketAddr, to: SocketAddr) -> (TcpStream, TcpStream) {
    let client = Socket::new(Domain::for_address(from), Type::STREAM, None).unwrap();
    client.bind(&from.into()).unwrap();
    client.connect(&to.into()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    (client.into(), listener.accept().unwrap().0)
}

fn listen(at: SocketAddr, device: Option<&str>) -> TcpListener {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
    socket.bind_device(device.map(str::as_bytes)).unwrap();
    socket.bind(&at.into()).unwrap();
    socket.listen(128).unwrap();
    socket.into()
}

/// Waits until `number` of this namespace's sockets are in either state.
fn settled(number: usize) {
    let count = |state: TcpState| sock_diag::dump(state.bit(), false).unwrap().sockets.len();
    let until = Instant::now() + PATIENCE;
    while [TcpState::CloseWait, TcpState::FinWait2].map(count) != [number; 2] {
        assert!(Instant::now() < until, "no {number} half-closed connections");
    }
}

/// Asserts that each end's peer is named: the descriptors of both.
fn expect(askers: &Askers, what: &str, port: u16, pairs: &[(TcpStream, TcpStream)]) {
    let own = std::process::id();
    let port = port.to_string();
    let fd = |stream: &TcpStream| (own, stream.as_raw_fd() as u32);
    for state in ["close_wait", "fin_wait_2"] {
        for (asker, document) in askers.ask_with(&["--state", state, "--older-than", "0s", "--port", &port]) {
            assert_eq!(document.sockets.len(), pairs.len(), "{what}, {asker}, {state}: {document:?}");
            for socket in &document.sockets {
                let owners = stage::holders(&socket.owners);
                let (client, server) = pairs
                    .iter()
                    .find(|(client, server)| [vec![fd(client)], vec![fd(server)]].contains(&owners))
                    .unwrap_or_else(|| panic!("{what}, {asker}, {state}: {socket:?}"));
                let other = if state == "close_wait" { client } else { server };
                assert_eq!(stage::holders(&socket.peer_owners), [fd(other)], "{what}, {asker}: {socket:?}");
            }
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_peer_on_another_address_of_the_host_is_named() {
    let netns = Named::new("addresses");
    for address in ["10.46.0.1/24", "10.46.0.2/24", "2001:db8::1/64", "2001:db8::2/64"] {
        ip(&["-n", &netns.name, "addr", "add", address, "dev", "lo"]);
    }
    // A whole range that is the host's, with no address of it on an interface.
    ip(&["-n", &netns.name, "route", "add", "local", "192.0.2.0/24", "dev", "lo"]);
    let ends = [
        ("10.46.0.1:0", "10.46.0.2:0"),
        ("[2001:db8::1]:0", "[2001:db8::2]:0"),
        ("192.0.2.9:0", "192.0.2.7:0"),
        ("10.46.0.1:0", "127.0.0.1:0"),
    ];
    let scenes: Vec<_> = ends
        .into_iter()
        .enumerate()
        .map(|(before, (from, to))| {
            let port = free_port();
            let mut to: SocketAddr = to.parse().unwrap();
            to.set_port(port);
            let (listener, pair) = netns.inside(|| {
                let listener = listen(to, None);
                let pair = half_closed(&listener, from.parse().unwrap(), to);
                settled(before + 1);
                (listener, pair)
            });
            (from, port, [pair], listener)
        })
        .collect();
    let askers = Askers::start();
    for (from, port, pairs, _listener) in &scenes {
        expect(&askers, from, *port, pairs);
    }
}

/// Both ends of a link-local connection are bound to its interface.
#[test]
#[ignore = "needs root"]
fn a_link_local_peer_is_named() {
    // One is looked up, many are dumped.
    let scenes = [1, 100].map(|number| {
        let netns = Named::new(&format!("linklocal{number}"));
        ip(&["-n", &netns.name, "link", "add", "d0", "type", "veth", "peer", "name", "d1"]);
        for device in ["d1", "d0"] {
            ip(&["-n", &netns.name, "link", "set", device, "up"]);
        }
        for address in ["fe80::a/64", "fe80::b/64"] {
            ip(&["-n", &netns.name, "addr", "add", address, "dev", "d0", "nodad"]);
        }
        let port = free_port();
        let (listener, pairs) = netns.inside(|| {
            let family = rustix::net::AddressFamily::INET;
            let any = rustix::net::socket(family, rustix::net::SocketType::DGRAM, None).unwrap();
            let index = rustix::net::netdevice::name_to_index(any, "d0").unwrap();
            let scoped = |address: &str, port| {
                let address: Ipv6Addr = address.parse().unwrap();
                SocketAddr::from(SocketAddrV6::new(address, port, 0, index))
            };
            let listener = listen((Ipv6Addr::UNSPECIFIED, port).into(), None);
            let pairs: Vec<_> = (0..number)
                .map(|_| half_closed(&listener, scoped("fe80::a", 0), scoped("fe80::b", port)))
                .collect();
            settled(number);
            (listener, pairs)
        });
        (netns, port, pairs, listener)
    });
    let askers = Askers::start();
    for (netns, port, pairs, _listener) in &scenes {
        expect(&askers, &netns.name, *port, pairs);
    }
}

/// Of a connection within the host one end may be bound to the loopback, and the other to nothing.
#[test]
#[ignore = "needs root"]
fn a_peer_that_is_bound_to_a_device_is_named() {
    let netns = Named::new("bound");
    let port = free_port();
    let (_listener, pair) = netns.inside(|| {
        let to: SocketAddr = ([127, 0, 0, 1], port).into();
        let listener = listen(to, Some("lo"));
        let pair = half_closed(&listener, ([127, 0, 0, 1], 0).into(), to);
        settled(1);
        (listener, pair)
    });
    expect(&Askers::start(), "bound to lo", port, &[pair]);
}
