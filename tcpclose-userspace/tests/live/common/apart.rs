//! A network namespace of a test's own, whose ports are its own, and sockets in it; among them such as a restore makes.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

/// For what takes a moment: a busy machine has many.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const TCP_REPAIR: libc::c_int = 19;
pub const TCP_REPAIR_QUEUE: libc::c_int = 20;
pub const TCP_QUEUE_SEQ: libc::c_int = 21;
pub const RECV_QUEUE: libc::c_int = 1;
pub const SEND_QUEUE: libc::c_int = 2;

/// Runs `play` in a network namespace of its own, whose loopback is up.
pub fn apart<T: Send>(play: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|threads| {
        let inside = || {
            // SAFETY: a system call without pointers; this thread alone changes its namespace, and ends with it.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(up.success());
            play()
        };
        threads.spawn(inside).join().unwrap()
    })
}

pub fn at(port: u16) -> SocketAddr {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into()
}

pub fn socket() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket
}

pub fn listener(port: u16, backlog: i32) -> TcpListener {
    let socket = socket();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&at(port).into()).unwrap();
    socket.listen(backlog).unwrap();
    socket.into()
}

pub fn set(socket: &Socket, option: libc::c_int, value: libc::c_int) {
    // SAFETY: the option's value is a c_int, which lives for the call.
    let done = unsafe {
        let value = (&raw const value).cast();
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            value,
            size_of::<libc::c_int>() as u32,
        )
    };
    assert_eq!(done, 0, "TCP option {option}: {}", io::Error::last_os_error());
}

pub fn get(socket: &Socket, option: libc::c_int) -> libc::c_int {
    let (mut value, mut length): (libc::c_int, _) = (0, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: value and length live for the call, which writes no more than that.
    let done = unsafe {
        let value = (&raw mut value).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, option, value, &raw mut length)
    };
    assert_eq!(done, 0, "TCP option {option}: {}", io::Error::last_os_error());
    value
}

/// A connection from `local` to `peer` as a restore makes it: nothing is sent. The next byte that this end
/// sends and takes has these numbers; `unsent` bytes are restored to the send queue.
pub fn restored((local, peer): (u16, u16), (sends, takes): (i32, i32), unsent: &[u8]) -> Socket {
    let socket = socket();
    set(&socket, TCP_REPAIR, 1);
    socket.bind(&at(local).into()).unwrap();
    for (queue, sequence) in [(SEND_QUEUE, sends), (RECV_QUEUE, takes)] {
        set(&socket, TCP_REPAIR_QUEUE, queue);
        set(&socket, TCP_QUEUE_SEQ, sequence);
    }
    socket.connect(&at(peer).into()).unwrap();
    set(&socket, TCP_REPAIR_QUEUE, SEND_QUEUE);
    if !unsent.is_empty() {
        assert_eq!(socket.send(unsent).unwrap(), unsent.len());
    }
    socket
}

/// Waits until the kernel has `stream` in the state with this number.
pub fn until_state(stream: &impl AsRawFd, state: u8) {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut info = [0u8; 104];
        let mut length = info.len() as libc::socklen_t;
        // SAFETY: the buffer and its length live for the call, which writes no more than that.
        let done = unsafe {
            let (info, length) = (info.as_mut_ptr().cast(), &raw mut length);
            libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info, length)
        };
        assert_eq!(done, 0);
        if info[0] == state {
            return;
        }
        assert!(Instant::now() < until, "in state {} instead of {state}", info[0]);
        sleep(Duration::from_millis(1));
    }
}

pub const CLOSE_WAIT: u8 = 8;
