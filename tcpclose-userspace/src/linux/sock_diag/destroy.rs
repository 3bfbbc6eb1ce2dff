//! SOCK_DESTROY: ends one socket from outside, in the network namespace of the calling thread.
//!
//! The kernel finds the socket by its addresses and checks its cookie (net/ipv4/tcp_diag.c, `tcp_diag_destroy()`;
//! net/core/sock_diag.c, `sock_diag_check_cookie()`; 5.8 to 6.18): it never takes another connection of the same addresses, nor
//! their listener. Then `tcp_abort()` sends the peer a RST and sets ECONNABORTED, which the program's next write meets;
//! in CLOSE-WAIT a read goes on to give what was unread, and then the end of the stream (`tcp_recvmsg_locked()` looks at
//! SOCK_DONE before it looks at the error).

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};

use crate::linux::sock_diag::connection::{SEQUENCE, exchange};
use crate::linux::sock_diag::request::{exact, message};
use crate::names::Flow;

/// Ends the socket with these addresses and this cookie.
///
/// # Errors
/// ENOENT or ESTALE: there is none. EPERM: the thread lacks CAP_NET_ADMIN in the namespace's user namespace
/// (`sock_diag_destroy()`). EOPNOTSUPP: the kernel is built without CONFIG_INET_DIAG_DESTROY, or the socket is a
/// minisocket and the kernel older than 6.1. EINVAL for a cookie that is none: the kernel would take any socket.
///
/// Below 6.11, a socket that no program holds any more is left as it is without an error (`tcp_abort()` looks for SOCK_DEAD):
/// only a lookup shows that.
pub fn destroy(flow: &Flow, interface: u32, cookie: u64) -> io::Result<()> {
    if matches!(cookie, 0 | u64::MAX) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let destroy_in = |family| {
        let request = SockDiagMessage::InetRequest(exact(family, flow, interface, cookie));
        let request = message(SEQUENCE, NLM_F_REQUEST | NLM_F_ACK, SockDiagDestroy::new(request).into());
        exchange(&request, |_| {})
    };
    match destroy_in(libc::AF_INET6) {
        // A kernel without IPv6 knows AF_INET alone: EINVAL (net/ipv4/inet_diag.c, inet_diag_find_one_icsk()).
        Err(error) if flow.is_v4() && (is_gone(&error) || error.raw_os_error() == Some(libc::EINVAL)) => {
            destroy_in(libc::AF_INET)
        }
        done => done,
    }
}

/// Whether `error` of [`destroy`] says that there is no such socket.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE | libc::EAFNOSUPPORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_is_not_there_is_gone_and_no_cookie_is_refused() {
        let flow = Flow::new("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        assert!(is_gone(&destroy(&flow, 0, 12345).unwrap_err()));
        for none in [0, u64::MAX] {
            assert_eq!(destroy(&flow, 0, none).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        }
        let flow = Flow::new("[::1]:1".parse().unwrap(), "[::1]:2".parse().unwrap());
        assert!(is_gone(&destroy(&flow, 0, 12345).unwrap_err()));
    }
}
