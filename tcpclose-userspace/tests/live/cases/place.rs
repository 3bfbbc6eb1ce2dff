//! Network namespaces and TUN devices of the test's own, made without any other program.
//!
//! A TUN device is the wire: what is written to its descriptor the kernel receives, what the kernel sends is read from
//! it. A veth pair with an AF_PACKET socket would do as well, but needs neighbour entries for ARP and ND, and receives
//! in a softirq some time after the send. A write to a TUN descriptor returns when the segment has been through TCP
//! (drivers/net/tun.c: tun_get_user → tun_rx_batched → netif_receive_skb; 5.8 to 6.18): reading the clock before and
//! after the write brackets the kernel's step to some microseconds. Device and namespace go with their last descriptor.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// A network namespace; gone with its last descriptor, socket and thread.
pub struct Netns {
    fd: File,
}

impl Netns {
    /// Makes one, and moves the calling thread into it. Loopback is up.
    pub fn enter_new() -> io::Result<Self> {
        // SAFETY: a network namespace is the thread's alone; no memory or descriptor table is unshared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)? };
        let netns = Self { fd: File::open("/proc/thread-self/ns/net")? };
        raise("lo")?;
        Ok(netns)
    }

    /// Makes one from another thread, with `sysctls` (below /proc/sys/net/ipv4) set.
    pub fn new(sysctls: &[(&str, &str)]) -> io::Result<Self> {
        std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                let netns = Self::enter_new()?;
                sysctls.iter().try_for_each(|(name, value)| set_sysctl(name, value))?;
                Ok(netns)
            });
            made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into it.
    pub fn enter(&self) -> io::Result<()> {
        Ok(rustix::thread::move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))?)
    }
}

/// Sets a sysctl of the calling thread's network namespace: /proc/sys/net shows the one of whoever looks.
pub fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/ipv4/{name}"), value)
        .map_err(|why| io::Error::new(why.kind(), format!("net.ipv4.{name} = {value}: {why}")))
}

/// Hides the kernel's BTF from the calling thread and from what it starts.
pub fn hide_btf() -> io::Result<()> {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    // SAFETY: the mount namespace, and with it the working directory, become the thread's alone.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    match mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC) {
        // The first root of a guest cannot be changed, and has nobody to propagate to.
        Err(rustix::io::Errno::INVAL) | Ok(()) => {}
        Err(why) => return Err(why.into()),
    }
    if fs::exists("/sys/kernel/btf")? {
        mount("none", "/sys/kernel/btf", "tmpfs", MountFlags::empty(), None)?;
    }
    Ok(())
}

/// A TUN device, up, with an address of each family.
pub struct Tun {
    fd: File,
}

impl Tun {
    /// Makes one in the calling thread's namespace. Each address is alone with its peer's in its network.
    pub fn new(name: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> io::Result<Self> {
        let fd = open_tun()?;
        let mut request = request(name);
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
        ioctl(&fd, libc::TUNSETIFF, &mut request)?;
        let control = socket(libc::AF_INET)?;
        set_v4(&control, name, libc::SIOCSIFADDR, v4)?;
        set_v4(&control, name, libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0))?;
        raise(name)?;
        set_v6(&control, name, v6)?;
        Ok(Self { fd })
    }

    pub fn send(&self, packet: &[u8]) {
        let sent = (&self.fd).write(packet).unwrap();
        assert_eq!(sent, packet.len());
    }

    /// The next packet that the kernel sends before `until`.
    pub fn receive(&self, until: Instant) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 2048];
        if !readable(&self.fd, until) {
            return None;
        }
        let length = (&self.fd).read(&mut buffer).unwrap();
        buffer.truncate(length);
        Some(buffer)
    }
}

/// Waits until `fd` can be read; `false` if that does not come before `until`.
fn readable(fd: &File, until: Instant) -> bool {
    loop {
        let left = until.saturating_duration_since(Instant::now()).as_millis() as i32;
        let mut asked = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, as the count says, alive for the call.
        match unsafe { libc::poll(&mut asked, 1, left) } {
            0 => return false,
            1.. => return true,
            _ if io::Error::last_os_error().kind() == ErrorKind::Interrupted => {}
            _ => panic!("poll of the TUN device: {}", io::Error::last_os_error()),
        }
    }
}

/// /dev/net/tun; where /dev lacks it, a node of our own for a moment.
fn open_tun() -> io::Result<File> {
    let open = |path: &std::path::Path| OpenOptions::new().read(true).write(true).open(path);
    match open("/dev/net/tun".as_ref()) {
        Err(why) if why.kind() == ErrorKind::NotFound => {
            use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
            let folder = tempfile::tempdir()?;
            let node = folder.path().join("tun");
            // 10, 200: Documentation/admin-guide/devices.txt.
            mknodat(CWD, &node, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, makedev(10, 200))?;
            open(&node).map_err(|why| io::Error::new(why.kind(), format!("the tun module is needed: {why}")))
        }
        other => other,
    }
}

fn socket(family: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is checked below.
    let fd = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is integers and a union of integers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// An ioctl whose argument is a `T`, which every caller has chosen to be what `what` takes.
fn ioctl<T>(fd: &impl AsRawFd, what: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: `argument` is a live, exclusive T, the type that the kernel reads and writes for `what`.
    match unsafe { libc::ioctl(fd.as_raw_fd(), what as _, std::ptr::from_mut(argument)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the interface `name` up.
fn raise(name: &str) -> io::Result<()> {
    let control = socket(libc::AF_INET)?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    ioctl(&control, libc::SIOCSIFFLAGS, &mut request)
}

fn set_v4(control: &OwnedFd, name: &str, what: libc::c_ulong, address: Ipv4Addr) -> io::Result<()> {
    let mut request = request(name);
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: sockaddr_in and sockaddr have one size and are plain bytes; the kernel reads it by its family.
    request.ifr_ifru.ifru_addr = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
    ioctl(control, what, &mut request)
}

/// Adds `address` with a prefix of 64 bits, and waits until it can be used. A TUN device has IFF_NOARP, so that no
/// duplicate is looked for; but that is found out in a workqueue (net/ipv6/addrconf.c, addrconf_dad_work).
fn set_v6(control: &OwnedFd, name: &str, address: Ipv6Addr) -> io::Result<()> {
    let mut asked = request(name);
    ioctl(control, libc::SIOCGIFINDEX, &mut asked)?;
    let mut request = libc::in6_ifreq {
        ifr6_addr: libc::in6_addr { s6_addr: address.octets() },
        ifr6_prefixlen: 64,
        // SAFETY: SIOCGIFINDEX has filled this field of the union.
        ifr6_ifindex: unsafe { asked.ifr_ifru.ifru_ifindex },
    };
    ioctl(&socket(libc::AF_INET6)?, libc::SIOCSIFADDR, &mut request)?;
    // On a busy machine the workqueue takes seconds.
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match UdpSocket::bind((address, 0)) {
            Ok(_) => return Ok(()),
            Err(why) if Instant::now() > until => return Err(why),
            Err(_) => sleep(Duration::from_millis(1)),
        }
    }
}
