use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use tcpclose_common::state::TcpState;

use crate::linux::host::monotonic_ns;
use crate::linux::sock_diag::connection::status;
use crate::linux::sock_diag::dump::refused;
use crate::linux::sock_diag::socket::{MESSAGE, cookie_words};
use crate::linux::sock_diag::*;
use crate::names::{Flow, Opening};

/// What Linux 6.18 (little-endian, CONFIG_HZ=250) answered for `127.0.0.1:40147←127.0.0.1:37058`: 5 bytes and the
/// FIN received, 3 bytes read. The zeros at the end of
/// INET_DIAG_INFO and the attributes after it are left out.
const CLOSE_WAIT: &str = "020800009cd390c27f0000010000000000000000000000007f0000010000000000000000000000000000000004000000\
    0000000000000000030000000000000000000000fa590000050008000100000008000f00000000000c00150001000000\
    0000000006001600120000001c010200080000000007aa01e01c0300409c000000800000180200000000000000000000\
    00000000000000000000000024050000000000002405000024050000ffff0000cbff00000f00000008000000ffffff7f\
    0b000000cbff00000300000000000000cbff000000000000f08660d30c000000ffffffffffffffff0200000000000000\
    0600000000000000030000000500000000000000040000000100000001000000000048e8010000000000000000000000\
    000000000000000000000000000000000200000000000000020000000000000000000000000000000000000000000000\
    0000000000000100000001";

/// The start of the answer for a v4-mapped child of a listener on `[::]`.
const V4_MAPPED: &str = "0a080000b6e5d9e000000000000000000000ffff7f00000100000000000000000000ffff7f00000100000000\
    0a0000000000000000000000030000000000000000000000115a0000";

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn close_wait() -> Vec<u8> {
    let mut bytes = unhex(CLOSE_WAIT);
    bytes.resize(108 + 284, 0);
    bytes
}

#[test]
#[cfg(target_endian = "little")]
fn decodes_what_a_kernel_sent() {
    let socket = decode(&close_wait()).unwrap();
    let age = 1316 * 1_000_000;
    let expected = Socket {
        state: TcpState::CloseWait,
        minisocket: false,
        flow: Flow::new("127.0.0.1:40147".parse().unwrap(), "127.0.0.1:37058".parse().unwrap()),
        interface: 0,
        cookie: 4,
        timer: None,
        expires_ns: None,
        inode: 23034,
        uid: 0,
        unread: 3,
        unsent: 0,
        times: Some(Times {
            last_sent_ns: age,
            last_data_received_ns: age,
            last_ack_received_ns: age,
            sending: Some(Sending { written: 2, all_sent: true, busy_ms: 0, repeating_ms: 0 }),
        }),
        retries: Some(Retries { timeouts: 0, again: 0, window: Some(65536) }),
        transparent: Some(false),
        v6_only: false,
        opening: Opening::NotConnected,
        mptcp: None,
        seen_ns: 0,
        window_ns: 0,
    };
    assert_eq!(socket, expected);
    // INET_DIAG_SOCKOPT's first byte.
    let mut transparent = close_wait();
    transparent[104] |= 1 << 5;
    assert_eq!(decode(&transparent), Some(Socket { transparent: Some(true), ..expected }));

    let mut mapped = unhex(V4_MAPPED);
    let socket = decode(&mapped).unwrap();
    assert_eq!(
        socket.flow,
        Flow::new("127.0.0.1:46821".parse().unwrap(), "127.0.0.1:55776".parse().unwrap())
    );
    assert_eq!((socket.cookie, socket.inode, socket.times), (10, 23057, None));

    // A minisocket: timer 3 with 59.9 s left, substate FIN-WAIT-2, a cookie of two words.
    (mapped[1], mapped[2]) = (5, 3);
    mapped[48..52].copy_from_slice(&7u32.to_ne_bytes());
    mapped[52..56].copy_from_slice(&59_900u32.to_ne_bytes());
    let socket = decode(&mapped).unwrap();
    assert!(socket.minisocket && socket.state == TcpState::FinWait2);
    assert_eq!((socket.expires_ns, socket.cookie), (Some(59_900_000_000), 7 << 32 | 10));
    assert_eq!(socket.timer, Some(Timer::TimeWait));
    assert_eq!(u64::from_ne_bytes(cookie_words(7 << 32 | 10)), 7 << 32 | 10);
}

