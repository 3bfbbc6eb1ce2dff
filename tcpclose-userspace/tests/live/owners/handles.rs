//! Who holds a socket by what is no descriptor of its own making: a direct descriptor of io_uring, a descriptor taken from another
//! process, or a call that goes on.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::SockRef;
use tcpclose::report::sockets::SocketsDocument;

use super::stage::{self, Askers, Child, Pair, Server};
use super::{PATIENCE, ring};

/// Whether this kernel lists the files of `ring`, and the socket with `inode` among them.
fn lists(ring: &OwnedFd, inode: Option<u64>) -> bool {
    let listed = fs::read_to_string(format!("/proc/self/fdinfo/{}", ring.as_raw_fd())).unwrap();
    match inode {
        Some(inode) => listed.contains(&format!("socket:[{inode}]")),
        None => listed.contains("socket:["),
    }
}

/// What everybody says of the one socket, which `ring` alone holds.
fn expect_ring(documents: &[(&str, SocketsDocument)], ring: &OwnedFd, is_listed: bool) {
    for (asker, document) in documents {
        let socket = stage::only(document);
        if is_listed {
            let holder = (std::process::id(), ring.as_raw_fd() as u32);
            let holders = stage::holders(&socket.owners);
            // A child that another test starts holds a copy until it executes its program.
            let is_copy = |other: &(u32, u32)| other.1 == holder.1;
            assert!(holders.contains(&holder) && holders.iter().all(is_copy), "{asker}: {holders:?}");
        } else {
            assert!(socket.owners.is_empty(), "{asker}: this kernel does not list it");
            assert!(document.incomplete.iter().any(|remark| remark.contains("io_uring")), "{asker}");
        }
    }
}

/// The ring, if this kernel has io_uring and allows it.
fn allowed(ring: io::Result<OwnedFd>) -> Option<OwnedFd> {
    match ring {
        Err(why) if matches!(why.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
            println!("SKIPPED: the kernel refuses io_uring: {why}");
            None
        }
        ring => Some(ring.unwrap()),
    }
}

/// A socket that is registered with a ring of io_uring needs no descriptor.
#[test]
#[ignore = "needs root"]
fn who_holds_a_socket_by_a_ring_of_io_uring_is_named() {
    let askers = Askers::start();
    let server = Server::new();
    let Pair { server: registered, client: _client } = server.pair();
    let Some(ring) = allowed(ring::with_file(registered.as_fd())) else { return };
    let inode = stage::inode(&registered);
    drop(registered);
    let is_listed = lists(&ring, Some(inode));
    expect_ring(&askers.ask(server.port()), &ring, is_listed);
}

/// A ring that accepts gives the connection a place among its own files, and no descriptor.
#[test]
#[ignore = "needs root"]
fn who_accepts_into_a_ring_of_io_uring_is_named() {
    let askers = Askers::start();
    let server = Server::new();
    let _client = server.half_closed_client(b"");
    let Some(ring) = allowed(ring::accepting(server.listener.as_fd())) else { return };
    let is_listed = lists(&ring, None);
    expect_ring(&askers.ask(server.port()), &ring, is_listed);
}

#[test]
#[ignore = "needs root"]
fn a_descriptor_that_was_taken_belongs_to_the_taker() {
    let askers = Askers::start();
    let server = Server::new();
    let Pair { server: held, client: _client } = server.pair();
    let child = Child::holding(Command::new("sleep").arg("1000"), &held);
    drop(held);
    let pid = Pid::from_raw(child.pid() as i32).unwrap();
    let of_child = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let taken = pidfd_getfd(&of_child, 0, PidfdGetfdFlags::empty()).unwrap();
    drop(child);
    for (asker, document) in askers.ask(server.port()) {
        let holder = (std::process::id(), taken.as_raw_fd() as u32);
        assert_eq!(stage::holders(&stage::only(&document).owners), [holder], "{asker}");
    }
}

/// A thread waits for a socket whose descriptor another one closes: the call keeps the file, and that is said.
#[test]
#[ignore = "needs root"]
fn what_only_a_call_still_holds_has_no_owner_and_that_is_said() {
    let askers = Askers::start();
    let server = Server::new();
    let Pair { server: polled, client } = server.pair();
    let fd = polled.into_raw_fd();
    let (send, receive) = channel();
    let waiting = std::thread::spawn(move || {
        send.send(rustix::thread::gettid()).unwrap();
        // Nothing that has happened, and a reset ends it.
        let mut poll = libc::pollfd { fd, events: 0, revents: 0 };
        // SAFETY: one pollfd, which lives for the call; no timeout and no mask.
        unsafe { libc::ppoll(&raw mut poll, 1, std::ptr::null(), std::ptr::null()) }
    });
    let thread = receive.recv().unwrap().as_raw_nonzero();
    let until = Instant::now() + PATIENCE;
    let call = format!("{} ", libc::SYS_ppoll);
    while !fs::read_to_string(format!("/proc/self/task/{thread}/syscall")).unwrap().starts_with(&call) {
        assert!(Instant::now() < until, "the thread does not wait");
        sleep(Duration::from_millis(1));
    }
    // SAFETY: this descriptor is nobody else's; the call that uses it has its file.
    assert_eq!(unsafe { libc::close(fd) }, 0);
    for (asker, document) in askers.ask(server.port()) {
        assert!(stage::only(&document).owners.is_empty(), "{asker}");
        let is_said = |remark: &String| remark.contains("a call that still uses a closed descriptor");
        assert!(document.incomplete.iter().any(is_said), "{asker}: {:?}", document.incomplete);
    }
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    let _ = client.shutdown(Shutdown::Both);
    drop(client);
    assert_eq!(waiting.join().unwrap(), 1);
}
