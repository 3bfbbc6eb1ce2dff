//! The kernel's own timestamps of the segments on a wire: an AF_PACKET socket with SO_TIMESTAMPNS. An incoming segment is
//! stamped in netif_receive_skb(), before IP has it; an outgoing one in dev_queue_xmit_nit(), as it is handed to the
//! device. Both come in CLOCK_REALTIME and are told in CLOCK_MONOTONIC.

use std::ffi::CString;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::time::{ClockId, clock_gettime};

use super::scene::now_ns;
use super::wire::Segment;

/// The largest packet that a script makes, and more.
const PACKET: usize = 2048;

/// How far the two clocks may seem to have moved against each other during one script.
const STEADY_NS: i64 = 100_000;

pub struct Tap {
    fd: OwnedFd,
}

/// A segment, and when it passed.
pub struct Passed {
    pub ns: u64,
    pub segment: Segment,
}

impl Tap {
    /// Listens on an interface of the calling thread's namespace.
    pub fn open(interface: &str) -> io::Result<Self> {
        // Protocol 0 receives nothing until bind() names an interface.
        // SAFETY: no pointers; the descriptor is checked below.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let on: i32 = 1;
        let length = size_of_val(&on) as u32;
        let value = std::ptr::from_ref(&on).cast();
        // SAFETY: a live int of the length given.
        done(unsafe {
            libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, value, length)
        })?;
        let name = CString::new(interface)?;
        // SAFETY: sockaddr_ll is integers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: a live string with a zero at its end.
        address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
        if address.sll_ifindex == 0 {
            return Err(io::Error::last_os_error());
        }
        let length = size_of_val(&address) as u32;
        // SAFETY: a live sockaddr_ll of the length given, which is what AF_PACKET takes.
        done(unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), length) })?;
        Ok(Self { fd })
    }

    /// What has passed so far, in order. `offset` is what [`real_minus_monotonic`] was before the first.
    pub fn take(&self, offset: i64) -> io::Result<Vec<Passed>> {
        let moved = (real_minus_monotonic() - offset).abs();
        assert!(moved < STEADY_NS, "the wall clock was set during a measurement ({moved} ns)");
        let mut passed = Vec::new();
        while let Some((packet, real_ns)) = self.receive()? {
            if let Some(segment) = Segment::from_bytes(&packet) {
                passed.push(Passed { ns: (real_ns - offset) as u64, segment });
            }
        }
        Ok(passed)
    }

    /// The next packet and its CLOCK_REALTIME.
    fn receive(&self) -> io::Result<Option<(Vec<u8>, i64)>> {
        let mut packet = vec![0u8; PACKET];
        // Aligned as cmsghdr must be.
        let mut control = [0u64; 16];
        let mut part = libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: packet.len() };
        // SAFETY: msghdr is integers and pointers, for which zero is a value.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: `message` points to two live buffers, of the lengths it says.
        let length = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
        if length < 0 {
            let why = io::Error::last_os_error();
            return if why.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(why) };
        }
        packet.truncate(length as usize);
        // SAFETY: recvmsg has filled `message`; its control buffer is alive.
        let header = unsafe { libc::CMSG_FIRSTHDR(&message) };
        assert!(!header.is_null(), "the kernel gave a packet no timestamp");
        // SAFETY: not null, so it lies in the control buffer.
        let kind = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        assert_eq!(kind, (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS));
        // SAFETY: SCM_TIMESTAMPNS carries one timespec, wherever it lies.
        let time: libc::timespec = unsafe { std::ptr::read_unaligned(libc::CMSG_DATA(header).cast()) };
        Ok(Some((packet, time.tv_sec * 1_000_000_000 + time.tv_nsec)))
    }
}

/// CLOCK_REALTIME minus CLOCK_MONOTONIC, from the least disturbed of some readings. NTP slews both alike.
pub fn real_minus_monotonic() -> i64 {
    let reading = |_| {
        let before = now_ns();
        let real = clock_gettime(ClockId::Realtime);
        let after = now_ns();
        let real = real.tv_sec * 1_000_000_000 + real.tv_nsec;
        (after - before, real - ((before + after) / 2) as i64)
    };
    let readings = (0..20).map(reading);
    readings.min().map_or(0, |(_, offset)| offset)
}

fn done(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
