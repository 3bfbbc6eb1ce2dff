//! What outlives an agent: ages, and nothing that is not true any more. Agents are killed, told to end, and followed by
//! others on the same state directory.

use crate::common;
pub mod folder;
pub mod stage;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, BINARY, HOOKS, free_port, try_get_unix};
use rustix::process::Signal;
use stage::*;
use tcpclose::linux::host;
use tcpclose::names::{Phase, Side};
use tcpclose::tracker::state_format;

#[test]
#[ignore = "needs root"]
fn ages_outlive_a_killed_agent() {
    for hook in HOOKS {
        let folder = tempfile::tempdir().unwrap();
        let port = Port::new();
        let name = port.port.to_string();
        let arguments = ["--state-hook", hook, "--stuck-after", "500ms,1h", "--name-port", &name];
        let mut first = Agent::begin_in(folder.path(), &arguments);
        first.until_ready().unwrap();
        (0..3).for_each(|_| port.whole());
        let stayed = port.close_waits(20);
        let mut closed = port.close_waits(5);
        let mut stepped: Vec<Connection> = (0..5).map(|_| port.clogged()).collect();
        let all: Vec<&Connection> = stayed.iter().chain(&closed).chain(&stepped).collect();
        until_kept(folder.path(), &all);
        let here = [("port", name.as_str())];
        first.metrics_when(PATIENCE, "three closes", |metrics| {
            metrics.sum("tcpclose_closes_total", &here) >= 3.0
        });
        first.end(Signal::KILL);
        let saved = on_file(folder.path()).unwrap().until_ns();
        assert_ne!(saved, 0, "no record was lost");

        // While no agent runs.
        for connection in &mut closed {
            drop(connection.server.take());
        }
        stepped.iter_mut().for_each(Connection::close);
        let new = port.close_waits(10);
        sleep(Duration::from_millis(600));

        let mut second = Agent::begin_in(folder.path(), &arguments);
        // So that the agent sees records before its first dump is in.
        let (busy, ready) = (Port::new(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ready.load(Ordering::Relaxed) {
                    busy.whole();
                    sleep(Duration::from_micros(500));
                }
            });
            let _stop = Raise(&ready);
            scrape_from_the_first_moment(&mut second, port.port, stayed.len() + new.len());
        });
        assert!(!second.printed().contains("WARN"), "{}", second.printed());
        let metrics = second.metrics();
        assert_eq!(metrics.sum("tcpclose_closes_total", &here), 0.0, "counters start at 0");
        assert_eq!(metrics.sum("tcpclose_state_duration_seconds_count", &here), 0.0);
        let stuck = metrics.sum("tcpclose_stuck_sockets", &[("age", "500ms"), ("side", "server"), here[0]]);
        assert!(stuck as usize >= stayed.len(), "{stuck} stuck: an alert would resolve");

        let answer = port.ask(&second, Phase::CloseWait);
        assert_eq!(answer.sockets.len(), stayed.len() + new.len(), "the closed ones are not there");
        for connection in &stayed {
            assert!(answer.holds(connection), "{hook}: not exact: {:?}", answer.find(connection));
            assert_eq!(answer.find(connection).side, Side::Server);
        }
        for connection in &new {
            assert!(!answer.holds(connection), "{hook}: nobody saw it enter: {:?}", answer.find(connection));
        }
        // The clients are in FIN-WAIT-2 since, and the kernel no longer knows whose FIN was first.
        let clients = port.ask(&second, Phase::FinWait2);
        let exact =
            clients.sockets.iter().filter(|socket| socket.age.exact && socket.side == Side::Client).count();
        assert!(exact >= stayed.len(), "{exact} exact of {}", clients.sockets.len());

        let answer = port.ask(&second, Phase::LastAck);
        assert_eq!(answer.sockets.len(), stepped.len());
        for connection in &stepped {
            assert!(!answer.holds(connection));
            let age = answer.find(connection).age;
            let since_saved = (answer.asked.done - saved) as f64 / 1e9;
            assert!(age.max_seconds.unwrap() <= since_saved + 0.2, "{age:?}, and saved {since_saved} s ago");
        }

        // What was kept makes a sample of its whole length when it ends.
        let (begun, ended) = (stayed[0].entered, host::monotonic_ns());
        drop(stayed);
        let done = [("state", "close_wait"), here[0]];
        let metrics = second.metrics_when(PATIENCE, "20 samples", |metrics| {
            metrics.sum("tcpclose_state_duration_seconds_count", &done) >= 20.0
        });
        let mean = metrics.sum("tcpclose_state_duration_seconds_sum", &done) / 20.0;
        assert!(mean >= 0.6 && mean <= (host::monotonic_ns() - begun.begun) as f64 / 1e9, "{mean}, {ended}");
    }
}

