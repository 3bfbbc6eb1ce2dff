//! The metrics port: TLS, certificates and passwords as a web configuration says, and strangers who ask for nothing.

use crate::common;
mod crowd;
mod names;
mod passwords;
mod pki;
mod reload;
mod tls;

use std::process::{Command, Output};

use common::{Agent, BINARY};

/// What curl has to say of `url`: its exit status, the HTTP status (0 for none), and all that it wrote.
struct Curled {
    exit: i32,
    status: u16,
    body: String,
    printed: String,
}

fn curl(url: &str, arguments: &[&str]) -> Curled {
    let output = Command::new("curl")
        .args(["-sSv", "--max-time", "20", "-w", "\n%{http_code}"])
        .args(arguments)
        .arg(url)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap();
    Curled {
        exit: output.status.code().unwrap(),
        status: status.parse().unwrap(),
        body: body.to_owned(),
        printed: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Curled {
    /// An answer with this status came.
    #[track_caller]
    fn is(self, status: u16) -> Self {
        assert_eq!((self.exit, self.status), (0, status), "{}{}", self.printed, self.body);
        self
    }

    /// None came, for this reason.
    #[track_caller]
    fn fails(self, exits: &[i32], why: &str) -> Self {
        assert!(exits.contains(&self.exit), "{}: {}", self.exit, self.printed);
        assert!(self.printed.contains(why), "no {why:?} in {}", self.printed);
        self
    }
}

fn check_config(arguments: &[&str]) -> Output {
    Command::new(BINARY)
        .args(["agent", "--check-config", "--config", "/dev/null"])
        .args(arguments)
        .output()
        .unwrap()
}
