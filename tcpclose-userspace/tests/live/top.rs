//! `tcpclose top` in a real terminal, tmux, with a live agent: what it shows, where keys lead, and that the terminal is given
//! back on every way out.

use crate::common;

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Agent, BINARY, free_port, half_closed_client};
use rustix::process::{Pid, Signal, kill_process};
use tcpclose::commands::top::screen::Screen;

const PATIENCE: Duration = Duration::from_secs(60);

/// A tmux server of its own with one shell, 80×24.
struct Tmux {
    socket: tempfile::TempDir,
}

impl Tmux {
    fn new() -> Self {
        let tmux = Self { socket: tempfile::tempdir().unwrap() };
        tmux.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "env PS1='ready> ' sh"]);
        tmux.until("a shell", |screen| screen.contains("ready>"));
        tmux
    }

    fn tmux(&self, words: &[&str]) -> String {
        let Output { status, stdout, stderr } = Command::new("tmux")
            .arg("-S")
            .arg(self.socket.path().join("tmux"))
            .args(words)
            .env_remove("TMUX")
            .output()
            .unwrap();
        assert!(status.success(), "tmux {words:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The screen when `done` holds for it.
    fn until(&self, what: &str, done: impl Fn(&str) -> bool) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen();
            if done(&screen) {
                return screen;
            }
            assert!(Instant::now() < until, "not there: {what}\n{screen}");
            sleep(Duration::from_millis(50));
        }
    }

    /// Types `keys` as tmux names them.
    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// Runs `command`, and waits for its first picture.
    fn top(&self, environment: &str, socket: &Path) -> String {
        let command = format!(
            "clear; env -u NO_COLOR {environment} {BINARY} top --socket {}; echo left $?",
            socket.display()
        );
        self.keys(&[&command, "Enter"]);
        self.until("top", |screen| screen.contains("tcpclose top") && screen.contains("q quit"))
    }

    /// The program that the shell runs.
    fn child(&self) -> Pid {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let shell = shell.trim();
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).unwrap();
        Pid::from_raw(children.split_whitespace().next().unwrap().parse().unwrap()).unwrap()
    }

    /// Waits for the shell, and checks that the terminal is what it was.
    fn given_back(&self, status: u8) -> String {
        let left = format!("left {status}");
        let screen = self.until(&left, |screen| screen.contains(&left) && screen.contains("ready>"));
        assert_eq!(self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]).trim(), "0 1");
        self.keys(&["clear; stty -a", "Enter"]);
        let modes = self.until("stty", |screen| screen.contains("icanon") && screen.contains("opost"));
        for off in ["-icanon", "-echo ", "-isig", "-opost", "-icrnl"] {
            assert!(!modes.contains(off), "{off}: {modes}");
        }
        screen
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[test]
#[ignore = "needs root"]
fn from_the_ports_to_a_sockets_owner_and_back_to_the_shell() {
    let port = free_port();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let mut agent = Agent::start(&["--stuck-after", "1s", "--name-port", &port.to_string()]);
    let held: Vec<_> = (0..3).map(|_| (half_closed_client(port, b"x"), listener.accept().unwrap())).collect();
    let label = port.to_string();
    agent.metrics_when(PATIENCE, "three are stuck", |metrics| {
        metrics.sum("tcpclose_stuck_sockets", &[("port", &label)]) == 3.0
    });
    let (tmux, socket) = (Tmux::new(), agent.socket());
    tmux.top("", &socket);
    // Among the stuck ones of a busy host it may not be the first: the filter finds it.
    tmux.keys(&["/", "server", "Space", &label, "Enter"]);
    let is_row = |line: &str| {
        let cells: Vec<&str> = line.split_whitespace().collect();
        cells.len() == 13 && cells[..4] == ["server", &label, "3", "3"]
    };
    let below = format!("server port {port}: 0 closes");
    let screen = tmux.until("its row", |screen| screen.lines().any(is_row) && screen.contains(&below));
    println!("{screen}");
    // tmux writes a colour of 256 as 38;5;N, and the terminal's own as 39 and 49.
    let colours = |tmux: &Tmux| tmux.tmux(&["capture-pane", "-p", "-e"]).matches("8;5;").count();
    assert!(colours(&tmux) > 0, "what is stuck is red");

    // Any size, while it runs.
    for (width, height) in [("50", "10"), ("80", "24"), ("120", "40")] {
        tmux.tmux(&["resize-window", "-x", width, "-y", height]);
        tmux.until("its row after a resize", |screen| {
            let fits = screen.lines().all(|line| line.chars().count() <= width.parse().unwrap());
            fits && screen.contains(&format!("server  {label:>5}     3     3 "))
                && screen.contains("filter: ")
        });
    }

    let owner = format!("[{}]:", std::process::id());
    tmux.keys(&["Enter"]);
    let screen = tmux.until("its sockets", |screen| screen.matches(&owner).count() == 3);
    println!("{screen}");
    assert_eq!(screen.matches("CLOSE-WAIT").count(), 3, "{screen}");
    tmux.keys(&["Down", "Enter"]);
    let screen =
        tmux.until("one of them", |screen| screen.contains("CLOSE-WAIT for ") && screen.contains("queues"));
    println!("{screen}");
    assert!(screen.contains(&owner) && screen.contains("1 bytes unread"), "{screen}");
    tmux.keys(&["Escape"]);
    tmux.until("its sockets again", |screen| screen.contains("OWNER[PID]:FD"));
    tmux.keys(&["Escape"]);
    tmux.until("the ports again", |screen| screen.contains("MEDIAN"));
    tmux.keys(&["q"]);
    tmux.given_back(0);

    // Other ways out.
    for signal in [Signal::TERM, Signal::INT] {
        tmux.top("NO_COLOR=1", &socket);
        assert_eq!(colours(&tmux), 0, "NO_COLOR");
        kill_process(tmux.child(), signal).unwrap();
        tmux.given_back(0);
    }
    tmux.top("", &socket);
    tmux.keys(&["C-c"]);
    tmux.given_back(0);
    tmux.top("", &socket);
    agent.end(Signal::TERM);
    tmux.until("that the agent is gone", |screen| {
        screen.contains("tcpclose: agent at") && screen.contains("q quit")
    });
    let screen = tmux.given_back(2);
    assert!(screen.contains("tcpclose: agent at"), "{screen}");
    drop(held);
}

