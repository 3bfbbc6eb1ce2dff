//! In whose accept queue a connection waits: of listeners that share a port (SO_REUSEPORT) the one whose queue it is, and
//! listeners on another address that sk_lookup chose, as candidates.

pub mod sk_lookup;

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::{Agent, Metrics, free_port};
use crate::namespaces::named::Named;
use crate::owners::stage;
use crate::owners::stage::{Askers, Child};
use rustix::fs::fstat;
use sk_lookup::SkLookup;
use socket2::{Domain, SockRef, Socket, Type};
use tcpclose::linux::sock_diag;
use tcpclose::names::{Diagnosis, Side};
use tcpclose::report::sockets::{Owner, SocketsDocument, StuckSocket};
use tcpclose_common::state::TcpState;

const PATIENCE: Duration = Duration::from_secs(30);

/// A listener on `port` of the loopback, which it may share.
fn listen(port: u16, transparent: bool) -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.set_ip_transparent_v4(transparent).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
    socket.listen(64).unwrap();
    socket.into()
}

fn inode(file: &impl AsFd) -> u32 {
    fstat(file).unwrap().st_ino as u32
}

/// The length of `listener`'s queue.
fn queued(listener: &TcpListener) -> u32 {
    let inode = inode(listener);
    let dump = sock_diag::dump(TcpState::Listen.bit(), false).unwrap();
    dump.sockets.iter().find(|socket| socket.inode == inode).unwrap().unread
}

/// How many of the connections to `port` are in CLOSE-WAIT.
fn close_waits(port: u16) -> usize {
    let dump = sock_diag::dump(TcpState::CloseWait.bit(), false).unwrap();
    dump.sockets.iter().filter(|socket| socket.flow.local_port == port).count()
}

fn wait_for(what: &str, done: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "{what}");
        sleep(Duration::from_millis(2));
    }
}

/// A client that has sent its data and FIN; or that has closed altogether.
fn client(port: u16, closes: bool) -> Option<TcpStream> {
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    (!closes).then_some(client)
}

/// Takes and closes everything in the queue.
fn drain(listener: &TcpListener) {
    listener.set_nonblocking(true).unwrap();
    loop {
        match listener.accept() {
            Ok(taken) => drop(taken),
            Err(why) if why.kind() == ErrorKind::WouldBlock => return,
            Err(why) => panic!("{why}"),
        }
    }
}

/// A program that sleeps, with a name that nobody else's process has.
struct Sleeper {
    directory: tempfile::TempDir,
}

impl Sleeper {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn program(&self, name: &str) -> PathBuf {
        let program = self.directory.path().join(name);
        if !program.exists() {
            std::fs::copy("/bin/sleep", &program).unwrap();
        }
        program
    }

    fn holding(&self, name: &str, file: &impl AsFd) -> Child {
        Child::holding(Command::new(self.program(name)).arg("1000"), file)
    }
}

fn pids(owners: &[Owner]) -> Vec<u32> {
    owners.iter().map(|owner| owner.pid).collect()
}

fn in_order(mut pids: Vec<u32>) -> Vec<u32> {
    pids.sort_unstable();
    pids
}

fn not_accepted<'a>(asker: &str, document: &'a SocketsDocument, number: usize) -> &'a [StuckSocket] {
    assert_eq!(document.sockets.len(), number, "{asker}: {document:?}");
    for socket in &document.sockets {
        assert_eq!(socket.diagnosis, Some(Diagnosis::NotAccepted), "{asker}: {socket:?}");
        assert_eq!(socket.side, Side::Server, "{asker}: {socket:?}");
    }
    &document.sockets
}

