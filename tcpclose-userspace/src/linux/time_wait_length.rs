//! Measures how long TIME-WAIT lasts on this host.
//!
//! 60 s is a constant of mainline Linux (TCP_TIMEWAIT_LEN, include/net/tcp.h), but some vendors' kernels have a
//! sysctl for it. The timer of a minisocket that has just entered TIME-WAIT shows the length in force.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tcpclose_common::state::TcpState;

use crate::linux::host::monotonic_ns;
use crate::linux::sock_diag;
use crate::names::Flow;

/// The timeout of each step, which is a loopback round trip.
const PATIENCE: Duration = Duration::from_secs(2);

/// Mainline's length, where no sysctl may have changed it, nanoseconds; `None` where one may.
pub fn constant_ns() -> Option<u64> {
    /// include/net/tcp.h, TCP_TIMEWAIT_LEN.
    const MAINLINE_NS: u64 = 60_000_000_000;
    const SYSCTL: &str = "/proc/sys/net/ipv4/tcp_tw_timeout";
    matches!(std::fs::exists(SYSCTL), Ok(false)).then_some(MAINLINE_NS)
}

/// Closes a loopback connection of our own and reads the minisocket's timer: TIME-WAIT's length in nanoseconds, to
/// some 10 ms (a jiffy, and the time between entry and lookup).
///
/// The minisocket does not stay: a new connection from the same port replaces it and ends by a RST. Run this before the probe
/// is attached, which would count it.
///
/// # Errors
/// When loopback is down, or the kernel refuses `sock_diag`.
pub fn measure() -> io::Result<u64> {
    measure_one().map(|(length_ns, _)| length_ns)
}

/// The length, and the flow of the minisocket.
fn measure_one() -> io::Result<(u64, Flow)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = listener.local_addr()?;
    let client = connect(SocketAddr::from((own_address(), 0)), server)?;
    let client_addr = client.local_addr()?;
    let (accepted, _) = listener.accept()?;

    // The accepted end closes first, so that it enters TIME-WAIT.
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
                return Err(io::Error::other("a closed connection did not enter TIME-WAIT"));
            }
            _ => std::thread::yield_now(),
        }
    };
    let left = seen.expires_ns.ok_or_else(|| io::Error::other("a TIME-WAIT without a timer"))?;
    displace(&listener, client_addr, server);
    // Loopback delivers the FIN by the time that close() returns, or soon after (net/core/dev.c, the softirq that
    // __dev_queue_xmit leaves pending runs as it enables softirqs again). On a loaded host the lookup comes much later.
    let entered_ns = closing_ns.midpoint(closed_ns);
    let looked_ns = seen.seen_ns - seen.window_ns / 2;
    Ok((left + looked_ns.saturating_sub(entered_ns), flow))
}

/// A loopback address that hardly any other program uses. On 127.0.0.1 a port that this process has just released can belong
/// to other connections too, and cannot be bound again.
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

/// Waits for the peer's FIN.
fn wait_for_fin(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("unexpected data on our own connection")),
    }
}

/// Replaces the minisocket by a new connection (a SYN with a later sequence number does: tcp_timewait_state_process,
/// TCP_TW_SYN) and resets that. If this fails the minisocket stays its 60 s, and the first dump finds it.
fn displace(listener: &TcpListener, client: SocketAddr, server: SocketAddr) {
    /// The client's own socket, and with it the port, may not be released yet.
    const TRIES: u32 = 50;
    for _ in 0..TRIES {
        match connect(client, server) {
            Ok(second) => {
                if let Ok((accepted, _)) = listener.accept() {
                    // Best effort, like this whole function. Closed with linger 0, it sends a RST and leaves nothing.
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
