//! Numbers stay fresh whatever local users make: very long mount tables, many network namespaces that come and go. The gauges
//! of the host's namespace equal `ss` within seconds, and what the search left out is named.

use crate::common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, BINARY, free_port};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// An ordinary user of the host, who has no account and needs none.
pub const USER: u32 = 64_123;
/// The states whose gauges are held against `ss`, by both names.
const STATES: [(&str, &str); 3] =
    [("close_wait", "close-wait"), ("time_wait", "time-wait"), ("fin_wait_2", "fin-wait-2")];

/// A shell of an ordinary user in namespaces of its own, which runs `script`, says `done`, and ends with this.
pub struct Tenant {
    child: Child,
}

impl Tenant {
    /// `options`: of unshare(1), besides a user namespace. `None` where an ordinary user may make none.
    pub fn start(options: &[&str], script: &str) -> Option<Self> {
        // It ends when its standard input does, whatever becomes of this test.
        let script = format!("{script}\necho done\nread -r _\n");
        let mut child = Command::new("unshare")
            .args(["--user", "--map-root-user"])
            .args(options)
            .args(["sh", "-c", &script])
            .uid(USER)
            .gid(USER)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.trim() == "done" {
            return Some(Self { child });
        }
        let mut why = String::new();
        child.stderr.take().unwrap().read_to_string(&mut why).unwrap();
        child.wait().unwrap();
        eprintln!("SKIPPED: an ordinary user may not do this here: {why}");
        None
    }

    /// One with a mount table of some 2^`doublings` lines.
    fn with_mounts(doublings: u32) -> Option<Self> {
        // A copy of the tree below itself doubles it.
        let script = format!(
            "set -e\nmount -t tmpfs none /mnt\nmkdir /mnt/a\nmount --bind /mnt/a /mnt/a\n\
             for n in $(seq {doublings}); do mkdir /mnt/a/$n; mount --rbind /mnt/a /mnt/a/$n; done"
        );
        Self::start(&["--mount"], &script)
    }

