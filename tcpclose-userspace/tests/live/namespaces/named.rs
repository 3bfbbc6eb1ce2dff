//! Network namespaces with names, as `ip netns` makes them, and sockets in them.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A namespace; deleted when dropped, if nobody has done so before.
pub struct Named {
    pub name: String,
    /// As in `net:[4026532008]`.
    pub inum: u64,
}

impl Named {
    pub fn new(what: &str) -> Self {
        let name = format!("tcpclose-{}-{what}", std::process::id());
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        let inum = std::fs::metadata(format!("/run/netns/{name}")).unwrap().ino();
        Self { name, inum }
    }

    /// Runs `what` in it, on a thread of its own.
    pub fn inside<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(&self.file());
                what()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Where it can be entered.
    pub fn file(&self) -> PathBuf {
        format!("/run/netns/{}", self.name).into()
    }

    /// How many sockets `ss` shows in `state` with `port` at either end.
    pub fn ss(&self, state: &str, port: u16) -> usize {
        let filter = format!("( sport = :{port} or dport = :{port} )");
        let shown = Command::new("ip")
            .args(["netns", "exec", &self.name, "ss", "-H", "-tan", "state", state])
            .arg(filter)
            .output()
            .unwrap();
        assert!(shown.status.success(), "ss: {}", String::from_utf8_lossy(&shown.stderr));
        shown.stdout.iter().filter(|&&byte| byte == b'\n').count()
    }

    /// Deletes it, as an operator does.
    pub fn delete(&self) {
        ip(&["netns", "del", &self.name]);
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if std::fs::exists(format!("/run/netns/{}", self.name)).unwrap() {
            self.delete();
        }
    }
}

/// Takes this thread into the namespace at `file`.
pub fn enter(file: &Path) {
    let file = File::open(file).unwrap();
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

/// `ip`, which must succeed.
pub fn ip(words: &[&str]) {
    let done = Command::new("ip").args(words).output().unwrap();
    assert!(done.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Connections to one port of a namespace.
pub struct Service {
    listener: TcpListener,
    /// The servers' ends of what clients have closed: in CLOSE-WAIT.
    pub half_closed: Vec<TcpStream>,
}

impl Service {
    pub fn listen(netns: &Named, port: u16) -> Self {
        let listener = netns.inside(|| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap());
        Self { listener, half_closed: Vec::new() }
    }

    pub fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// A connection: the client's end, the server's end.
    pub fn connect(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        (client, self.listener.accept().unwrap().0)
    }

    /// The server's end of a connection that somebody has made.
    pub fn accept(&self) -> TcpStream {
        self.listener.accept().unwrap().0
    }

    /// Makes so many CLOSE-WAITs, and so many TIME-WAITs on the server's side.
    pub fn close(&mut self, netns: &Named, close_waits: usize, time_waits: usize) {
        let made = netns.inside(|| {
            for _ in 0..time_waits {
                let (mut client, server) = self.connect();
                drop(server);
                assert_eq!(client.read(&mut [0]).unwrap(), 0);
            }
            let half_closed = (0..close_waits).map(|_| {
                let (client, mut server) = self.connect();
                drop(client);
                assert_eq!(server.read(&mut [0]).unwrap(), 0);
                server
            });
            half_closed.collect::<Vec<_>>()
        });
        self.half_closed.extend(made);
    }

    /// Closes everything at once, listener included, and leaves nothing behind that would hold the namespace.
    pub fn abort(self) {
        for server in &self.half_closed {
            socket2::SockRef::from(server).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        }
    }
}
