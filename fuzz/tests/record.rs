//! Records seeds for the corpus from this host: `cargo test -p tcpclose-fuzz --test record -- --ignored`, as root.
//! What `cargo xtask fuzz --keep` then leaves of them is what goes ways that nothing else goes.

#![expect(
    clippy::unwrap_used,
    reason = "clippy's leave for tests does not reach helpers of an integration test"
)]

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use tcpclose::probe::{Builder, StateHook};
use tcpclose_common::event::Record;
use tcpclose_fuzz::targets::records::encode;

fn seed(target: &str, name: &str, bytes: &[u8]) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), bytes).unwrap();
}

/// Connections that end in some ways; those that are left are in CLOSE-WAIT and FIN-WAIT-2.
fn closes() -> Vec<(TcpStream, TcpStream)> {
    let listeners = [
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
        TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap(),
    ];
    let mut left = Vec::new();
    for nth in 0..10 {
        let listener = &listeners[nth % 2];
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut server = listener.accept().unwrap().0;
        match nth / 2 {
            0 => {
                drop(server);
                client.read_to_end(&mut Vec::new()).unwrap();
            }
            1 => {
                client.shutdown(Shutdown::Write).unwrap();
                server.read_to_end(&mut Vec::new()).unwrap();
                drop(server);
            }
            2 => {
                linger_0(&client);
                drop(client);
                assert!(server.read(&mut [0]).is_err());
            }
            _ => {
                client.shutdown(Shutdown::Write).unwrap();
                left.push((client, server));
            }
        }
    }
    left
}

fn linger_0(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
#[ignore = "writes seeds into the corpus"]
fn records() {
    for (name, hook, backend) in
        [("real-btf", StateHook::Btf, 3u8), ("real-tracepoint", StateHook::Tracepoint, 2)]
    {
        let mut probe = Builder {
            stacks: false,
            state: Some(hook),
            time_wait: None,
            owners: None,
            ring_size: 1 << 20,
            log_level: log::LevelFilter::Off,
        }
        .attach()
        .unwrap();
        let left = closes();
        sleep(Duration::from_millis(200));
        drop(left);
        let mut bytes = vec![backend];
        probe.ring.drain(|record: &Record| {
            let record = encode(record);
            bytes.push(record.len() as u8);
            bytes.extend(record);
        });
        bytes.truncate(8 << 10);
        seed("records", name, &bytes);
    }
}

/// `TCPDIAG_GETSOCK` for the states in `states`, as `kernel::sock_diag` asks.
fn datagrams(states: u32, info: u8) -> Vec<Vec<u8>> {
    let mut request = vec![0; 76];
    request[0..4].copy_from_slice(&76u32.to_ne_bytes());
    request[4..6].copy_from_slice(&18u16.to_ne_bytes());
    request[6..8].copy_from_slice(&0x301u16.to_ne_bytes());
    request[8..12].copy_from_slice(&1u32.to_ne_bytes());
    request[19] = info;
    request[68..72].copy_from_slice(&states.to_ne_bytes());
    let netlink = Socket::new(NETLINK_SOCK_DIAG).unwrap();
    netlink.connect(&SocketAddr::new(0, 0)).unwrap();
    netlink.send(&request, 0).unwrap();
    let mut all = Vec::new();
    loop {
        let (datagram, _) = netlink.recv_from_full().unwrap();
        let done = datagram.get(4..6) == Some(&3u16.to_ne_bytes()[..]);
        all.push(datagram);
        if done {
            return all;
        }
    }
}

#[test]
#[ignore = "writes seeds into the corpus"]
fn dumps() {
    let left = closes();
    // The ACK of a FIN may be delayed.
    sleep(Duration::from_millis(200));
    const CLOSE_WAIT: u32 = 1 << 8;
    const FIN_WAIT_2: u32 = 1 << 5;
    const LISTEN: u32 = 1 << 10;
    const TIME_WAIT: u32 = 1 << 6;
    for (name, states, info) in [
        ("real-close-wait", CLOSE_WAIT, 2),
        ("real-fin-wait-2", FIN_WAIT_2, 2),
        ("real-time-wait", TIME_WAIT, 0),
        ("real-listen", LISTEN, 0),
    ] {
        let mut bytes = 100_000u32.to_be_bytes().to_vec();
        bytes.extend(datagrams(states, info).concat());
        // Where it is cut, a message is torn.
        bytes.truncate(3000);
        seed("sock_diag", name, &bytes);
    }
    drop(left);
}