    /// Leaves a TIME-WAIT in its network namespace.
    fn close_one(&self) {
        let namespace = File::open(format!("/proc/{}/ns/net", self.child.id())).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(namespace.as_fd(), network).unwrap();
                Service::begin_at(80).close(1, 0);
            });
        });
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn mounts(&self) -> usize {
        let table = std::fs::read(format!("/proc/{}/mountinfo", self.child.id())).unwrap();
        table.iter().filter(|byte| **byte == b'\n').count()
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

/// A server whose clients close, in the host's namespace: what closes stays in TIME-WAIT, what leaks in CLOSE-WAIT.
struct Service {
    listener: TcpListener,
    port: u16,
    leaked: Vec<(TcpStream, TcpStream)>,
}

impl Service {
    fn begin() -> Self {
        Self::begin_at(free_port())
    }

    fn begin_at(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        Self { listener, port, leaked: Vec::new() }
    }

    fn close(&mut self, time_waits: usize, close_waits: usize) {
        for nth in 0..time_waits + close_waits {
            let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = self.listener.accept().unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
            if nth >= time_waits {
                self.leaked.push((client, server));
            }
        }
    }

    /// Closes what leaks: minisockets are left.
    fn end(&mut self) {
        self.leaked.clear();
    }

    /// What `ss` shows of the port, by state.
    fn ss(&self) -> Vec<usize> {
        let count = |state: &str| {
            let filter = format!("( sport = :{0} or dport = :{0} )", self.port);
            let output = Command::new("ss").args(["-tanH", "state", state, &filter]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().lines().count()
        };
        STATES.iter().map(|(_, name)| count(name)).collect()
    }

    /// Waits until the gauges are what `ss` shows before and after them. Returns how long that took.
    fn until_equal(&self, agent: &Agent, when: &str) -> Duration {
        /// Far more than the product needs, which the ages say: a busy machine is slow.
        const PATIENCE: Duration = Duration::from_secs(60);
        let begun = Instant::now();
        let port = self.port.to_string();
        loop {
            let before = self.ss();
            let metrics = agent.metrics();
            let gauge =
                |state| metrics.sum("tcpclose_sockets", &[("state", state), ("port", &port)]) as usize;
            let gauges: Vec<usize> = STATES.iter().map(|(state, _)| gauge(state)).collect();
            let after = self.ss();
            if before == after && gauges == after {
                let age = metrics.sum("tcpclose_gauges_age_seconds", &[("netns", "host")]);
                println!("{when}: gauges equal ss after {:.1?}, {age:.1} s old: {gauges:?}", begun.elapsed());
                return begun.elapsed();
            }
            assert!(begun.elapsed() < PATIENCE, "{when}: gauges {gauges:?}, ss {after:?}\n{}", metrics.text);
            sleep(Duration::from_millis(100));
        }
    }
}

/// What the agent itself says that its dumps are apart, and how old its numbers are.
fn interval(agent: &Agent) -> f64 {
    agent.metrics().sum("tcpclose_reconcile_interval_seconds", &[])
}

fn follows_minisockets(arguments: &[&str], port: u16) -> Agent {
    let name = format!("--name-port={port}");
    Agent::start(&[&["--time-wait", "diag", "--reconcile-interval", "2s", &name][..], arguments].concat())
}

/// Before, a search read all of each table and its cost was the dumps': they were minutes apart, also when the tables had
/// long gone.
fn long_tables(processes: usize, doublings: u32) {
    let mut service = Service::begin();
    let agent = follows_minisockets(&[], service.port);
    service.close(20, 5);
    service.until_equal(&agent, "before");
    let tenants: Option<Vec<Tenant>> = (0..processes).map(|_| Tenant::with_mounts(doublings)).collect();
    let Some(tenants) = tenants else { return };
    let mounts: Vec<usize> = tenants.iter().map(Tenant::mounts).collect();
    println!("mount tables of {mounts:?} lines");
    assert!(mounts.iter().all(|&mounts| mounts >= 1 << doublings), "{mounts:?}");

    // A search has met them.
    let met = Instant::now();
    loop {
        let ports: serde_json::Value = serde_json::from_str(&agent.get("/ports").1).unwrap();
        let incomplete = ports["incomplete"].to_string();
        if incomplete.contains(&format!("of user {USER} not read to the end")) {
            println!("after {:.1?}: {incomplete}", met.elapsed());
            break;
        }
        assert!(
            met.elapsed() < Duration::from_secs(60),
            "nothing is said of what was left out: {incomplete}"
        );
        sleep(Duration::from_millis(100));
    }
    service.close(20, 5);
    service.until_equal(&agent, "beside the mounts");
    // The dumps do not pay for the search: some milliseconds each.
    let apart = interval(&agent);
    assert!(apart <= 60.0, "{apart}");
    drop(tenants);
    service.end();
    service.until_equal(&agent, "after them");

    // A user who asks is answered by numbers of now, and does not wait for them long.
    let begun = Instant::now();
    let output = Command::new(BINARY)
        .args(["verify", "--for", "1s", "--socket"])
        .arg(agent.socket())
        .output()
        .unwrap();
    println!("verify took {:.1?}: {}", begun.elapsed(), output.status);
    assert!(output.status.code() != Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(agent.get("/readyz"), (200, "ready\n".to_owned()));
}

#[test]
#[ignore = "needs root"]
fn mount_tables_of_a_user_that_are_long_delay_no_dump() {
    long_tables(3, 12);
}

#[test]
#[ignore = "takes long: cargo xtask test --all"]
fn long_twelve_tables_of_seventy_thousand_mounts_delay_no_dump() {
    long_tables(12, 16);
}

/// 250 network namespaces of one user, each with a minisocket, while others come and go all the time.
#[test]
#[ignore = "takes long: cargo xtask test --all"]
fn long_hundreds_of_namespaces_of_a_user_do_not_delay_the_hosts_numbers() {
    const NAMESPACES: usize = 250;
    let mut service = Service::begin();
    let agent = follows_minisockets(&[], service.port);
    let tenants: Option<Vec<Tenant>> =
        (0..NAMESPACES).map(|_| Tenant::start(&["--net"], "ip link set lo up")).collect();
    let Some(tenants) = tenants else { return };
    tenants.iter().for_each(Tenant::close_one);
    let stop = Arc::new(AtomicBool::new(false));
    let churn = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                drop(Tenant::start(&["--net"], "ip link set lo up"));
            }
        })
    };
    let mut longest = Duration::ZERO;
    for round in 0..10 {
        service.close(10, 2);
        tenants.iter().skip(round * NAMESPACES / 10).take(NAMESPACES / 10).for_each(Tenant::close_one);
        sleep(Duration::from_secs(5));
        longest = longest.max(service.until_equal(&agent, &format!("round {round}")));
        let metrics = agent.metrics();
        let oldest = metrics.sum("tcpclose_gauges_age_seconds", &[("netns", "others")]);
        println!("others are {oldest:.1} s old, dumps {:.1} s apart", interval(&agent));
        assert!(oldest < 90.0, "{oldest}");
    }
    stop.store(true, Ordering::Relaxed);
    churn.join().unwrap();
    drop(tenants);
    service.end();
    service.until_equal(&agent, "after them");
    println!("the longest wait beyond 5 s was {longest:.1?}");
}