#[test]
#[ignore = "needs root"]
fn asked_to_end_an_agent_saves_what_it_has_just_seen() {
    let folder = tempfile::tempdir().unwrap();
    let port = Port::new();
    let mut first = Agent::begin_in(folder.path(), &[]);
    first.until_ready().unwrap();
    let late = port.close_waits(5);
    assert!(first.end(Signal::TERM).success());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state_file(folder.path())), 0o600);

    let mut second = Agent::begin_in(folder.path(), &[]);
    second.until_ready().unwrap();
    let answer = port.ask(&second, Phase::CloseWait);
    assert!(late.iter().all(|connection| answer.holds(connection)));
}

#[test]
#[ignore = "needs root"]
fn a_state_of_no_use_is_one_line_and_the_agent_starts_without_it() {
    let port = Port::new();
    let stayed = port.close_wait();
    let boot_id = host::boot_id();
    let sound = state_format::write(&boot_id, &[], 0);
    let mut flipped = sound.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let elsewhere = state_format::write("11111111-2222-3333-4444-555555555555", &[], 0);
    let torn = [&sound[..], b"torn"].concat();
    for (bytes, complaint) in [
        (flipped, Some("it is corrupt (the checksum of a batch differs)")),
        (b"banana".to_vec(), Some("it is corrupt")),
        (Vec::new(), Some("it is corrupt")),
        (elsewhere, Some("it is from another boot of this host")),
        (torn, None),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = state_file(folder.path());
        fs::write(&path, bytes).unwrap();
        let mut agent = Agent::begin_in(folder.path(), &[]);
        agent.until_ready().unwrap();
        let printed = agent.printed();
        let lines: Vec<&str> =
            printed.lines().filter(|line| line.contains("cannot use the state file")).collect();
        println!("{lines:?}");
        match complaint {
            Some(why) => assert!(
                matches!(lines[..], [line] if line.contains(why) && line.contains(path.to_str().unwrap()) && line.contains("no action is needed")),
                "{printed}"
            ),
            None => assert_eq!(lines.len(), 0, "{printed}"),
        }
        let answer = port.ask(&agent, Phase::CloseWait);
        answer.holds(&stayed);
        // A new one takes its place.
        until_kept(folder.path(), &[&stayed]);
    }
}

#[test]
#[ignore = "needs root"]
fn killed_again_and_again_under_load() {
    let folder = tempfile::tempdir().unwrap();
    let (port, busy) = (Port::new(), Port::new());
    let name = port.port.to_string();
    let arguments = ["--name-port", name.as_str()];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut connections = 0;
            while !stop.load(Ordering::Relaxed) {
                busy.whole();
                // A thousand a second or so: other tests want the machine, too.
                sleep(Duration::from_millis(1));
                connections += 1;
            }
            connections
        });
        let stopping = Raise(&stop);
        let mut stayed: Vec<Connection> = Vec::new();
        for round in 0..=10 {
            let mut agent = Agent::begin_in(folder.path(), &arguments);
            agent.until_ready().unwrap();
            assert!(!agent.printed().contains("cannot use the state file"), "{}", agent.printed());
            let answer = port.ask(&agent, Phase::CloseWait);
            assert_eq!(answer.sockets.len(), stayed.len());
            for connection in &stayed {
                assert!(answer.holds(connection), "round {round}: {:?}", answer.find(connection));
            }
            if round == 10 {
                break;
            }
            stayed.extend(port.close_waits(3));
            until_kept(folder.path(), &stayed.iter().collect::<Vec<_>>());
            // At any moment of a save, too.
            sleep(Duration::from_millis(37 * round));
            agent.end(Signal::KILL);
        }
        drop(stopping);
        println!("{} connections meanwhile", load.join().unwrap());
    });
}