#[test]
#[ignore = "needs root"]
fn of_workers_on_one_port_the_one_that_hangs_is_named() {
    // New owners' series have a budget: an agent of this namespace alone does not spend it on other tests' processes.
    Named::new("workers").inside(|| {
        let askers = Askers::start();
        let agent = Agent::start(&["--stuck-after", "1s", "--owner-interval", "200ms", "--netns", "current"]);
        let port = free_port();
        let (sleeper, own) = (Sleeper::new(), std::process::id());
        let name = |worker: usize| format!("w{worker}-{own}");
        let listeners = [1, 2, 3].map(|_| listen(port, false));
        let mut clients = Vec::new();
        // The kernel chooses a queue by a hash of the addresses: until there are several in the second and in the third.
        for nth in 0.. {
            assert!(nth < 2_000, "nothing comes to a listener");
            clients.push(client(port, nth % 2 == 0));
            if nth % 8 == 7 && listeners[1..].iter().all(|listener| queued(listener) >= 3) {
                break;
            }
        }
        // Of closed clients the FIN may come after an accept(), whose close() resets then.
        wait_for("all in CLOSE-WAIT", || close_waits(port) == clients.len());
        drain(&listeners[0]);
        drain(&listeners[2]);
        let hung = queued(&listeners[1]);
        wait_for("those that hang alone", || close_waits(port) == hung as usize);
        let inodes = listeners.each_ref().map(inode);
        let workers: Vec<Child> = (0..3).map(|nth| sleeper.holding(&name(nth), &listeners[nth])).collect();
        // Kept to be drained and filled: a process that holds all three is left out below.
        let holders = |socket: &StuckSocket| {
            let others = socket.owners.iter().filter(|owner| owner.pid != own);
            others.map(|owner| (owner.pid, owner.fd)).collect::<Vec<_>>()
        };
        for (asker, document) in askers.ask(port) {
            for socket in not_accepted(asker, &document, hung as usize) {
                assert_eq!(holders(socket), [(workers[1].pid(), 0)], "{asker}: {socket:?}");
                assert!(!socket.has_candidates(), "{asker}: {socket:?}");
                let [listener] = &socket.listeners[..] else { panic!("{asker}: {socket:?}") };
                assert_eq!((listener.inode, listener.queued, listener.candidate), (inodes[1], hung, false));
                assert_eq!(listener.local, SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
            }
        }

        // Now two hang, and the kernel does not say which of the two has which connection.
        while queued(&listeners[2]) == 0 {
            clients.push(client(port, false));
            drain(&listeners[0]);
        }
        let waiting = || (queued(&listeners[1]), queued(&listeners[2]));
        wait_for("both queues", || {
            drain(&listeners[0]);
            let (second, third) = waiting();
            close_waits(port) == (second + third) as usize
        });
        let (second, third) = waiting();
        let all = (second + third) as usize;
        // The workers alone hold them.
        drop(listeners);
        let both = in_order(vec![workers[1].pid(), workers[2].pid()]);
        for (asker, document) in askers.ask(port) {
            for socket in not_accepted(asker, &document, all) {
                assert_eq!(pids(&socket.owners), both, "{asker}: {socket:?}");
                assert!(socket.owners.iter().all(|owner| owner.candidate), "{asker}: {socket:?}");
                let queue = |pid: u32| {
                    let owner = socket.owners.iter().find(|owner| owner.pid == pid).unwrap();
                    socket.listener_of(owner).unwrap().queued
                };
                assert_eq!((queue(workers[1].pid()), queue(workers[2].pid())), (second, third), "{asker}");
            }
        }
        let text = agent.stuck(&["--older-than", "0s", "--port", &port.to_string()]);
        let text = String::from_utf8(text.stdout).unwrap();
        let longest = if second >= third { 1 } else { 2 };
        let first = format!("candidate {}[{}] +1", name(longest), workers[longest].pid());
        assert!(text.contains(&first), "{first}: {text}");

        // Other tests' processes share sockets, too.
        let what = "tcpclose_stuck_owner_sockets";
        let metrics = agent.metrics_when(PATIENCE, "all are shared by two", |metrics| {
            metrics.sum(what, &[("comm", "shared by 2")]) >= all as f64
        });
        let mut workers = workers;
        let is_blamed = |metrics: &Metrics, worker: usize| metrics.has(what, &[("comm", &name(worker))]);
        assert!((0..3).all(|worker| !is_blamed(&metrics, worker)), "{}", metrics.text);
        // A worker that ends takes its queue with it: what is left is one worker's, and nobody else is blamed.
        drop(workers.remove(2));
        let metrics = agent.metrics_when(PATIENCE, "all are the second's", |metrics| {
            metrics.sum(what, &[("comm", &name(1))]) == f64::from(second)
        });
        assert!([0, 2].iter().all(|worker| !is_blamed(&metrics, *worker)), "{}", metrics.text);
    });
}

#[test]
#[ignore = "needs root"]
fn what_a_forked_servers_processes_share_is_counted_for_none_of_them() {
    // New owners' series have a budget: an agent of this namespace alone does not spend it on other tests' processes.
    Named::new("forked").inside(|| {
        let _alone = stage::alone();
        let agent = Agent::start(&["--stuck-after", "1s", "--owner-interval", "200ms", "--netns", "current"]);
        let (port, sleeper) = (free_port(), Sleeper::new());
        let name = format!("fork-{}", std::process::id());
        let listener = listen(port, false);
        let _client = client(port, false);
        let pair = (client(port, false), listener.accept().unwrap().0);
        wait_for("two in CLOSE-WAIT", || close_waits(port) == 2);
        // One socket that was accepted, and one in the queue: three processes hold each.
        let _workers = [1, 2, 3].map(|_| {
            let mut command = Command::new(sleeper.program(&name));
            command.arg("1000").stdout(std::process::Stdio::from(stage::owned(&listener)));
            Child::holding(&mut command, &pair.1)
        });
        drop((listener, pair.1));
        let shared = format!("{name} (shared by 3)");
        let what = "tcpclose_stuck_owner_sockets";
        let metrics = agent.metrics_when(PATIENCE, "two, shared by three", |metrics| {
            metrics.sum(what, &[("comm", &shared)]) == 2.0
        });
        assert!(!metrics.has(what, &[("comm", &name)]), "{}", metrics.text);
    });
}

/// A program of the type sk_lookup sends every connection to one listener, whatever its address, as TPROXY's rules do.
#[test]
#[ignore = "needs root"]
fn what_sk_lookup_put_into_another_listeners_queue_has_a_candidate() {
    let sleeper = Sleeper::new();
    let scenes = [false, true].map(|transparent| {
        let netns = Named::new(if transparent { "steered1" } else { "steered0" });
        let (port, proxy_port, open_port, reset_port) = (free_port(), free_port(), free_port(), free_port());
        let (proxy, others, clients) = netns.inside(|| {
            let proxy = listen(proxy_port, transparent);
            // These two have a queue too: of a connection to their own address, which explains it, and of one that was reset
            // and is in no dump.
            let others = [listen(open_port, false), listen(reset_port, false)];
            let open = TcpStream::connect((Ipv4Addr::LOCALHOST, open_port)).unwrap();
            let reset = TcpStream::connect((Ipv4Addr::LOCALHOST, reset_port)).unwrap();
            SockRef::from(&reset).set_linger(Some(Duration::ZERO)).unwrap();
            drop(reset);
            let steering = SkLookup::to(&proxy, &netns.file());
            let clients = [client(port, false), client(port, false)];
            drop(steering);
            wait_for("two in CLOSE-WAIT", || close_waits(port) == 2);
            wait_for("their queue", || queued(&proxy) == 2);
            assert_eq!(others.each_ref().map(queued), [1, 1]);
            (proxy, others, (open, clients))
        });
        let holder = sleeper.holding(&format!("proxy-{}", std::process::id()), &proxy);
        let ours = inode(&proxy);
        // Of a listener that is not transparent no transparent connection can be.
        let candidates = if transparent { vec![ours] } else { vec![ours, inode(&others[1])] };
        ((port, proxy_port), holder, candidates, (netns, others, clients))
    });
    let askers = Askers::start();
    for ((port, proxy_port), holder, candidates, _kept) in &scenes {
        for (asker, document) in askers.ask(*port) {
            for socket in not_accepted(asker, &document, 2) {
                assert_eq!(socket.port, *port, "{asker}");
                let listeners: Vec<u32> = socket.listeners.iter().map(|listener| listener.inode).collect();
                assert_eq!(listeners, *candidates, "{asker}: {socket:?}");
                assert!(socket.listeners.iter().all(|listener| listener.candidate), "{asker}: {socket:?}");
                let proxy = &socket.listeners[0];
                assert_eq!((proxy.local.port(), proxy.queued), (*proxy_port, 2), "{asker}");
                let owner = socket.owners.iter().find(|owner| owner.pid == holder.pid()).unwrap();
                assert!(owner.candidate && owner.listener == Some(proxy.inode), "{asker}: {owner:?}");
            }
        }
    }
}
