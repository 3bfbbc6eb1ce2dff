//! Closes that look like others: in repair mode, which ends no connection, and with an error that something
//! else has left in the socket, which is no reset. Each connection counts once, with its own outcome.

use crate::common::apart::{
    CLOSE_WAIT, PATIENCE, RECV_QUEUE, SEND_QUEUE, TCP_QUEUE_SEQ, TCP_REPAIR, TCP_REPAIR_QUEUE, apart, get,
    listener, restored, set, until_state,
};
use crate::common::bpf::instruction;
use crate::common::{Agent, Metrics, bpf, free_port, is_lacking};

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

const FIN_WAIT_2: u8 = 5;
const CLOSE: u8 = 7;

/// Each follows minisockets by dumps: no hook on them says what became of a socket.
fn agents() -> Vec<(&'static str, Agent)> {
    Agent::on_each_hook(&["--time-wait", "diag", "--dump-interval", "250ms"])
}

type Closes = BTreeMap<(String, String), f64>;

/// The closes at `port`, by side and outcome.
fn closes(metrics: &Metrics, port: u16) -> Closes {
    let mut closes = Closes::new();
    for (labels, n) in metrics.select("tcpclose_closes_total", &[("port", &port.to_string())]) {
        *closes.entry((labels["side"].clone(), labels["outcome"].clone())).or_default() += n;
    }
    closes
}

/// Waits until `agent` has as many closes at `port` as `expected`, and for what would be counted twice; they
/// must be those.
fn assert_closes(hook: &str, agent: &Agent, port: u16, expected: &[(&str, &str, f64)]) {
    let total: f64 = expected.iter().map(|(_, _, n)| n).sum();
    let what = format!("{hook}: {expected:?}");
    agent.metrics_when(PATIENCE, &what, |metrics| closes(metrics, port).values().sum::<f64>() >= total);
    // A minisocket that is taken for another connection's is found by the next dump.
    sleep(Duration::from_secs(1));
    let expected = expected.iter().map(|(side, how, n)| ((side.to_string(), how.to_string()), *n)).collect();
    assert_eq!(closes(&agent.metrics(), port), expected, "{hook}");
}

/// A connection to `listener`: the accepted end, then the client's.
fn connected(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0, client)
}

/// Whether an error waits in the socket, without taking it away as SO_ERROR does.
fn has_error(socket: &impl AsRawFd) -> bool {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one pollfd, which lives for the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) };
    poll.revents & libc::POLLERR != 0
}

fn until_error(socket: &impl AsRawFd) {
    let until = Instant::now() + PATIENCE;
    while !has_error(socket) {
        assert!(Instant::now() < until, "no error is left in the socket");
        sleep(Duration::from_millis(1));
    }
}

/// The server's end moves: it is closed in repair mode and restored. Only its later close counts.
#[test]
#[ignore = "needs root"]
fn a_close_in_repair_mode_ends_no_connection() {
    let agents = agents();
    let port = free_port();
    apart(|| {
        let listener = listener(port, 128);
        let (server, client) = connected(&listener);
        let chance = client.local_addr().unwrap().port();
        let server = socket2::Socket::from(server);
        set(&server, TCP_REPAIR, 1);
        let number = |queue| {
            set(&server, TCP_REPAIR_QUEUE, queue);
            get(&server, TCP_QUEUE_SEQ)
        };
        let numbers = (number(SEND_QUEUE), number(RECV_QUEUE));
        drop(server);
        let moved = restored((port, chance), numbers, b"");
        set(&moved, TCP_REPAIR, 0);
        let (mut moved, mut client) = (TcpStream::from(moved), client);
        // It goes on.
        client.write_all(b"still there?").unwrap();
        moved.read_exact(&mut [0; 12]).unwrap();
        moved.write_all(b"yes").unwrap();
        client.read_exact(&mut [0; 3]).unwrap();
        // And a leak that moves is no close either.
        client.shutdown(Shutdown::Write).unwrap();
        until_state(&moved, CLOSE_WAIT);
        drop(moved);
        drop(client);
        for (hook, agent) in &agents {
            let closed = |metrics: &Metrics| closes(metrics, port).values().sum::<f64>() == 2.0;
            let metrics = agent.metrics_when(PATIENCE, &format!("{hook}: both ends close"), closed);
            let total = closes(&metrics, port);
            assert!(total.iter().all(|((_, outcome), _)| outcome == "graceful"), "{hook}: {total:?}");
            // The step to CLOSED is one that the kernel counts, too.
            let steps = [("from", "established"), ("to", "closed")];
            assert!(metrics.sum("tcpclose_transitions_total", &steps) >= 1.0, "{hook}");
        }
    });
}