#[test]
#[ignore = "needs root"]
fn a_full_disk_is_one_line_until_there_is_room_again() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("tcpclose.sock");
    let disk = folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let printed = folder.path().join("said");
    // Room for all that other tests do meanwhile.
    let mounts = "mount -t tmpfs -o size=8m,mode=0700 none \"$DISK\"; exec \"$@\"";
    let agent = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-ec", mounts, "sh", BINARY])
        .args(["agent", "--listen", "127.0.0.1:0", "--socket"])
        .arg(&socket)
        .arg("--state-dir")
        .arg(&disk)
        .env("DISK", &disk)
        .stderr(fs::File::create(&printed).unwrap())
        .spawn()
        .unwrap();
    let mut agents = Started(vec![agent]);
    let agent = &mut agents.0[0];
    let printed = || fs::read_to_string(&printed).unwrap();
    let until = |what: &str, done: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < 2 * PATIENCE, "not {what}: {}", printed());
            sleep(Duration::from_millis(20));
        }
    };
    until("ready", &|| try_get_unix(&socket, "/readyz").is_ok_and(|(status, _)| status == 200));
    let there = PathBuf::from(format!("/proc/{}/root", agent.id())).join(disk.strip_prefix("/").unwrap());
    let filler = there.join("filler");
    let mut filling = fs::File::create(&filler).unwrap();
    while filling.write_all(&[0; 4096]).is_ok() {}
    let port = Port::new();
    let many = port.close_waits(200);
    until("full", &|| printed().contains("until this works again"));
    sleep(Duration::from_secs(2));
    assert_eq!(printed().lines().filter(|line| line.contains("WARN")).count(), 1, "{}", printed());
    assert!(
        printed().contains("No space left on device") && printed().contains("free disk space"),
        "{}",
        printed()
    );
    assert_eq!(try_get_unix(&socket, "/healthz").unwrap().0, 200);
    drop(filling);
    fs::remove_file(&filler).unwrap();
    let kept = port.close_wait();
    until("saved again", &|| printed().contains("can be written again"));
    drop(many);
    until_kept(&there, &[&kept]);
    rustix::process::kill_process(rustix::process::Pid::from_child(agent), Signal::TERM).unwrap();
    assert!(agent.wait().unwrap().success());
}

/// What saving costs while 100,000 TIME-WAITs are there and connections close as fast as this machine makes them.
#[test]
#[ignore = "a measurement"]
fn measure_what_saving_costs_under_load() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, free_port())).unwrap();
    let port = listener.local_addr().unwrap().port();
    let whole = |n: u64| {
        // 28,000 ports are not enough for one address.
        let mut client = TcpStream::connect((Ipv4Addr::new(127, 0, 0, 2 + (n % 16) as u8), port)).unwrap();
        drop(listener.accept().unwrap());
        client.read_to_end(&mut Vec::new()).unwrap();
    };
    (0..100_000).for_each(whole);
    let mut agent = Agent::begin_in(folder.path(), &["--log-level", "debug"]);
    agent.until_ready().unwrap();
    let start = Instant::now();
    let mut closes = 0;
    while start.elapsed() < Duration::from_secs(22) {
        whole(closes);
        closes += 1;
    }
    println!("{} closes a second, each of two sockets", closes as f64 / start.elapsed().as_secs_f64());
    println!("{} TIME-WAITs", agent.metrics().sum("tcpclose_sockets", &[("state", "time_wait")]));
    let printed = agent.printed();
    let costs: Vec<&str> = printed.lines().filter(|line| line.contains(" saves in ")).collect();
    println!("{}", costs.join("\n"));
    assert_ne!(costs.len(), 0);
}
