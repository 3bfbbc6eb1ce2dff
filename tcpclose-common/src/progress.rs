//! The progress of long work: one line of the terminal, which the next one overwrites. Nothing is written where standard
//! error is not a terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The time from which progress is shown.
pub const WORTH: Duration = Duration::from_secs(1);

/// A longer line would wrap, and its first part would stay.
const WIDTH: usize = 79;

/// Whether a line is shown now. All writers share the terminal.
static SHOWN: Mutex<bool> = Mutex::new(false);

fn shown() -> MutexGuard<'static, bool> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether standard error is a terminal that can overwrite a line.
pub fn is_seen() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Writes the line, in place of the last one.
pub fn show(text: &str) {
    if is_seen() {
        let mut shown = shown();
        let line: String = text.chars().take(WIDTH).collect();
        // A terminal that has gone is no failure.
        let _ = write!(io::stderr(), "\r\x1b[K{line}");
        *shown = true;
    }
}

/// Removes the line: before anything else is written, and when the work is done.
pub fn clear() {
    if std::mem::take(&mut *shown()) {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
}

/// Writes a line that stays.
pub fn note(text: &str) {
    if is_seen() {
        clear();
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// Shows the work and its duration once per second, until it is dropped.
pub struct Ticker {
    running: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Ticker {
    pub fn start(what: String) -> Self {
        let begin = || {
            let (stop, stopped) = channel();
            let start = Instant::now();
            let tick = move || {
                while stopped.recv_timeout(WORTH) == Err(RecvTimeoutError::Timeout) {
                    show(&format!("{what}: {}s", start.elapsed().as_secs()));
                }
            };
            (stop, std::thread::spawn(tick))
        };
        Self { running: is_seen().then(begin) }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            let _ = thread.join();
            clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Not for itself: the next test runs it.
    #[test]
    #[ignore = "run by another test"]
    fn work() {
        let ticker = Ticker::start("working".to_owned());
        std::thread::sleep(WORTH * 5 / 2);
        note("half of it");
        drop(ticker);
    }

    /// This program's `work`, as a line of a shell.
    fn work_line() -> String {
        let program = std::env::current_exe().unwrap();
        let module = module_path!().split_once("::").map_or("", |(_, module)| module);
        format!("'{}' --ignored --exact --nocapture {module}::work", program.display())
    }

    #[test]
    fn it_is_seen_on_a_terminal_and_takes_itself_away() {
        let output =
            Command::new("script").args(["-qec", &work_line(), "/dev/null"]).env("TERM", "xterm").output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("\r\x1b[Kworking: 1s"), "{text:?}");
        assert!(text.contains("\r\x1b[Khalf of it\r\n"), "{text:?}");
        let (_, after) = text.rsplit_once("working: ").unwrap();
        assert!(after.contains("\r\x1b[K"), "{text:?}");
    }

    #[test]
    fn it_is_silent_in_a_pipe_and_on_a_terminal_that_cannot() {
        let output = Command::new("sh").args(["-c", &work_line()]).output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(text.contains("1 passed") && !text.contains("working") && !text.contains("half"), "{text}");
        let output =
            Command::new("script").args(["-qec", &work_line(), "/dev/null"]).env("TERM", "dumb").output();
        assert!(!String::from_utf8_lossy(&output.unwrap().stdout).contains("working"));
    }
}
