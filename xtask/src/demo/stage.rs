//! The processes of the demo, each with a name of its own, all in one network namespace.

use std::collections::VecDeque;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::process::parent_id;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::with_parent;
use crate::sh;

/// A description of the demo, for people.
pub const WORDS: &str = "The demo runs these processes in their own network namespace:
  leaky-api     answers on port 8080 and never closes: CLOSE-WAIT
  tidy-web      answers on port 8443 and closes
  visitors      call both, and close first: TIME-WAIT
  port-eater    has 64 ephemeral ports, and a TIME-WAIT keeps each for a minute
  rude-peer     calls tidy-web and hangs up without reading: resets";

const LEAKY: u16 = 8080;
const TIDY: u16 = 8443;

/// Run a process of the demo (internal)
#[derive(clap::Args)]
pub struct Arguments {
    #[arg(value_enum)]
    role: Role,
    /// The demo's folder
    #[arg(long)]
    of: String,
    /// Parent process
    #[arg(long)]
    parent: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Prepares the namespace, and starts the others.
    Stage,
    LeakyApi,
    TidyWeb,
    Visitors,
    PortEater,
    RudePeer,
}

/// Servers first.
const PLAYERS: [Role; 5] = [Role::LeakyApi, Role::TidyWeb, Role::Visitors, Role::PortEater, Role::RudePeer];

/// Settings of the demo's namespace: few ports, and on loopback too a TIME-WAIT keeps its own
/// (tcp_tw_reuse is 2 by default since 4.19, which lets loopback reuse them after a second).
const SETTINGS: [(&str, &str); 2] =
    [("net/ipv4/ip_local_port_range", "40000 40063"), ("net/ipv4/tcp_tw_reuse", "0")];

/// Starts the processes in a network namespace of their own.
pub fn start(folder: &Path) -> Result<Child> {
    let mut command = with_parent("KILL", "unshare");
    command
        .args(["--net", "--"])
        .arg(std::env::current_exe().context("cannot find the path of xtask itself")?);
    player(&mut command, Role::Stage, &folder.display().to_string());
    // Every player has it open: it ends when the last one has.
    command.stdout(Stdio::piped());
    command.spawn().context("cannot start the demo's processes")
}

fn player(command: &mut Command, role: Role, of: &str) {
    command.args(["demo-player", "--of", of, "--parent", &std::process::id().to_string(), &name(role)]);
    command.stdin(Stdio::null());
}

fn name(role: Role) -> String {
    role.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Plays a role for ever.
pub fn play(arguments: &Arguments) -> Result<()> {
    // The parent that ended before setpriv had asked for the signal sends none.
    if parent_id() != arguments.parent {
        return Ok(());
    }
    // What `tcpclose stuck` shows as the owner's name: 15 bytes.
    fs::write("/proc/self/comm", name(arguments.role)).context("cannot set the process name")?;
    match arguments.role {
        Role::Stage => direct(&arguments.of),
        Role::LeakyApi => leak(),
        Role::TidyWeb => serve(),
        Role::Visitors => visit(),
        Role::PortEater => eat(),
        Role::RudePeer => hang_up(),
    }
}

/// Every other role's parent: they are killed when it ends.
fn direct(of: &str) -> Result<()> {
    sh::ask(Command::new("ip").args(["link", "set", "lo", "up"])).context("cannot set up loopback")?;
    for (name, value) in SETTINGS {
        fs::write(Path::new("/proc/sys").join(name), value).with_context(|| format!("cannot set {name}"))?;
    }
    let xtask = std::env::current_exe().context("cannot find the path of xtask itself")?;
    let players = PLAYERS.map(|role| {
        let mut command = with_parent("KILL", &xtask);
        player(&mut command, role, of);
        command.spawn()
    });
    for player in players {
        player.context("cannot start a process of the demo")?.wait()?;
    }
    Ok(())
}

fn listen(port: u16) -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| format!("cannot listen on port {port}"))
}

/// Calls a server; one that has just been started may not listen yet, and ports may have run out.
fn call(port: u16) -> Option<TcpStream> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()
}

/// Takes a line and answers it.
fn answer(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut line = [0; 64];
    while stream.read(&mut line)? > 0 {
        if line.contains(&b'\n') {
            return stream.write_all(&[b'.'; 512]);
        }
    }
    Err(ErrorKind::UnexpectedEof.into())
}

/// A server whose program loses its connections: never closed, so that they stay in CLOSE-WAIT. So many that no limit is
/// met, the oldest are closed then.
fn leak() -> Result<()> {
    const MOST: usize = 500;
    let mut lost = VecDeque::new();
    for stream in listen(LEAKY)?.incoming() {
        let mut stream = stream?;
        let _ = answer(&mut stream);
        // It sees the end of the stream, and forgets what to do then.
        let _ = stream.read(&mut [0]);
        lost.push_back(stream);
        if lost.len() > MOST {
            lost.pop_front();
        }
    }
    Ok(())
}

/// A server that closes when its client has.
fn serve() -> Result<()> {
    for stream in listen(TIDY)?.incoming() {
        let mut stream = stream?;
        thread::spawn(move || {
            let _ = answer(&mut stream);
            // The client's FIN, or its RST.
            let _ = stream.read(&mut [0]);
        });
    }
    Ok(())
}

/// Asks, and reads the answer.
fn ask(port: u16) -> Option<TcpStream> {
    let mut stream = call(port)?;
    stream.write_all(b"hello\n").ok()?;
    let mut taken = [0; 512];
    stream.read_exact(&mut taken).ok()?;
    Some(stream)
}

fn visit() -> Result<()> {
    loop {
        for port in [LEAKY, TIDY, TIDY] {
            // Closed at once: the server has the FIN.
            drop(ask(port));
            sleep(Duration::from_millis(700));
        }
    }
}

/// Three connections a second, each closed here first: after 20 s there is no port left for that server.
fn eat() -> Result<()> {
    loop {
        if let Some(stream) = ask(TIDY) {
            let _ = stream.shutdown(Shutdown::Write);
        }
        sleep(Duration::from_millis(330));
    }
}

/// Whoever closes with data unread resets the connection (tcp_close(), "data_was_unread").
fn hang_up() -> Result<()> {
    loop {
        if let Some(mut stream) = call(TIDY)
            && stream.write_all(b"hello\n").is_ok()
        {
            // Part of the answer, so that the rest has come.
            let _ = stream.read(&mut [0]);
        }
        sleep(Duration::from_millis(900));
    }
}
