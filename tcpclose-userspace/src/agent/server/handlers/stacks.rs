//! `POST /v1/stacks?pid=4242&for=60s&accept=true`: takes the stacks of a process for a while.

use std::time::Duration;

use hyper::StatusCode;

use crate::agent::parts::Parts;
use crate::agent::server::peer_creds::Caller;
use crate::agent::server::response::{Answer, plain};
use crate::report::query;
use crate::report::requests::{STACKS_FOR, STACKS_FOR_ACCEPT, STACKS_NAMED};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    pid: u32,
    time: Duration,
    /// Stacks of accept(), too.
    accept: bool,
}

/// Answers `query`, the part after the `?`.
pub fn answer(query: &str, caller: Option<&Caller>, parts: &Parts) -> Answer {
    let Asked { pid, time, accept } = match parse(query) {
        Ok(asked) => asked,
        Err(why) => return plain(StatusCode::BAD_REQUEST, format!("{why}\n")),
    };
    let Parts { tracking, stacks, stacks_wake, kill, .. } = parts;
    let group = kill.group.borrow();
    if accept && !caller.is_some_and(|caller| caller.may_kill(group.as_ref())) {
        let why = "stacks of accept() slow every system call of this host: only root and --kill-group may take them\n";
        return plain(StatusCode::FORBIDDEN, why);
    }
    match stacks.borrow_mut().ask(pid, time, accept, &mut tracking.borrow_mut(), stacks_wake) {
        Ok(()) => plain(StatusCode::OK, "ok\n"),
        Err(why) => plain(StatusCode::CONFLICT, format!("{why:#}\n")),
    }
}

/// # Errors
/// What is wrong with a field.
fn parse(query: &str) -> Result<Asked, String> {
    let (mut pid, mut time, mut accept) = (None, Duration::from_secs(60), false);
    for (key, value) in query::fields(query, &["pid", "for", "accept"])? {
        match key {
            "pid" => pid = Some(value.parse().map_err(|_| format!("pid={value}: not a pid"))?),
            "accept" => accept = value.parse().map_err(|_| format!("accept={value}: not true or false"))?,
            _ => time = query::duration(key, value)?,
        }
    }
    let longest = if accept { STACKS_FOR_ACCEPT } else { STACKS_FOR };
    if time.is_zero() || time > longest + STACKS_NAMED {
        return Err(format!("for: write a duration from 1ms to {}", humantime::format_duration(longest)));
    }
    pid.map(|pid| Asked { pid, time, accept }).ok_or_else(|| "pid is missing".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_a_process_and_a_time() {
        let asked = |seconds, accept| Ok(Asked { pid: 7, time: Duration::from_secs(seconds), accept });
        assert_eq!(parse("pid=7&for=90s"), asked(90, false));
        assert_eq!(parse("pid=7"), asked(60, false));
        assert_eq!(parse("accept=true&pid=7"), asked(60, true));
        for bad in [
            "pid=7&accept=1",
            "pid=7&for=64s&accept=true",
            "",
            "for=1s",
            "pid=x",
            "pid=-1",
            "pid=7&for=x",
            "pid=7&for=0s",
            "pid=7&for=604s",
            "pid=7&x=1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
