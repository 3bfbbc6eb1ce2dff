//! `stuck --chain`: haproxy in front of nginx in front of a program that does not close names that program, and not a proxy.

use crate::common::apart::{PATIENCE, apart};
use crate::common::{Agent, BINARY};
use crate::namespaces::named::{Named, ip};

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

/// In a network namespace of the test's own.
const FRONT: u16 = 9000;
const MIDDLE: u16 = 9001;
const APP: u16 = 9002;
const CLIENTS: usize = 5;

/// Reads to the end of each connection, and closes none.
const LEAKS: &str = "
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print('ready', flush=True)
held = []
while True:
    connection = listener.accept()[0]
    try:
        while connection.recv(64): pass
        held.append(connection)
    except ConnectionError: pass
";

/// A process that ends with the test.
pub struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// haproxy on this loopback's port `from` in front of what listens on `to`.
pub fn haproxy(folder: &Path, from: u16, to: SocketAddrV4) -> Program {
    let file = folder.join(format!("{from}.cfg"));
    let config = format!(
        "global\n  maxconn 100\ndefaults\n  mode tcp\n  timeout connect 10s\n  timeout client 1h\n  timeout server 1h\n\
         listen one\n  bind 127.0.0.1:{from}\n  server app {to}\n"
    );
    std::fs::write(&file, config).unwrap();
    proxy(Command::new("haproxy").args(["-db", "-q", "-f"]).arg(&file), from)
}

/// nginx, which passes each end of a stream on, in front of what listens on `to`.
pub fn nginx(folder: &Path, from: u16, to: SocketAddrV4) -> Program {
    let (file, folder) = (folder.join("nginx.conf"), folder.display());
    let config = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nmaster_process off;\n\
         pid {folder}/nginx.pid;\nerror_log {folder}/nginx.log;\nevents {{}}\nstream {{\n  server {{\n    listen 127.0.0.1:{from};\n    \
         proxy_pass {to};\n    proxy_half_close on;\n    proxy_timeout 1h;\n  }}\n}}\n"
    );
    std::fs::write(&file, config).unwrap();
    proxy(Command::new("nginx").arg("-c").arg(&file), from)
}

/// A proxy that listens on `port`.
fn proxy(command: &mut Command, port: u16) -> Program {
    let program = Program(command.spawn().unwrap());
    let until = Instant::now() + PATIENCE;
    // A connection that is closed at once, and passed on so.
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(Instant::now() < until, "{command:?} does not listen");
        sleep(Duration::from_millis(20));
    }
    program
}

fn leaking_program(at: SocketAddrV4) -> Program {
    let mut command = Command::new("python3");
    command.args(["-c", LEAKS, &at.ip().to_string(), &at.port().to_string()]);
    let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    Program(process)
}