#[test]
#[cfg(target_endian = "little")]
fn what_is_sent_again_is_distinguished_from_what_was_written() {
    // Where the payload of INET_DIAG_INFO begins.
    const INFO: usize = 108 + 4;
    let with = |fields: &[(usize, u32)]| {
        let mut bytes = close_wait();
        // Five timeouts, the timer doubled as often; one segment unacknowledged, lost, sent again, and room for no other.
        bytes[INFO + 2] = 5;
        bytes[INFO + 4] = 5;
        let vanished = [(8, 6_400_000), (24, 1), (32, 1), (36, 1), (80, 1), (44, 100), (56, 9000)];
        for &(at, word) in vanished.iter().chain(fields) {
            bytes[INFO + at..INFO + at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        decode(&bytes).unwrap().times.unwrap().sending.unwrap()
    };
    // Sent at 0 s, and again at 0.2, 0.6, 1.4, 3.0 and 6.2 s: 6 s lie between the timeouts.
    assert_eq!(with(&[]).repeating_ms, 6000);
    // Since 6.7 the kernel says so itself: one recovery, for 6,095 ms.
    assert_eq!(with(&[(240, 5 | 1 << 16), (244, 6125)]).repeating_ms, 6025);
    assert_eq!(
        with(&[(240, 9 | 2 << 16), (244, 60_000)]).repeating_ms,
        6000,
        "an earlier loss is counted too"
    );
    // An acknowledgment came in between; there was room for more; more waits; nothing is on its way.
    assert_eq!(with(&[(56, 5000)]).repeating_ms, 0);
    assert_eq!(with(&[(80, 2)]).repeating_ms, 0);
    assert_eq!(with(&[(144, 7)]), Sending { written: 9, all_sent: false, busy_ms: 0, repeating_ms: 0 });
    assert_eq!(with(&[(36, 0)]).repeating_ms, 0);
    assert_eq!(with(&[(200, 10), (208, 8)]).written, 2, "eight of ten bytes were sent again");
    assert_eq!(with(&[(168, 6_210_000)]).busy_ms, 6210);
}

#[test]
fn bytes_cut_short_anywhere_are_refused_or_lack_the_times() {
    let whole = close_wait();
    // The message alone, and each cut between two of its attributes, with or without the padding.
    let between = [72, 77, 78, 79, 80, 88, 100, 106, 107, 108];
    for length in 0..whole.len() {
        let cut = decode(&whole[..length]);
        assert_eq!(cut.is_some(), between.contains(&length), "{length}");
        assert!(cut.is_none_or(|socket| socket.times.is_none()));
    }
    assert!(decode(&whole).is_some_and(|socket| socket.times.is_some()));
}

#[test]
fn garbage_is_refused_and_never_panics() {
    let whole = close_wait();
    let with = |at: usize, value: u8| {
        let mut bytes = whole.clone();
        bytes[at] = value;
        bytes
    };
    for family in (0..=255).filter(|family| ![2, 10].contains(family)) {
        assert_eq!(decode(&with(0, family)), None);
    }
    for state in [0, 14, 255] {
        assert_eq!(decode(&with(1, state)), None);
    }
    // An attribute of length 0 (which would never advance), shorter than its header, and past the end.
    for length in [0, 3, 255] {
        assert_eq!(decode(&with(MESSAGE, length)), None);
    }
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..200_000 {
        let mut bytes = whole.clone();
        for _ in 0..4 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let at = random as usize % bytes.len();
            bytes[at] = (random >> 32) as u8;
        }
        bytes.truncate((random >> 16) as usize % (bytes.len() + 1));
        let _ = decode(&bytes);
    }
}

#[test]
fn an_error_from_the_kernel_is_an_error_here() {
    assert!(status(&0i32.to_ne_bytes()).is_ok() && status(&[]).is_ok());
    let error = status(&(-libc::EPERM).to_ne_bytes()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(status(&i32::MIN.to_ne_bytes()).is_err());
    assert!(refused(&io::Error::from_raw_os_error(libc::ENOENT)).to_string().contains("modprobe tcp_diag"));
}

#[test]
#[cfg(target_endian = "little")]
fn counters_prove_an_opening_while_no_data_is_on_its_way() {
    const INFO: usize = 112;
    /// Sent and acknowledged.
    const DATA: u8 = 2;
    let of = |state: TcpState, unacked: u8, unsent: u8, acked: u8| {
        let mut bytes = close_wait();
        (bytes[INFO], bytes[INFO + 24], bytes[60], bytes[INFO + 120]) =
            (state.raw(), unacked, unsent, DATA + acked);
        decode(&bytes).unwrap().opening
    };
    for (acked, opening) in [(0, Opening::NotConnected), (1, Opening::Connected)] {
        for state in [TcpState::Established, TcpState::CloseWait, TcpState::FinWait1, TcpState::LastAck] {
            assert_eq!(of(state, 0, 0, acked), opening, "{state:?}");
        }
        assert_eq!(of(TcpState::FinWait2, 0, 0, acked + 1), opening, "its FIN is acknowledged");
        for state in [TcpState::FinWait1, TcpState::Closing, TcpState::LastAck] {
            assert_eq!(of(state, 1, 1, acked), opening, "{state:?}: the FIN alone");
            assert_eq!(of(state, 1, 7, acked), Opening::Unknown, "{state:?}: the FIN with data");
        }
        assert_eq!(of(TcpState::CloseWait, 1, 1, acked), Opening::Unknown);
    }
}

/// A listener on `address`, a stream connected to it at `host`, and the accepted end.
fn connection(address: &str, host: &str) -> (TcpListener, TcpStream, TcpStream) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let client = TcpStream::connect((host, listener.local_addr().unwrap().port())).unwrap();
    let (server, _) = listener.accept().unwrap();
    (listener, client, server)
}

fn flow(stream: &TcpStream) -> Flow {
    Flow::new(stream.local_addr().unwrap(), stream.peer_addr().unwrap())
}

#[test]
fn one_dump_brings_both_families_and_a_lookup_finds_each() {
    for (address, host) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1")] {
        let (listener, mut client, server) = connection(address, host);
        let before = monotonic_ns();
        client.write_all(b"12345").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let dump = dump(TcpState::CloseWait.bit() | TcpState::Listen.bit(), true).unwrap();
        assert_eq!((dump.malformed, dump.interrupted), (0, false));
        assert!(before <= dump.started_ns && dump.started_ns <= dump.finished_ns && dump.cpu_ns > 0);

        let socket = *dump.sockets.iter().find(|socket| socket.flow == flow(&server)).unwrap();
        assert_eq!((socket.state, socket.unread, socket.minisocket), (TcpState::CloseWait, 6, false));
        assert!(dump.started_ns <= socket.seen_ns && socket.seen_ns <= dump.finished_ns);
        assert!(socket.cookie != 0 && socket.times.is_some());
        let age = crate::linux::age::proven_age(&socket, crate::linux::host::uptime_ns());
        assert!(age.min_ns <= socket.seen_ns - before, "{age:?}");

        let port = listener.local_addr().unwrap().port();
        let is_listener =
            |socket: &&Socket| socket.state == TcpState::Listen && socket.flow.local_port == port;
        assert_eq!(dump.sockets.iter().filter(is_listener).count(), 1);

        let again = lookup(&socket.flow, 0, Some(socket.cookie)).unwrap().unwrap();
        assert_eq!((again.cookie, again.inode, again.state), (socket.cookie, socket.inode, socket.state));
        assert!(again.times.is_some() && again.seen_ns >= socket.seen_ns);
        assert_eq!(lookup(&socket.flow, 0, Some(socket.cookie + 1)).unwrap(), None);
        let nobody = Flow { remote_port: 1, ..socket.flow };
        assert_eq!(lookup(&nobody, 0, Some(socket.cookie)).unwrap(), None);
    }
}

#[test]
fn a_minisocket_is_known_by_its_timer() {
    for (address, host) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1")] {
        let (_listener, client, server) = connection(address, host);
        let orphan = flow(&server);
        drop(server);
        // The peer's acknowledgment may be a delayed one.
        let find = |state: TcpState| loop {
            let dump = dump(TcpState::FinWait2.bit() | TcpState::TimeWait.bit(), true).unwrap();
            let found =
                dump.sockets.into_iter().find(|socket| socket.flow == orphan && socket.state == state);
            match found {
                Some(socket) => break socket,
                None => std::thread::sleep(std::time::Duration::from_millis(1)),
            }
        };
        let socket = find(TcpState::FinWait2);
        assert_eq!((socket.state, socket.minisocket, socket.inode), (TcpState::FinWait2, true, 0));
        assert!(socket.expires_ns.is_some_and(|left| left <= 60_000_000_000) && socket.times.is_none());
        drop(client);
        let later = find(TcpState::TimeWait);
        assert_eq!((later.state, later.minisocket, later.cookie), (TcpState::TimeWait, true, socket.cookie));
        assert_eq!(lookup(&orphan, 0, Some(socket.cookie)).unwrap().unwrap().state, TcpState::TimeWait);
    }
}
