//! How long TIME-WAIT lasts on this host: measured, not assumed.
//!
//! 60 s is a constant of mainline Linux (TCP_TIMEWAIT_LEN, include/net/tcp.h), but some vendors' kernels have a
//! sysctl for it. What is on a minisocket's timer right after it entered TIME-WAIT is the length in force here.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tcpclose_common::state::TcpState;

use crate::linux::host::monotonic_ns;
use crate::linux::sock_diag;
use crate::names::Flow;

/// Every step of the measurement is a loopback round trip; one that takes longer than this is given up.
const PATIENCE: Duration = Duration::from_secs(2);

/// Closes a loopback connection of our own and reads the minisocket's timer: TIME-WAIT's length in nanoseconds, to
/// some 10 ms (a jiffy and the time between the step and the look).
///
/// The minisocket does not stay: a new connection from the same port takes its place, and a RST ends that one. Run it
/// before the probe is attached, or it will be counted.
///
/// # Errors
/// When loopback is down, or the kernel refuses `sock_diag`.
pub fn measure() -> io::Result<u64> {
    measure_one().map(|(length_ns, _)| length_ns)
}

/// The length, and the flow whose minisocket told it.
fn measure_one() -> io::Result<(u64, Flow)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = listener.local_addr()?;
    let client = connect(SocketAddr::from((own_address(), 0)), server)?;
    let client_addr = client.local_addr()?;
    let (accepted, _) = listener.accept()?;

    // The accepted end closes first, and so is the one that waits.
    drop(accepted);
    wait_for_fin(&client)?;
    let closing_ns = monotonic_ns();
    drop(client);
    let closed_ns = monotonic_ns();

    let flow = Flow::new(server, client_addr);
    let seen = loop {
        match sock_diag::lookup(&flow, 0, None)? {
            Some(seen) if seen.state == TcpState::TimeWait => break seen,
            _ if monotonic_ns() - closing_ns > PATIENCE.as_nanos() as u64 => {
                return Err(io::Error::other("no TIME-WAIT came of a closed connection"));
            }
            _ => std::thread::yield_now(),
        }
    };
    let left = seen.expires_ns.ok_or_else(|| io::Error::other("a TIME-WAIT without a timer"))?;
    displace(&listener, client_addr, server);
    // Loopback has taken the FIN to the other end when close() returns, or soon after (net/core/dev.c, the softirq that
    // __dev_queue_xmit leaves pending runs as it enables softirqs again). On a loaded host the look comes much later.
    let entered_ns = closing_ns.midpoint(closed_ns);
    let looked_ns = seen.seen_ns - seen.window_ns / 2;
    Ok((left + looked_ns.saturating_sub(entered_ns), flow))
}

/// A loopback address that hardly anybody else uses. On 127.0.0.1 a port that this process has just given back can
/// belong to other connections too, and cannot be bound again.
fn own_address() -> Ipv4Addr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 100 + a % 100, b, c.max(1))
}

/// Connects to `to` from `from`.
fn connect(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(from))?;
    socket.connect_timeout(&SockAddr::from(to), PATIENCE)?;
    Ok(socket.into())
}

/// Returns when the peer's FIN is here.
fn wait_for_fin(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("data on a connection of our own")),
    }
}

/// Takes the minisocket's place with a new connection (a SYN with a later sequence number does: tcp_timewait_state_process,
/// TCP_TW_SYN) and resets it. If that does not work the minisocket stays its 60 s, and the first dump finds it.
fn displace(listener: &TcpListener, client: SocketAddr, server: SocketAddr) {
    /// A client's own socket may be on its way out still, and its port with it.
    const TRIES: u32 = 50;
    for _ in 0..TRIES {
        match connect(client, server) {
            Ok(second) => {
                if let Ok((accepted, _)) = listener.accept() {
                    // Best effort, as all of this function. Closed so, it sends a RST and leaves nothing at once.
                    let _ = SockRef::from(&accepted).set_linger(Some(Duration::ZERO));
                }
                drop(second);
                return;
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_mainlines_or_the_sysctls() {
        let sysctl = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_tw_timeout").ok();
        let want = sysctl.and_then(|text| text.trim().parse().ok()).unwrap_or(60.0);
        let got = measure().unwrap() as f64 / 1e9;
        assert!((got - want).abs() < 0.25, "{got} s measured, {want} s expected");
    }

    #[test]
    fn nothing_stays_behind() {
        for _ in 0..20 {
            let (_, flow) = measure_one().unwrap();
            assert_eq!(sock_diag::lookup(&flow, 0, None).unwrap(), None, "{flow:?}");
        }
    }
}