pub fn local(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

/// The process ids of a chain's programs.
fn pids(chain: &Value) -> Vec<u64> {
    let links = chain["links"].as_array().unwrap().iter();
    links.map(|link| link["pid"].as_u64().unwrap()).collect()
}

/// The chains of what is stuck on the first proxy's port, in these namespaces.
fn chains(source: &[&str], netns: &str) -> Vec<Value> {
    let output = Command::new(BINARY)
        .args(["stuck", "--chain", "--json", "--older-than", "0s", "--netns", netns])
        .args(["--port", &FRONT.to_string()])
        .args(source)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    document["chains"].as_array().cloned().unwrap_or_default()
}

#[test]
#[ignore = "needs root"]
fn a_chain_of_proxies_names_the_program_that_does_not_close() {
    let agents = Agent::on_each_hook(&[]);
    apart(|| {
        let folder = tempfile::tempdir().unwrap();
        let app = leaking_program(local(APP));
        let middle = nginx(folder.path(), MIDDLE, local(APP));
        let front = haproxy(folder.path(), FRONT, local(MIDDLE));
        let mut clients: Vec<TcpStream> = (0..CLIENTS)
            .map(|_| {
                let client = TcpStream::connect((Ipv4Addr::LOCALHOST, FRONT)).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                client
            })
            .collect();
        let programs: Vec<u64> = [&front, &middle, &app].map(|program| u64::from(program.0.id())).into();
        for (hook, agent) in &agents {
            let socket = agent.socket();
            let source = ["--socket", socket.to_str().unwrap()];
            let until = Instant::now() + PATIENCE;
            loop {
                let chains = chains(&source, "current");
                let whole = |chain: &&Value| {
                    chain["end"] == "not_closed" && pids(chain) == programs && chain["count"] == CLIENTS
                };
                if chains.iter().any(|chain| whole(&chain)) {
                    // Nobody else is blamed.
                    assert!(
                        chains.iter().all(
                            |chain| chain["end"] != "not_closed" || pids(chain).last() == programs.last()
                        ),
                        "{hook}: {chains:?}"
                    );
                    break;
                }
                assert!(Instant::now() < until, "{hook}: {chains:?}, and not {programs:?}");
                sleep(Duration::from_millis(200));
            }
            let output = Command::new(BINARY)
                .args(["stuck", "--chain", "--older-than", "0s", "--netns", "current", "--port"])
                .arg(FRONT.to_string())
                .args(source)
                .output()
                .unwrap();
            let text = String::from_utf8(output.stdout).unwrap().replace("\n  ", " ");
            let [front, middle, app] = programs[..] else { unreachable!() };
            let path = format!(
                "haproxy[{front}]:{FRONT} → nginx[{middle}]:{MIDDLE} → python3[{app}]:{APP}: python3[{app}] has not closed"
            );
            assert!(text.contains(&path), "{text}");
        }
        // It ends when the program does, and not before.
        drop(app);
        for client in &mut clients {
            assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
        }
        // A program that passes nothing on is the last one itself.
        drop((front, middle));
        let app = leaking_program(local(APP));
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, APP)).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (_, agent) = &agents[0];
        let until = Instant::now() + PATIENCE;
        loop {
            let output = Command::new(BINARY)
                .args(["stuck", "--chain", "--older-than", "0s", "--netns", "current", "--port"])
                .args([&APP.to_string(), "--socket"])
                .arg(agent.socket())
                .output()
                .unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            if text.contains(&format!("python3[{0}]:{APP}: python3[{0}] has not closed", app.0.id())) {
                break;
            }
            assert!(Instant::now() < until, "{text}");
            sleep(Duration::from_millis(100));
        }
    });
}

#[test]
#[ignore = "needs root"]
fn a_chain_crosses_network_namespaces() {
    let agent = Agent::start(&[]);
    let (proxies, apps) = (Named::new("proxies"), Named::new("apps"));
    ip(&[
        "link",
        "add",
        "chain0",
        "netns",
        &proxies.name,
        "type",
        "veth",
        "peer",
        "name",
        "chain1",
        "netns",
        &apps.name,
    ]);
    for (netns, device, address) in [(&proxies, "chain0", "10.86.0.1/24"), (&apps, "chain1", "10.86.0.2/24")]
    {
        ip(&["-n", &netns.name, "address", "add", address, "dev", device]);
        ip(&["-n", &netns.name, "link", "set", device, "up"]);
    }
    let folder = tempfile::tempdir().unwrap();
    let at = SocketAddrV4::new(Ipv4Addr::new(10, 86, 0, 2), APP);
    let app = apps.inside(|| leaking_program(at));
    let (front, _client) = proxies.inside(|| {
        let front = haproxy(folder.path(), FRONT, at);
        let client = TcpStream::connect(local(FRONT)).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        (front, client)
    });
    let programs = [&front, &app].map(|program| u64::from(program.0.id()));
    let socket = agent.socket();
    let source = ["--socket", socket.to_str().unwrap()];
    let until = Instant::now() + PATIENCE;
    loop {
        let chains = chains(&source, "all");
        if chains.iter().any(|chain| chain["end"] == "not_closed" && pids(chain) == programs) {
            break;
        }
        assert!(Instant::now() < until, "{chains:?}, and not {programs:?}");
        sleep(Duration::from_millis(200));
    }
}