#[test]
#[ignore = "panics: run by the test below, in a terminal"]
fn program_a_panic_on_the_screen() {
    let _screen = Screen::take().unwrap();
    panic!("on purpose");
}

#[test]
fn a_panic_gives_the_terminal_back() {
    let tmux = Tmux::new();
    let own = std::env::current_exe().unwrap();
    let arguments = "--ignored --exact top::program_a_panic_on_the_screen --nocapture";
    let command = format!("clear; RUST_BACKTRACE=0 {} {arguments}; echo left $?", own.display());
    tmux.keys(&[&command, "Enter"]);
    let screen = tmux.given_back(101);
    assert!(screen.contains("on purpose"), "{screen}");
}

#[test]
fn where_there_is_no_terminal_one_line_says_so() {
    let output = Command::new(BINARY).arg("top").stdin(Stdio::null()).output().unwrap();
    let printed = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), printed.lines().count()), (Some(2), 1), "{printed}");
    assert!(
        printed.starts_with("tcpclose: top: standard input and output are not a terminal; "),
        "{printed}"
    );

    let tmux = Tmux::new();
    tmux.keys(&[&format!("clear; TERM=dumb {BINARY} top; echo left $?"), "Enter"]);
    assert!(tmux.given_back(2).contains("cannot draw on this terminal"));
    tmux.keys(&[&format!("clear; {BINARY} top --socket /nowhere; echo left $?"), "Enter"]);
    assert!(tmux.given_back(2).contains("tcpclose: agent at /nowhere: no agent is running there"));
}