/// What is sent to a socket by a sockmap after it has shut down its direction leaves EPIPE there
/// (sk_psock_report_error()). The peer's FIN meets the full socket, and the minisocket of one that the program
/// has closed.
#[test]
#[ignore = "needs root"]
fn an_error_that_a_sockmap_leaves_is_no_reset() {
    // A verdict without a parser, since 5.13.
    if is_lacking("sockmap") {
        return;
    }
    let agents = agents();
    let (port, orphans) = (free_port(), free_port());
    apart(|| {
        for port in [port, orphans] {
            let listener = listener(port, 128);
            let (target, target_peer) = connected(&listener);
            let (source, mut source_peer) = connected(&listener);
            let map = redirect_to_first();
            bpf::insert(&map, 0, &target);
            bpf::insert(&map, 1, &source);
            target.shutdown(Shutdown::Write).unwrap();
            until_state(&target, FIN_WAIT_2);
            source_peer.write_all(b"too late").unwrap();
            until_error(&target);
            if port == orphans {
                drop(target);
                // For a dump to find its minisocket.
                sleep(Duration::from_secs(1));
                drop(target_peer);
            } else {
                drop(target_peer);
                until_state(&target, CLOSE);
            }
            // The other connection is closed by its client, and not before the agents have told of this one.
            for (hook, agent) in &agents {
                let graceful = [("server", "graceful", 1.0), ("client", "graceful", 1.0)];
                assert_closes(hook, agent, port, &graceful);
            }
            drop((map, source, source_peer));
        }
    });
}

/// Garbage leaves EBADMSG in the socket of a reader with kTLS (tls_err_abort()).
#[test]
#[ignore = "needs root"]
fn guest_an_error_that_ktls_leaves_is_no_reset() {
    let kernel_has_tls = || {
        // Only an established connection takes it.
        let (_server, client) = connected(&TcpListener::bind(("127.0.0.1", 0)).unwrap());
        ktls::attach(&client).is_ok()
    };
    if !kernel_has_tls() {
        if !is_lacking("ktls") {
            eprintln!("\nSKIPPED: this kernel has no kTLS (CONFIG_TLS, module tls)\n");
        }
        return;
    }
    let agents = agents();
    let port = free_port();
    apart(|| {
        let listener = listener(port, 128);
        let (mut server, mut client) = connected(&listener);
        ktls::attach(&client).unwrap();
        ktls::receive(&client);
        // A record of application data that no key has made.
        let record = [&[23, 3, 3, 0, 32][..], &[0; 32]].concat();
        server.write_all(&record).unwrap();
        assert!(client.read(&mut [0; 64]).is_err());
        until_error(&client);
        client.shutdown(Shutdown::Write).unwrap();
        until_state(&client, FIN_WAIT_2);
        drop(server);
        for (hook, agent) in &agents {
            assert_closes(hook, agent, port, &[("server", "graceful", 1.0), ("client", "graceful", 1.0)]);
        }
        drop(client);
    });
}

/// A map of two sockets: what each receives is sent by the first one.
fn redirect_to_first() -> OwnedFd {
    /// BPF_PROG_TYPE_SK_SKB, BPF_SK_SKB_STREAM_VERDICT and bpf_sk_redirect_map of include/uapi/linux/bpf.h.
    const SK_SKB: u32 = 14;
    const STREAM_VERDICT: u32 = 5;
    const SK_REDIRECT_MAP: i32 = 52;
    let map = bpf::sockmap(2);
    let program = [
        // r2 = map; r3 = 0; r4 = 0; call; exit
        instruction(0x18, 2, 1, 0, map.as_raw_fd()),
        instruction(0, 0, 0, 0, 0),
        instruction(0xb7, 3, 0, 0, 0),
        instruction(0xb7, 4, 0, 0, 0),
        instruction(0x85, 0, 0, 0, SK_REDIRECT_MAP),
        instruction(0x95, 0, 0, 0, 0),
    ];
    bpf::attach(&map, &bpf::program(SK_SKB, &program, 0), STREAM_VERDICT);
    map
}

/// TLS in the kernel, with a key of zeros.
mod ktls {
    use super::*;

    const TCP_ULP: libc::c_int = 31;
    const SOL_TLS: libc::c_int = 282;
    const TLS_RX: libc::c_int = 2;

    fn set(socket: &TcpStream, level: libc::c_int, option: libc::c_int, value: &[u8]) -> io::Result<()> {
        // SAFETY: the value lives for the call and has that length.
        let done = unsafe {
            libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), value.len() as u32)
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub fn attach(socket: &TcpStream) -> io::Result<()> {
        set(socket, libc::IPPROTO_TCP, TCP_ULP, b"tls")
    }

    /// struct tls12_crypto_info_aes_gcm_128: TLS 1.2, cipher 51, then iv, key, salt and sequence number.
    pub fn receive(socket: &TcpStream) {
        let mut info = [0; 40];
        info[..2].copy_from_slice(&0x0303u16.to_ne_bytes());
        info[2..4].copy_from_slice(&51u16.to_ne_bytes());
        set(socket, SOL_TLS, TLS_RX, &info).unwrap();
    }
}
