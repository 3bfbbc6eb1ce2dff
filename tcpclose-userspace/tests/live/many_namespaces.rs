//! What the dumps cost on a host of many network namespaces, with many sockets in one of them.

use crate::cases::place;
use crate::common;

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Barrier;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, listen};
use place::{Netns, set_sysctl};
use socket2::{Domain, SockAddr, Socket, Type};

/// What dumps may take of a core. On a machine that does nothing else the agent with them stays below that too; what others
/// do here meanwhile it has to take the records of.
const SHARE: f64 = 0.01;
const SOCKETS: usize = 200_000;
const WATCHED: Duration = Duration::from_secs(40);

/// CPU time of a process, seconds.
fn cpu(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    // utime and stime, in ticks of which there are 100 a second (proc(5)).
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// Makes so many TIME-WAITs in the calling thread's namespace, each with an address and port of its own.
fn time_waits(listener: &TcpListener, count: usize) {
    let to = SockAddr::from(listener.local_addr().unwrap());
    for nth in 0..count {
        let from = SocketAddr::from(([127, 2, (nth / 10_000) as u8, 1], 10_000 + (nth % 10_000) as u16));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::from(from)).unwrap();
        socket.connect(&to).unwrap();
        let mut server = listener.accept().unwrap().0;
        drop(TcpStream::from(socket));
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
    }
}

fn one_percent(namespaces: usize) {
    let begun = Instant::now();
    let made = Barrier::new(namespaces + 1);
    let done = Barrier::new(namespaces + 1);
    std::thread::scope(|scope| {
        for nth in 0..namespaces {
            let (made, done) = (&made, &done);
            let thread = std::thread::Builder::new().stack_size(64 << 10);
            let inside = move || {
                let netns = Netns::enter_new().unwrap();
                // As containers are: one server each, a connection to each tenth of them.
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 80)).unwrap();
                let connected = (nth % 10 == 0).then(|| {
                    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                    (client, listener.accept().unwrap())
                });
                made.wait();
                done.wait();
                drop((netns, connected));
            };
            thread.spawn_scoped(scope, inside).unwrap();
        }
        made.wait();
        println!("{namespaces} namespaces after {:.1?}", begun.elapsed());
        let _full = Netns::enter_new().unwrap();
        set_sysctl("tcp_max_tw_buckets", "300000").unwrap();
        let listener = listen().0;
        let begun = Instant::now();
        time_waits(&listener, SOCKETS);
        let sockstat = fs::read_to_string("/proc/thread-self/net/sockstat").unwrap();
        println!("{SOCKETS} sockets after {:.1?}: {}", begun.elapsed(), sockstat.replace('\n', " "));

        // What an agent does besides: it takes the records of the whole host's connections.
        let idle = Netns::new(&[]).unwrap();
        let control = std::thread::scope(|scope| {
            let inside = || {
                idle.enter().unwrap();
                Agent::start(&["--netns", "current"])
            };
            scope.spawn(inside).join().unwrap()
        });
        let begun = Instant::now();
        let agent = Agent::start(&["--log-level", "info"]);
        let (ready, first) = (begun.elapsed(), cpu(agent.pid()));
        // The second of the first dumps is no matter of the pace either.
        sleep(Duration::from_secs(5));
        let both = || (cpu(agent.pid()), cpu(control.pid()));
        let (begun, before) = (Instant::now(), both());
        sleep(WATCHED);
        let (after, watched) = (both(), begun.elapsed().as_secs_f64());
        let besides = (after.1 - before.1) / watched;
        let all = (after.0 - before.0) / watched;
        let share = all - besides;
        let before = before.0;
        let metrics = agent.metrics();
        println!(
            "{namespaces} namespaces: ready after {ready:.1?} and {first} s of CPU, {before} s after the second; then \
             {:.2} % of a core: {:.2} % for dumps, {:.1} s apart, and {:.2} % besides",
            all * 100.0,
            share * 100.0,
            metrics.sum("tcpclose_reconcile_interval_seconds", &[]),
            besides * 100.0,
        );
        let asked = Instant::now();
        assert!(agent.stuck(&["--older-than", "1s"]).status.success());
        println!("stuck answers after {:.1?}", asked.elapsed());
        done.wait();
        assert!(share <= SHARE, "{share}");
    });
}

#[test]
#[ignore = "takes long: cargo xtask test --all"]
fn long_a_hundred_and_ten_namespaces_stay_within_one_percent() {
    one_percent(110);
}

#[test]
#[ignore = "takes long: cargo xtask test --all"]
fn long_a_thousand_namespaces_stay_within_one_percent() {
    one_percent(1000);
}
